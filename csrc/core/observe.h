// The loss moves the level of the learning rate (C1-C9).
//
// GreedyLR: arXiv 2512.14527, with the exact state machine of transformers.optimization.GreedyLR 5.17, to
// which the result is bit-equal for finite losses. ReduceOnPlateau, bit-equal to
// torch.optim.lr_scheduler 2.13, is the same machine with other slots: it raises nothing, never starts over,
// and compares while it waits. Both need float64, this order of operations and no fused multiply-add, for
// which no compiler is left room: -ffp-contract=off, -fmad=false.
#pragma once

#include "search.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {

HOST_DEVICE inline double window_mean(double* c, double x);
HOST_DEVICE inline void judge(double* c, double x, bool finite);

// One observation: the loss pending in the vector becomes a decision about the level.
HOST_DEVICE inline void observe(double* c) {
    // C1
    double x = c[slot::loss_sum] / c[slot::loss_weight];
    c[slot::loss_sum] = c[slot::loss_weight] = 0.0;
    c[slot::loss] = x;
    const bool finite = is_finite(x);
    if (holds(c[slot::kind], Kind::NONE)) {
        c[slot::smoothed] = x;
        return;
    }
    // C2: a non-finite loss enters neither window nor best; it is a bad observation.
    if (finite && c[slot::smooth] != 0.0) x = window_mean(c, x);
    if (finite) c[slot::smoothed] = x;
    searches(c) ? search(c, x) : judge(c, x, finite);
}

// The ring: the mean of the last window_size values, through a running sum. Adds before it subtracts, as
// upstream does: the order is visible in the last bit.
HOST_DEVICE inline double window_mean(double* c, double x) {
    double* ring = c + block_begin(block::count, int(c[slot::n_groups]));
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
    if (c[slot::mode_max] != 0.0) return x > (relative ? best * (1.0 + threshold) : best + threshold);
    return x < (relative ? best * (1.0 - threshold) : best - threshold);
}

HOST_DEVICE inline double worst(const double* c) { return c[slot::mode_max] != 0.0 ? -HUGE_VAL : HUGE_VAL; }

HOST_DEVICE inline void set_event(double* c, Event event) { c[slot::event] = double(event); }

HOST_DEVICE inline void raise_level(double* c) {
    const LrBlocks b = lr_blocks(c);
    for (int i = 0; i < b.groups; ++i) {
        const double raised = b.level[i] / c[slot::factor];
        const double next = b.max_lr[i] < raised ? b.max_lr[i] : raised;
        if (!(next - b.level[i] > c[slot::eps])) continue;
        b.level[i] = next;
        set_event(c, Event::RAISE);
    }
}

// Returns whether every group is at its floor afterwards.
HOST_DEVICE inline bool cut_level(double* c) {
    const LrBlocks b = lr_blocks(c);
    bool at_floor = true;
    for (int i = 0; i < b.groups; ++i) {
        const double cut = b.level[i] * c[slot::factor];
        const double next = b.min_lr[i] > cut ? b.min_lr[i] : cut;
        if (b.level[i] - next > c[slot::eps]) {
            b.level[i] = next;
            set_event(c, Event::CUT);
        }
        at_floor = at_floor && b.level[i] <= b.min_lr[i];
    }
    return at_floor;
}

// `best` is that before this observation: to forget it is an event, too.
HOST_DEVICE inline void reset(double* c, double best) {
    const LrBlocks b = lr_blocks(c);
    bool changed = holds(c[slot::event], Event::CUT) || best != worst(c);
    for (int i = 0; i < b.groups; ++i) {
        changed = changed || b.level[i] != b.initial_lr[i];
        b.level[i] = b.initial_lr[i];
    }
    if (changed) set_event(c, Event::RESET);
    c[slot::best] = worst(c);
    c[slot::good] = c[slot::bad] = c[slot::cooldown_left] = c[slot::warmup_left] = 0.0;
    c[slot::resets_left] = c[slot::reset_start];
    c[slot::forget_left] = c[slot::forget_every];
    c[slot::window_count] = c[slot::window_head] = c[slot::window_sum] = 0.0;
}

HOST_DEVICE inline void judge(double* c, double x, bool finite) {
    const double best_before = c[slot::best];
    // C3: first the memory that is due to go, then the gates.
    if (c[slot::forget_every] > 0.0) {
        if (c[slot::forget_left] == 0.0) {
            c[slot::best] = worst(c);
            c[slot::good] = c[slot::bad] = 0.0;
            c[slot::forget_left] = c[slot::forget_every];
        }
        c[slot::forget_left] -= 1.0;
    }
    double* waiting = c[slot::cooldown_left] > 0.0 ? c + slot::cooldown_left
                      : c[slot::warmup_left] > 0.0 ? c + slot::warmup_left
                                                   : nullptr;
    // C4
    const bool better = finite && is_better(c, x);
    // C5
    const bool remembered = holds(c[slot::compare_with], CompareWith::LAST)   ? finite
                            : holds(c[slot::compare_with], CompareWith::BEST) ? better
                                                                              : better && waiting == nullptr;
    if (remembered) c[slot::best] = x;
    if (waiting != nullptr) {
        *waiting -= 1.0;
        c[slot::good] = c[slot::bad] = 0.0;
        return;
    }
    c[slot::good] = better ? c[slot::good] + 1.0 : 0.0;
    c[slot::bad] = better ? 0.0 : c[slot::bad] + 1.0;
    // C6
    if (c[slot::raises] != 0.0 && c[slot::good] > c[slot::patience]) {
        raise_level(c);
        c[slot::resets_left] = c[slot::reset_start];
        c[slot::warmup_left] = c[slot::warmup];
        c[slot::good] = 0.0;
        return;
    }
    if (!(c[slot::bad] > c[slot::patience])) return;
    // C7
    const bool at_floor = cut_level(c);
    if (at_floor) c[slot::resets_left] -= 1.0;
    // C8
    if (at_floor && c[slot::resets_left] <= 0.0) reset(c, best_before);
    // C9: after the reset, which therefore starts with a cooldown at the initial LR.
    c[slot::cooldown_left] = c[slot::cooldown];
    c[slot::bad] = 0.0;
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
