// The scalar side of a step: the control vector, what happens to the gradients (decide, G1-G4) and what the
// loss does to the learning rate (commit, C1-C9).
//
// GreedyLR: arXiv 2512.14527, with the exact state machine of transformers.optimization.GreedyLR 5.17, to
// which the result is bit-equal for finite losses. That needs float64, this order of operations and no fused
// multiply-add, hence `mul` below.
#pragma once

#include <math.h>

#include "common.h"

namespace greedylr {

// Slots of the control vector (float64), in order. Those from kind to n_groups are configuration; those from
// loss_sum to found_inf are added up over ranks, in place, before anything is decided from them.
#define GREEDYLR_SLOTS(X)                                                                 \
    X(kind)            /* 0: no loss-driven schedule, 1: GreedyLR */                      \
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
    X(max_grad_norm)   /* +inf: no clipping */                                            \
    X(skip_nonfinite)  /* 1: skip a step whose gradients are not all finite */            \
    X(n_groups)        /* G */                                                            \
    X(step)            /* committed optimizer steps */                                    \
    X(skipped)         /* steps skipped for non-finite gradients */                       \
    X(loss_sum)        /* pending: sum of weight * loss */                                \
    X(loss_weight)     /* pending: sum of weights, 0: no loss observed */                 \
    X(grad_sq_sum)     /* sum of squares of this step's raw gradients, NaN: unmeasured */ \
    X(grad_nonfinite)  /* 0: every gradient element of it is finite */                    \
    X(found_inf)       /* AMP flag, any non-zero counts */                                \
    X(loss)            /* last mean loss */                                               \
    X(smoothed)        /* last value compared with best */                                \
    X(best)            /* best value so far */                                            \
    X(good)            /* consecutive better observations */                              \
    X(bad)             /* consecutive not-better observations */                          \
    X(cooldown_left)   /* observations */                                                 \
    X(warmup_left)     /* observations */                                                 \
    X(resets_left)     /* cuts at the floor */                                            \
    X(window_sum)      /* sum of the ring's values */                                     \
    X(window_count)    /* values in the ring */                                           \
    X(window_head)     /* next ring position to write */                                  \
    X(grad_scale)      /* AMP loss scale */                                               \
    X(grad_norm)       /* unscaled 2-norm of all gradients, NaN: unmeasured */            \
    X(grad_multiplier) /* factor of every gradient element */                             \
    X(skip)            /* 1: this step is skipped */

namespace slot {
#define GREEDYLR_SLOT(name) name,
// After the named slots: four blocks of G values, lr, initial_lr, min_lr, max_lr, then the window ring.
enum Slot : int { GREEDYLR_SLOTS(GREEDYLR_SLOT) lr };
#undef GREEDYLR_SLOT
}  // namespace slot
static_assert(slot::n_groups == 14 && slot::skip == 36 && slot::lr == 37,
              "the layout that every backend reads");
static_assert(slot::found_inf == slot::loss_sum + 4, "one block, for one all-reduce");

inline namespace GREEDYLR_ISA {

// A product that no compiler may contract with an addition. The host is compiled with -ffp-contract=off.
HOST_DEVICE inline double mul(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

// After the gradients were measured, or a loss scale was set: by what to multiply them, and whether to skip.
HOST_DEVICE inline void decide(double* c) {
    // G1
    const double inv = 1.0 / c[slot::grad_scale];
    c[slot::grad_norm] = mul(sqrt(c[slot::grad_sq_sum]), inv);
    // G2: torch.nn.utils.clip_grad_norm_; a NaN norm stays NaN.
    double clip = 1.0;
    if (is_finite(c[slot::max_grad_norm])) {
        const double ratio = c[slot::max_grad_norm] / (c[slot::grad_norm] + 1e-6);
        clip = ratio > 1.0 ? 1.0 : ratio;
    }
    // G3
    c[slot::grad_multiplier] = mul(clip, inv);
    // G4
    const bool nonfinite = c[slot::skip_nonfinite] != 0.0 && c[slot::grad_nonfinite] > 0.0;
    c[slot::skip] = c[slot::found_inf] != 0.0 || nonfinite ? 1.0 : 0.0;
}

struct LrBlocks {
    double *lr, *initial, *min, *max;  // [G] each
    int groups;
};

HOST_DEVICE inline LrBlocks lr_blocks(double* c) {
    const int g = int(c[slot::n_groups]);
    double* lr = c + slot::lr;
    return {lr, lr + g, lr + 2 * g, lr + 3 * g, g};
}

// The ring: the mean of the last window_size values, through a running sum. Adds before it subtracts, as
// upstream does: the order is visible in the last bit.
HOST_DEVICE inline double window_mean(double* c, double x) {
    double* ring = c + slot::lr + 4 * int(c[slot::n_groups]);
    const int head = int(c[slot::window_head]);
    c[slot::window_sum] += x;
    if (c[slot::window_count] == c[slot::window_size]) {
        c[slot::window_sum] -= ring[head];
    } else {
        c[slot::window_count] += 1.0;
    }
    ring[head] = x;
    c[slot::window_head] = head + 1 == int(c[slot::window_size]) ? 0.0 : double(head + 1);
    return c[slot::window_sum] / c[slot::window_count];
}

HOST_DEVICE inline bool is_better(const double* c, double x) {
    const double best = c[slot::best], threshold = c[slot::threshold];
    const bool relative = c[slot::threshold_rel] != 0.0;
    if (c[slot::mode_max] != 0.0) return x > (relative ? mul(best, 1.0 + threshold) : best + threshold);
    return x < (relative ? mul(best, 1.0 - threshold) : best - threshold);
}

HOST_DEVICE inline double worst(const double* c) { return c[slot::mode_max] != 0.0 ? -HUGE_VAL : HUGE_VAL; }

HOST_DEVICE inline void raise_lr(double* c) {
    const LrBlocks b = lr_blocks(c);
    for (int i = 0; i < b.groups; ++i) {
        const double raised = b.lr[i] / c[slot::factor];
        const double next = b.max[i] < raised ? b.max[i] : raised;
        if (next - b.lr[i] > c[slot::eps]) b.lr[i] = next;
    }
}

// Returns whether every group is at its floor afterwards.
HOST_DEVICE inline bool cut_lr(double* c) {
    const LrBlocks b = lr_blocks(c);
    bool at_floor = true;
    for (int i = 0; i < b.groups; ++i) {
        const double cut = mul(b.lr[i], c[slot::factor]);
        const double next = b.min[i] > cut ? b.min[i] : cut;
        if (b.lr[i] - next > c[slot::eps]) b.lr[i] = next;
        at_floor = at_floor && b.lr[i] <= b.min[i];
    }
    return at_floor;
}

HOST_DEVICE inline void reset(double* c) {
    const LrBlocks b = lr_blocks(c);
    for (int i = 0; i < b.groups; ++i) b.lr[i] = b.initial[i];
    c[slot::best] = worst(c);
    c[slot::good] = c[slot::bad] = c[slot::cooldown_left] = c[slot::warmup_left] = 0.0;
    c[slot::resets_left] = c[slot::reset_start];
    c[slot::window_count] = c[slot::window_head] = c[slot::window_sum] = 0.0;
}

// One observation: the loss pending in the vector becomes a decision about the learning rate.
HOST_DEVICE inline void observe(double* c) {
    // C1
    double x = c[slot::loss_sum] / c[slot::loss_weight];
    c[slot::loss_sum] = c[slot::loss_weight] = 0.0;
    c[slot::loss] = x;
    const bool finite = is_finite(x);
    if (c[slot::kind] == 0.0) {
        c[slot::smoothed] = x;
        return;
    }
    // C2: a non-finite loss enters neither window nor best; it is a bad observation.
    if (finite && c[slot::smooth] != 0.0) x = window_mean(c, x);
    if (finite) c[slot::smoothed] = x;
    // C3
    double* waiting = c[slot::cooldown_left] > 0.0 ? c + slot::cooldown_left
                      : c[slot::warmup_left] > 0.0 ? c + slot::warmup_left
                                                   : nullptr;
    if (waiting != nullptr) {
        *waiting -= 1.0;
        c[slot::good] = c[slot::bad] = 0.0;
        return;
    }
    // C4
    const bool better = finite && is_better(c, x);
    // C5
    if (better) c[slot::best] = x;
    c[slot::good] = better ? c[slot::good] + 1.0 : 0.0;
    c[slot::bad] = better ? 0.0 : c[slot::bad] + 1.0;
    // C6
    if (c[slot::good] > c[slot::patience]) {
        raise_lr(c);
        c[slot::resets_left] = c[slot::reset_start];
        c[slot::warmup_left] = c[slot::warmup];
        c[slot::good] = 0.0;
        return;
    }
    if (!(c[slot::bad] > c[slot::patience])) return;
    // C7
    const bool at_floor = cut_lr(c);
    if (at_floor) c[slot::resets_left] -= 1.0;
    // C8
    if (at_floor && c[slot::resets_left] <= 0.0) reset(c);
    // C9: after the reset, which therefore starts with a cooldown at the initial LR.
    c[slot::cooldown_left] = c[slot::cooldown];
    c[slot::bad] = 0.0;
}

// After the update: count the step and let the observed loss, if any, decide the next learning rate.
HOST_DEVICE inline void commit(double* c) {
    if (c[slot::skip] != 0.0) {
        c[slot::skipped] += 1.0;
        c[slot::loss_sum] = c[slot::loss_weight] = 0.0;
        return;
    }
    c[slot::step] += 1.0;
    if (c[slot::loss_weight] == 0.0) {
        c[slot::loss_sum] = 0.0;
        return;
    }
    observe(c);
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
