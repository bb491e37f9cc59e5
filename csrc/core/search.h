// Level searches: windows of steps at other levels, after which parameters and optimizer state may be put
// back (L1-L9). `schedules/search_spec.py` is the specification, to which the result is bit-equal: float64,
// this order of operations, no fused multiply-add, and every comparison with NaN false.
//
// Climb tries higher levels from below as long as the mean losses of trials are better; AdaLRS (arXiv
// 2506.13274) tries one when the loss falls more slowly. Neither copies anything: the slot `backup` says what
// is to be copied after the step.
#pragma once

#include "slots.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {

// Of a level that is a product, when it is compared with the starting LR.
constexpr double ROUNDED_UP = 1.0 + 1e-9;
// A loss of this size or more is as one that is not finite: a product of its sums may not be.
constexpr double HUGE_LOSS = 1e100;

// A statistic of the losses of a window, and the square of its standard error.
struct Estimate {
    double value, var;
};

HOST_DEVICE inline bool searches(const double* c) {
    return holds(c[slot::kind], Kind::CLIMB) || holds(c[slot::kind], Kind::ADALRS);
}

HOST_DEVICE inline double at_least(double x, double low) { return low > x ? low : x; }
HOST_DEVICE inline double at_most(double x, double high) { return high < x ? high : x; }

HOST_DEVICE inline void open_window(double* c, Phase phase) {
    c[slot::phase] = double(phase);
    c[slot::window_step] = c[slot::search_losses] = c[slot::first_loss] = 0.0;
    c[slot::sum_y] = c[slot::sum_yy] = c[slot::sum_xy] = 0.0;
}

HOST_DEVICE inline void forget_kept(double* c) { c[slot::kept] = c[slot::kept_var] = double(NAN); }

HOST_DEVICE inline void keep(double* c, const Estimate& found) {
    c[slot::kept] = found.value;
    c[slot::kept_var] = found.var;
}

HOST_DEVICE inline void copy_after(double* c, Backup what) { c[slot::backup] = double(what); }

// Whether so many windows would not end in time.
HOST_DEVICE inline bool is_late(const double* c, double windows) {
    return c[slot::step] + windows * c[slot::window_size] > c[slot::search_until];
}

HOST_DEVICE inline void count_loss(double* c, double x) {
    if (c[slot::search_losses] == 0.0) c[slot::first_loss] = x;
    const double y = x - c[slot::first_loss];
    c[slot::sum_y] += y;
    c[slot::sum_yy] += y * y;
    c[slot::sum_xy] += c[slot::search_losses] * y;
    c[slot::search_losses] += 1.0;
}

HOST_DEVICE inline Estimate mean_loss(const double* c) {
    const double n = c[slot::search_losses];
    if (n < 2.0) return {double(NAN), double(NAN)};
    const double mean = c[slot::sum_y] / n;
    const double squares = c[slot::sum_yy] - c[slot::sum_y] * mean;
    return {c[slot::first_loss] + mean, at_least(0.0, squares) / (n - 1.0) / n};
}

// Minus the slope of the least-squares line.
HOST_DEVICE inline Estimate speed_of_descent(const double* c) {
    const double n = c[slot::search_losses];
    if (n < 3.0) return {double(NAN), double(NAN)};
    const double xx = n * (n * n - 1.0) / 12.0;
    const double xy = c[slot::sum_xy] - (n - 1.0) / 2.0 * c[slot::sum_y];
    const double yy = c[slot::sum_yy] - c[slot::sum_y] * c[slot::sum_y] / n;
    return {-(xy / xx), at_least(0.0, yy - xy * xy / xx) / (n - 2.0) / xx};
}

// Whether the trial's level is above the starting LR, where it must win.
HOST_DEVICE inline bool is_above_start(const double* c) { return c[slot::trial_level] > ROUNDED_UP; }

// Climb: the next trial, or the end.
HOST_DEVICE inline void try_higher(double* c) {
    c[slot::trial_level] = c[slot::search_level] * c[slot::raise_by];
    if (c[slot::trial_level] > c[slot::highest] || is_late(c, 2.0)) {
        // Out of time below the starting LR, against which no trial has spoken.
        if (c[slot::again] == 0.0) c[slot::search_level] = at_least(c[slot::search_level], 1.0);
        c[slot::phase] = double(Phase::FROZEN);
        return;
    }
    copy_after(c, Backup::TAKE);
    open_window(c, Phase::TRIAL);
}

// Climb: the control's losses beside those of the trial before it. A trial that wins is taken. Up to the
// starting LR another one is, too, unless a second one loses with it, or there is no time for that and it
// loses.
HOST_DEVICE inline void judge_mean(double* c) {
    const Estimate found = mean_loss(c);
    const double gain = found.value - c[slot::kept], z = c[slot::errors];
    bool taken = gain > z * sqrt(found.var + c[slot::kept_var]);
    if (!is_above_start(c) && !taken) {
        // A trial that explodes is no excuse for itself.
        const double var = found.var + (c[slot::kept_var] < found.var ? c[slot::kept_var] : found.var);
        const bool failed = gain != gain;  // of which the second trial knows nothing
        if (c[slot::again] == 0.0 && !is_late(c, 2.0)) {
            c[slot::again] = 1.0;
            c[slot::gain] = failed ? 0.0 : gain;
            c[slot::gain_var] = failed ? 0.0 : var;
            return try_higher(c);
        }
        const bool one_wins = gain >= 0.0 || c[slot::gain] > 0.0;
        taken = !failed && (one_wins || c[slot::gain] + gain >= -(z * sqrt(c[slot::gain_var] + var)));
    }
    if (!taken) {
        c[slot::phase] = double(Phase::FROZEN);
        return;
    }
    c[slot::search_level] = c[slot::trial_level];
    c[slot::again] = c[slot::gain] = c[slot::gain_var] = 0.0;
    try_higher(c);
}

// AdaLRS: a window at the level, or the end where none ends in time.
HOST_DEVICE inline void measure_on(double* c) {
    open_window(c, is_late(c, 1.0) ? Phase::FROZEN : Phase::CONTROL);
}

HOST_DEVICE inline void lower_level(double* c) {
    const double by = at_least(c[slot::faded] * c[slot::cut_by], 1.0);
    c[slot::search_level] = at_least(c[slot::search_level] / by, c[slot::lowest]);
    c[slot::faded] *= c[slot::fade];
    c[slot::rising] = 0.0;
    forget_kept(c);
    measure_on(c);
}

// AdaLRS: whether this is at least the second window in turn in which the loss rose.
HOST_DEVICE inline bool rises_again(double* c, const Estimate& found) {
    c[slot::rising] = found.value < 0.0 ? c[slot::rising] + 1.0 : 0.0;
    return c[slot::rising] >= 2.0;
}

// AdaLRS: the speed beside that of the window before.
HOST_DEVICE inline void judge_speed(double* c) {
    const Estimate found = speed_of_descent(c);
    const bool slower = found.value < c[slot::kept];
    keep(c, found);
    const double by = at_least(c[slot::faded] * c[slot::raise_by], 1.0);
    const double raised = at_most(c[slot::search_level] * by, c[slot::highest]);
    if (rises_again(c, found)) {
        lower_level(c);
    } else if (slower && raised > c[slot::search_level] && !is_late(c, 1.0)) {
        c[slot::trial_level] = raised;
        copy_after(c, Backup::TAKE);
        open_window(c, Phase::TRIAL);
    } else {
        measure_on(c);
    }
}

// AdaLRS: keep the trial's level, cut, or neither.
HOST_DEVICE inline void judge_trial(double* c) {
    const Estimate found = speed_of_descent(c);
    const double error = c[slot::errors] * sqrt((found.var + c[slot::kept_var]) / 2.0);
    const bool rises = rises_again(c, found), slower = found.value < c[slot::kept] - error;
    if (slower) copy_after(c, Backup::PUT_BACK);
    if (slower || rises) return lower_level(c);
    if (found.value > c[slot::kept] + error) {
        c[slot::search_level] = c[slot::trial_level];
        keep(c, found);
        c[slot::faded] *= c[slot::fade];
    }
    measure_on(c);
}

HOST_DEVICE inline void decide_level(double* c, double x, bool climbs, bool tries) {
    // L1
    const bool finite = fabs(x) < HUGE_LOSS;
    // L2
    if (tries && !(finite && (climbs || x <= c[slot::worst_loss]))) {
        copy_after(c, Backup::PUT_BACK);
        if (!climbs) return lower_level(c);
        if (is_above_start(c)) {
            c[slot::phase] = double(Phase::FROZEN);
            return;
        }
        forget_kept(c);
        return open_window(c, Phase::CONTROL);
    }
    // L3
    if (finite && !climbs) c[slot::worst_loss] = at_least(c[slot::worst_loss], x);
    // L4
    if (holds(c[slot::phase], Phase::WAIT)) {
        if (c[slot::step] >= c[slot::search_begin]) climbs ? try_higher(c) : measure_on(c);
        return;
    }
    // L5
    if (finite && c[slot::window_step] >= c[slot::settle]) count_loss(c, x);
    c[slot::window_step] += 1.0;
    if (c[slot::window_step] < c[slot::window_size]) return;
    // L6
    if (climbs && tries) {
        keep(c, mean_loss(c));
        copy_after(c, Backup::PUT_BACK);
        open_window(c, Phase::CONTROL);
    } else if (climbs) {
        judge_mean(c);
        // L7
    } else if (tries) {
        judge_trial(c);
    } else {
        judge_speed(c);
    }
}

// L8: a window of Climb ends in an anneal.
HOST_DEVICE inline double next_multiplier(const double* c) {
    const bool tries = holds(c[slot::phase], Phase::TRIAL);
    const double level = tries ? c[slot::trial_level] : c[slot::search_level];
    if (c[slot::anneal] == 0.0 || !(tries || holds(c[slot::phase], Phase::CONTROL))) return level;
    return level * at_most((c[slot::window_size] - c[slot::window_step]) / c[slot::anneal], 1.0);
}

// L9: the first of these that is true.
HOST_DEVICE inline Event told(const double* c, double level_before, bool was_frozen, bool tried) {
    if (c[slot::search_level] > level_before) return Event::RAISE;
    if (c[slot::search_level] < level_before) return Event::CUT;
    if (holds(c[slot::phase], Phase::FROZEN) && !was_frozen) return Event::FREEZE;
    if (holds(c[slot::backup], Backup::TAKE)) return Event::TRY;
    return tried && !holds(c[slot::phase], Phase::TRIAL) ? Event::BACK : Event::NONE;
}

// The loss of a step, after it; NaN for one that was skipped in a trial. The slot `backup` is NONE before.
HOST_DEVICE inline void search(double* c, double x) {
    const double level_before = c[slot::search_level];
    const bool tries = holds(c[slot::phase], Phase::TRIAL), frozen = holds(c[slot::phase], Phase::FROZEN);
    if (!frozen) decide_level(c, x, holds(c[slot::kind], Kind::CLIMB), tries);
    c[slot::multiplier] = next_multiplier(c);
    const LrBlocks b = lr_blocks(c);
    for (int i = 0; i < b.groups; ++i) b.level[i] = b.initial_lr[i] * c[slot::multiplier];
    c[slot::event] = double(told(c, level_before, frozen, tries));
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
