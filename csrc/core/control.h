// The scalar side of a step: what happens to the gradients (clip, G1-G4; spikes.h has what follows it), and
// after the update what the loss and the step index do to the learning rate (control, C1-C9 and S1-S3).
#pragma once

#include "observe.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {

// After the gradients were measured, or a loss scale was set: by what to multiply them, and whether to skip.
HOST_DEVICE inline void run_clip(double* c) {
    // G1
    const double inv = 1.0 / c[slot::grad_scale];
    c[slot::grad_norm] = sqrt(c[slot::grad_sq_sum]) * inv;
    // G2: torch.nn.utils.clip_grad_norm_; a NaN norm stays NaN.
    double clip = 1.0;
    if (is_finite(c[slot::max_grad_norm])) {
        const double ratio = c[slot::max_grad_norm] / (c[slot::grad_norm] + 1e-6);
        clip = ratio > 1.0 ? 1.0 : ratio;
    }
    // G3
    c[slot::grad_multiplier] = clip * inv;
    // G4
    const bool nonfinite = c[slot::skip_nonfinite] != 0.0 && c[slot::grad_nonfinite] > 0.0;
    c[slot::skip] = double(c[slot::found_inf] != 0.0 || nonfinite ? Skip::NONFINITE : Skip::NONE);
}

// The step schedule: the curve value of the next step. `curve` holds curve_length values by step,
// of which the last one stays, and behind them the late decay's decay_steps + 1 values.
HOST_DEVICE inline void set_lr(double* c, const double* curve) {
    // S1
    const double length = c[slot::curve_length], step = c[slot::step];
    if (length == 0.0) return;
    double curve_value = curve[int64_t(step < length ? step : length - 1.0)];
    // S2
    if (step >= c[slot::decay_start]) {
        const double into = step - c[slot::decay_start];
        const double at = into < c[slot::decay_steps] ? into : c[slot::decay_steps];
        curve_value *= curve[int64_t(length + at)];
    }
    c[slot::curve_value] = curve_value;
    // S3
    const LrBlocks b = lr_blocks(c);
    for (int i = 0; i < b.groups; ++i) b.lr[i] = b.level[i] * curve_value;
}

template <DType D>
HOST_DEVICE inline double value_at(int64_t address) {
    return double(Format<D>::load(*reinterpret_cast<const typename Format<D>::Stored*>(address)));
}

HOST_DEVICE inline double value_of(const Loss& loss) {
    return loss.dtype == F32    ? value_at<F32>(loss.address)
           : loss.dtype == F64  ? value_at<F64>(loss.address)
           : loss.dtype == BF16 ? value_at<BF16>(loss.address)
           : loss.dtype == F16  ? value_at<F16>(loss.address)
                                : double(*reinterpret_cast<const int64_t*>(loss.address));
}

// Adds a loss to those that are pending.
HOST_DEVICE inline void take(double* c, const Observation& seen) {
    if (seen.loss.address == 0) return;
    const double weight = seen.weight_at.address == 0 ? seen.weight : value_of(seen.weight_at);
    if (weight == 0.0) return;  // a mean over no tokens is NaN, and weighs nothing
    c[slot::loss_sum] += weight * value_of(seen.loss);
    c[slot::loss_weight] += weight;
}

// Adds the loss of a step.
HOST_DEVICE inline void take(double* c, const Loss& loss) { take(c, Observation{loss, {}, 1.0}); }

// After the update: count the step; the observed loss, if any, and the step index decide the next learning
// rate. A step that was skipped for its gradients changes it only by ending the trial of a search: a trial
// that broke the weights would skip for ever. A spike is no verdict, since a run at that level would skip it
// too, and no more than a few come in a row: their values enter the rings.
HOST_DEVICE inline void run_control(double* c, const double* curve) {
    c[slot::event] = double(Event::NONE);
    c[slot::backup] = double(Backup::NONE);
    if (c[slot::skip] != 0.0) {
        c[slot::skipped] += 1.0;
        c[slot::loss_sum] = c[slot::loss_weight] = 0.0;
        if (!searches(c) || !holds(c[slot::phase], Phase::TRIAL) || holds(c[slot::skip], Skip::SPIKE)) return;
        search(c, double(NAN));
        set_lr(c, curve);
        return;
    }
    c[slot::step] += 1.0;
    if (c[slot::loss_weight] == 0.0) {
        c[slot::loss_sum] = 0.0;
    } else {
        observe(c);
    }
    set_lr(c, curve);
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
