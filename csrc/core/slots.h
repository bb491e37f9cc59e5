// The control vector: its slots, and the blocks of values per parameter group behind them.
#pragma once

#include <math.h>

#include "common.h"

namespace greedylr {

// Slots of the control vector (float64), in order. Those from kind to n_groups are configuration; those
// from loss_sum to found_inf are added up over ranks, in place, before anything is decided from them.
#define GREEDYLR_SLOTS(X)                                                                 \
    X(kind)            /* 0: no loss-driven schedule, 1: GreedyLR, 2: ReduceOnPlateau */  \
    X(mode_max)        /* 1: the larger loss is the better one */                         \
    X(factor)          /* cut by it, raise by its inverse */                              \
    X(patience)        /* observations */                                                 \
    X(threshold)       /* how much better is better */                                    \
    X(threshold_rel)   /* 1: threshold is relative to best */                             \
    X(cooldown)        /* observations ignored after a cut */                             \
    X(warmup)          /* observations ignored after a raise */                           \
    X(eps)             /* absolute change of LR that is too small to write */             \
    X(smooth)          /* 1: compare the mean of a window */                              \
    X(window_size)     /* observations */                                                 \
    X(reset_start)     /* cuts at the floor before a reset */                             \
    X(raises)          /* 1: better observations raise, 0: they only do not cut */        \
    X(remembers)       /* 0: best, unless waiting, 1: best, 2: the last observation */    \
    X(forget_every)    /* observations until best is forgotten, 0: never */               \
    X(curve_length)    /* values of the curve, 0: the host writes the LR */               \
    X(max_grad_norm)   /* +inf: no clipping */                                            \
    X(skip_nonfinite)  /* 1: skip a step whose gradients are not all finite */            \
    X(n_groups)        /* G */                                                            \
    X(step)            /* committed optimizer steps */                                    \
    X(skipped)         /* steps skipped for non-finite gradients */                       \
    X(loss_sum)        /* pending: sum of weight * loss */                                \
    X(loss_weight)     /* pending: sum of weights, 0: no loss observed */                 \
    X(grad_sq_sum)     /* sum of squares of this step's raw gradients, NaN: unmeasured */ \
    X(grad_abs_sum)    /* sum of their absolute values, NaN: unmeasured */                \
    X(grad_nonfinite)  /* 0: every gradient element of it is finite */                    \
    X(found_inf)       /* AMP flag, any non-zero counts */                                \
    X(loss)            /* last mean loss */                                               \
    X(smoothed)        /* last value compared with best */                                \
    X(best)            /* what observations are compared with */                          \
    X(good)            /* consecutive better observations */                              \
    X(bad)             /* consecutive not-better observations */                          \
    X(cooldown_left)   /* observations */                                                 \
    X(warmup_left)     /* observations */                                                 \
    X(resets_left)     /* cuts at the floor */                                            \
    X(forget_left)     /* observations */                                                 \
    X(window_sum)      /* sum of the ring's values */                                     \
    X(window_count)    /* values in the ring */                                           \
    X(window_head)     /* next ring position to write */                                  \
    X(decay_start)     /* step from which the late decay runs, +inf: not started */       \
    X(decay_steps)     /* its length, steps */                                            \
    X(fraction)        /* share of each level that the next step uses as LR */            \
    X(grad_scale)      /* AMP loss scale */                                               \
    X(grad_norm)       /* unscaled 2-norm of all gradients, NaN: unmeasured */            \
    X(grad_multiplier) /* factor of every gradient element */                             \
    X(skip)            /* 1: this step is skipped */

namespace slot {
#define GREEDYLR_SLOT(name) name,
// After the named slots: five blocks of G values, lr, initial_lr, min_lr, max_lr, level, then the window
// ring.
enum Slot : int { GREEDYLR_SLOTS(GREEDYLR_SLOT) lr };
#undef GREEDYLR_SLOT
}  // namespace slot
static_assert(slot::n_groups == 18 && slot::skip == 45 && slot::lr == 46,
              "the layout that every backend reads");
static_assert(slot::found_inf == slot::loss_sum + 5, "one block, for one all-reduce");

constexpr int LR_BLOCKS = 5;

inline namespace GREEDYLR_ISA {

// A product that no compiler may contract with an addition. The host is compiled with -ffp-contract=off.
HOST_DEVICE inline double mul(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

// What a step uses is lr = level * fraction: the loss moves the level, within [min, max]; the step index
// gives the fraction.
struct LrBlocks {
    double *lr, *initial, *min, *max, *level;  // [G] each
    int groups;
};

HOST_DEVICE inline LrBlocks lr_blocks(double* c) {
    const int g = int(c[slot::n_groups]);
    double* lr = c + slot::lr;
    return {lr, lr + g, lr + 2 * g, lr + 3 * g, lr + 4 * g, g};
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
