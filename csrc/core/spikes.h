// A step is skipped if its loss or gradient norm is a spike: more than sigmas deviations beyond the mean of
// the values before it (K1-K4). The rule is that of OLMo-core's SkipStepOptimizer; what enters the rings, and
// which side is the bad one, is said in greedylr_fused/schedules/spikes.py, its specification.
#pragma once

#include <math.h>

#include "slots.h"

namespace greedylr {

// Sums over a ring have one order, for one thread and for a warp: every 32nd value, the oldest first, is a
// lane's, and the lanes' sums are added in pairs of neighbours.
constexpr int SPIKE_LANES = 32;

// Loads of four values at once: left alone, the compiler takes sixteen, or what fewer are left one by one.
#ifdef __CUDACC__
#define GREEDYLR_UNROLL_4 _Pragma("unroll 4")
#else
#define GREEDYLR_UNROLL_4
#endif

inline namespace GREEDYLR_ISA {

// A ring of the last values, as it is before this step's.
struct SpikeRing {
    const double* values;  // [size]
    int size, count, oldest;

    // By age, from 0, the oldest, to count - 1.
    HOST_DEVICE double at(int age) const {
        const int place = oldest + age;
        return values[place < size ? place : place - size];
    }
};

// What a loss and a norm must be beyond to be spikes; an infinity or NaN, beyond which nothing is, if the
// ring cannot judge yet, or never varied.
struct SpikeLimits {
    double loss, norm;
};

// The two rings, losses before norms.
HOST_DEVICE inline double* spike_rings(double* c) {
    return c + block_begin(block::count, int(c[slot::n_groups])) + window_length(c);
}

HOST_DEVICE inline SpikeRing spike_ring(const double* c, const double* values, slot::Slot count,
                                        slot::Slot head) {
    const int size = int(c[slot::spike_window]), held = int(c[count]);
    return {values, size, held, held < size ? 0 : int(c[head])};
}

HOST_DEVICE inline SpikeRing loss_ring(const double* c, const double* rings) {
    return spike_ring(c, rings, slot::spike_losses, slot::losses_head);
}

HOST_DEVICE inline SpikeRing norm_ring(const double* c, const double* rings) {
    return spike_ring(c, rings + int(c[slot::spike_window]), slot::spike_norms, slot::norms_head);
}

// K1: the deviations from the oldest value, so that those of a constant are 0 whatever rounding does.
HOST_DEVICE inline double lane_sum(const SpikeRing& ring, int lane) {
    double sum = 0.0;
    GREEDYLR_UNROLL_4
    for (int age = lane; age < ring.count; age += SPIKE_LANES) sum += ring.at(age) - ring.at(0);
    return sum;
}

HOST_DEVICE inline double lane_squares(const SpikeRing& ring, int lane, double mean) {
    double sum = 0.0;
    GREEDYLR_UNROLL_4
    for (int age = lane; age < ring.count; age += SPIKE_LANES) {
        const double apart = (ring.at(age) - ring.at(0)) - mean;
        sum += apart * apart;
    }
    return sum;
}

// K2, of the mean and the sum of squares about it, both less the oldest value.
HOST_DEVICE inline double spike_limit(const double* c, const SpikeRing& ring, double mean, double squares,
                                      double sigmas) {
    if (double(ring.count) < c[slot::spike_minimum] || !(squares > 0.0)) return NAN;
    return ring.at(0) + (mean + sigmas * sqrt(squares / double(ring.count - 1)));
}

// The sigmas of losses: a larger loss is worse, unless the schedule says otherwise.
HOST_DEVICE inline double loss_sigmas(const double* c) {
    return c[slot::mode_max] != 0.0 ? -c[slot::spike_sigmas] : c[slot::spike_sigmas];
}

HOST_DEVICE inline double added_in_pairs(double (&lanes)[SPIKE_LANES]) {
    for (int left = SPIKE_LANES / 2; left > 0; left /= 2) {
        for (int i = 0; i < left; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
    }
    return lanes[0];
}

// The limit by one thread; a warp computes it in csrc/cuda/epilogue.cuh.
HOST_DEVICE inline double spike_limit(const double* c, const SpikeRing& ring, double sigmas) {
    double lanes[SPIKE_LANES];
    for (int lane = 0; lane < SPIKE_LANES; ++lane) lanes[lane] = lane_sum(ring, lane);
    const double mean = added_in_pairs(lanes) / double(ring.count);
    for (int lane = 0; lane < SPIKE_LANES; ++lane) lanes[lane] = lane_squares(ring, lane, mean);
    return spike_limit(c, ring, mean, added_in_pairs(lanes), sigmas);
}

HOST_DEVICE inline SpikeLimits spike_limits(double* c) {
    const double* rings = spike_rings(c);
    return {spike_limit(c, loss_ring(c, rings), loss_sigmas(c)),
            spike_limit(c, norm_ring(c, rings), c[slot::spike_sigmas])};
}

// A finite value enters, that of a skipped step too, or a shift of level would skip for ever.
HOST_DEVICE inline void enter(double* c, double* ring, slot::Slot count, slot::Slot head, double x) {
    if (!is_finite(x)) return;
    const double size = c[slot::spike_window], at = c[head];
    ring[int(at)] = x;
    c[head] = at + 1.0 == size ? 0.0 : at + 1.0;
    c[count] = c[count] == size ? size : c[count] + 1.0;
}

// Skips a spike, once the loss and the norm of all ranks are known. `rings` is apart from `c`, which may be a
// copy of the scalars alone.
HOST_DEVICE inline void judge_spikes(double* c, double* rings, const SpikeLimits& limits) {
    const double loss = c[slot::loss_weight] != 0.0 ? c[slot::loss_sum] / c[slot::loss_weight] : NAN;
    const double norm = c[slot::grad_norm];
    // K3: what is not finite is left to skip_nonfinite; a step that is skipped for that is no spike.
    const bool beyond = c[slot::mode_max] != 0.0 ? loss < limits.loss : loss > limits.loss;
    const bool spike = (is_finite(loss) && beyond) || (is_finite(norm) && norm > limits.norm);
    if (spike && c[slot::skip] == 0.0) {
        c[slot::skip] = double(Skip::SPIKE);
        c[slot::spikes] += 1.0;
    }
    // K4
    enter(c, rings, slot::spike_losses, slot::losses_head, loss);
    enter(c, rings + int(c[slot::spike_window]), slot::spike_norms, slot::norms_head, norm);
}

// What follows run_clip, if anything does.
HOST_DEVICE inline void skip_spikes(double* c) {
    if (c[slot::spike_window] != 0.0) judge_spikes(c, spike_rings(c), spike_limits(c));
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
