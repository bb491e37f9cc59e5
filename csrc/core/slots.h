// The control vector: its slots, and the blocks of values per parameter group behind them.
#pragma once

#include <math.h>

#include "common.h"

namespace greedylr {

// Slots of the control vector (float64), in order: written once by the host,
#define GREEDYLR_CONFIGURATION(X)                                                     \
    X(kind)           /* schedule: a Kind */                                          \
    X(mode_max)       /* 1 if a larger loss is better */                              \
    X(factor)         /* a cut multiplies by it, a raise divides by it */             \
    X(patience)       /* observations */                                              \
    X(threshold)      /* margin by which a loss must beat the best */                 \
    X(threshold_rel)  /* 1 if the margin is relative to the best */                   \
    X(cooldown)       /* observations to wait after a cut */                          \
    X(warmup)         /* observations to wait after a raise */                        \
    X(eps)            /* LR changes up to this size are dropped */                    \
    X(smooth)         /* 1 if the mean over the window is compared */                 \
    X(window_size)    /* observations */                                              \
    X(reset_start)    /* cuts at the floor before a reset */                          \
    X(raises)         /* 1 if better observations raise, 0 if they only do not cut */ \
    X(compare_with)   /* what observations are compared with: a CompareWith */        \
    X(forget_every)   /* observations until the best is forgotten, 0: never */        \
    X(curve_length)   /* values of the curve, 0: the host writes the LR */            \
    X(max_grad_norm)  /* 2-norm limit, +inf: no clipping */                           \
    X(skip_nonfinite) /* 1 if a non-finite gradient skips the step */                 \
    X(spike_window)   /* values in each ring of spikes, 0: spikes are not skipped */  \
    X(spike_minimum)  /* values that a ring must hold to judge */                     \
    X(spike_sigmas)   /* deviations from the mean from which on a value is a spike */ \
    X(n_groups)       /* parameter groups */                                          \
    X(tuner_begin)    /* index of the tuner's values, 0: no tuner */                  \
    X(tuner_betas)    /* learners of the tuner */                                     \
    X(settle)         /* observations of a search's window that do not count */       \
    X(anneal)         /* observations in which its level falls to 0, 0: never */      \
    X(search_begin)   /* step of its first window */                                  \
    X(search_until)   /* step after which none of its windows ends */                 \
    X(raise_by)       /* the level of its trial is this times the level */            \
    X(cut_by)         /* its cut divides the level by it */                           \
    X(fade)           /* each change of its level multiplies these two by it */       \
    X(lowest)         /* its lowest level / initial_lr */                             \
    X(highest)        /* its highest level / initial_lr */                            \
    X(errors)         /* standard errors by which its trial must win */               \
// what one step leaves to the next,
#define GREEDYLR_MEMORY(X)                                                        \
    X(step)          /* committed optimizer steps */                              \
    X(skipped)       /* steps skipped, for whatever reason */                     \
    X(loss)          /* last mean loss */                                         \
    X(smoothed)      /* last value compared with the best */                      \
    X(best)          /* what observations are compared with */                    \
    X(good)          /* better observations in a row */                           \
    X(bad)           /* other observations in a row */                            \
    X(cooldown_left) /* observations */                                           \
    X(warmup_left)   /* observations */                                           \
    X(resets_left)   /* cuts at the floor until a reset */                        \
    X(forget_left)   /* observations until the best is forgotten */               \
    X(window_sum)    /* running sum of the window */                              \
    X(window_count)  /* losses in the window */                                   \
    X(window_head)   /* ring position written next */                             \
    X(decay_start)   /* step from which the late decay runs, +inf: not started */ \
    X(decay_steps)   /* its length in steps */                                    \
    X(curve_value)   /* lr / level of the next step */                            \
    X(writes)        /* learning rates written by the host */                     \
    X(spikes)        /* of the skipped steps those for a spike */                 \
    X(spike_losses)  /* losses in the first ring of spikes */                     \
    X(losses_head)   /* position in it written next */                            \
    X(spike_norms)   /* gradient norms in the second */                           \
    X(norms_head)    /* position in that written next */                          \
    X(tuner_scale)   /* S of the tuner, NaN without one */                        \
    X(phase)         /* of a search: a Phase */                                   \
    X(window_step)   /* observations of its open window */                        \
    X(search_level)  /* its level / initial_lr outside trials, NaN without one */ \
    X(trial_level)   /* its level / initial_lr in the open trial, or the last */  \
    X(multiplier)    /* its level / initial_lr in the next step */                \
    X(search_losses) /* losses counted in its window */                           \
    X(first_loss)    /* the first of them */                                      \
    X(sum_y)         /* sum of them, each less the first: of y */                 \
    X(sum_yy)        /* sum of the squares of y */                                \
    X(sum_xy)        /* sum of y times the number of its loss in the window */    \
    X(kept)          /* what its window is compared with */                       \
    X(kept_var)      /* square of the standard error of that */                   \
    X(again)         /* 1 if its open trial repeats one that did not win */       \
    X(gain)          /* what the first of the two gained */                       \
    X(gain_var)      /* square of the standard error of that */                   \
    X(rising)        /* windows in a row in which the loss rose */                \
    X(faded)         /* fade to the power of its changes */                       \
    X(worst_loss)    /* largest loss that it has seen */
// and what lives within a step. The first six, loss_sum to found_inf, are added up over ranks in place.
// With a tuner so are the three behind them; its "moved" is (x0 - x) / (S + eps) of a parameter x.
#define GREEDYLR_STEP(X)                                                           \
    X(loss_sum)        /* pending: sum of weight * loss */                         \
    X(loss_weight)     /* pending: sum of weights, 0 if no loss was observed */    \
    X(grad_sq_sum)     /* sum of squared raw gradients, NaN if not measured */     \
    X(grad_abs_sum)    /* sum of absolute raw gradients, NaN if not measured */    \
    X(grad_nonfinite)  /* non-zero if a gradient element is not finite */          \
    X(found_inf)       /* non-zero if AMP found a non-finite gradient */           \
    X(param_sq_sum)    /* sum of squared parameters, with a tuner */               \
    X(grad_moved_sum)  /* sum of raw gradient times moved, with a tuner */         \
    X(param_moved_sum) /* sum of parameter times moved, with a tuner */            \
    X(grad_scale)      /* loss scale of AMP */                                     \
    X(grad_norm)       /* 2-norm of the unscaled gradients, NaN if not measured */ \
    X(grad_multiplier) /* clip coefficient / loss scale */                         \
    X(skip)            /* whether this step is skipped, and why: a Skip */         \
    X(event)           /* what the loss decided in it: an Event */                 \
    X(backup)          /* after the step: 0 nothing, 1 take a backup, 2 put it back */
// Blocks of one value per parameter group, behind the scalars; behind them are the ring of the window and the
// two of spikes, and behind those lie the tuner's values, see mechanic.h.
#define GREEDYLR_BLOCKS(X) X(lr) X(initial_lr) X(min_lr) X(max_lr) X(level)

#define GREEDYLR_NAME(name) name,
namespace slot {
enum Slot : int {
    GREEDYLR_CONFIGURATION(GREEDYLR_NAME) GREEDYLR_MEMORY(GREEDYLR_NAME) GREEDYLR_STEP(GREEDYLR_NAME) count
};
}  // namespace slot
namespace block {
enum Block : int { GREEDYLR_BLOCKS(GREEDYLR_NAME) count };
}  // namespace block
#undef GREEDYLR_NAME
static_assert(slot::found_inf == slot::loss_sum + 5, "one block, for one all-reduce");
static_assert(slot::param_moved_sum == slot::found_inf + 3, "the tuner's part of it");

// Codes that some of the slots hold.
enum class Kind : int { NONE, GREEDY, PLATEAU, CLIMB, ADALRS };
enum class CompareWith : int { BEST_WHILE_DECIDING, BEST, LAST };
enum class Event : int { NONE, RAISE, CUT, RESET, TRY, BACK, FREEZE };
enum class Phase : int { WAIT, TRIAL, CONTROL, FROZEN };
enum class Skip : int { NONE, NONFINITE, SPIKE };
enum class Backup : int { NONE, TAKE, PUT_BACK };

inline namespace GREEDYLR_ISA {

// Where the values of a block begin, and after the last block the rings.
HOST_DEVICE inline int block_begin(int which, int groups) { return slot::count + which * groups; }

// A step uses lr = level * curve_value: the loss moves the level, within [min_lr, max_lr]; the step
// index gives the curve value.
struct LrBlocks {
    double *lr, *initial_lr, *min_lr, *max_lr, *level;  // [G] each
    int groups;
};

HOST_DEVICE inline LrBlocks lr_blocks(double* c) {
    const int g = int(c[slot::n_groups]);
    return {c + block_begin(block::lr, g),     c + block_begin(block::initial_lr, g),
            c + block_begin(block::min_lr, g), c + block_begin(block::max_lr, g),
            c + block_begin(block::level, g),  g};
}

// Losses in the ring of the window, behind which those of spikes begin.
HOST_DEVICE inline int window_length(const double* c) {
    return c[slot::smooth] != 0.0 ? int(c[slot::window_size]) : 0;
}

// The learning rate of a group, that this step uses.
HOST_DEVICE inline double lr_of(const double* c, int group) {
    return c[block_begin(block::lr, int(c[slot::n_groups])) + group];
}

// What a snapshot shows: the slots from here on, memory and step, and behind them the learning rates.
constexpr int STATE_BEGIN = slot::step;
HOST_DEVICE inline int shown_count(const double* c) {
    return block_begin(block::lr + 1, int(c[slot::n_groups])) - STATE_BEGIN;
}

template <typename Code>
HOST_DEVICE inline bool holds(double slot, Code code) {
    return slot == double(code);
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
