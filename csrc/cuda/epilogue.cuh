// The end of a launch, by its last block when all others are done: the scalar side of a step, without a
// launch of its own.
#pragma once

#include <math.h>

#include "../core/control.h"
#include "../core/spikes.h"
#include "access.cuh"

namespace greedylr {
namespace cuda {

// True in the last block of the grid to come here, in which everything that the others wrote is then visible.
// `arrived` is 0 at the start and again at the end, for the next launch and the next replay of a graph.
__device__ __forceinline__ bool is_last_block(unsigned* arrived) {
    GREEDYLR_SHARED(unsigned, rank, 1);
    __syncthreads();
    if (threadIdx.x == 0) rank[0] = count_up(arrived);
    __syncthreads();
    if (rank[0] != gridDim.x - 1) return false;
    if (threadIdx.x == 0) *arrived = 0;
    return true;
}

// Doubles of the control vector, without the rings of spikes, that fit on the chip; a longer one (hundreds of
// parameter groups or losses in the window) is used where it is.
constexpr int STAGED = 512;

// Calls `body(control)` in thread 0, then `show(control)` in all. The scalar code is one long chain of
// dependent accesses, so the vector is brought into shared memory first, by all threads, and taken back.
template <typename Body, typename Show>
__device__ __forceinline__ void on_staged_control(double* control, const Body& body, const Show& show) {
    GREEDYLR_SHARED(double, staged, STAGED);
    const int groups = int(control[slot::n_groups]);
    const int length = block_begin(block::count, groups) + window_length(control);
    const bool fits = length <= STAGED;
    if (fits) {
        for (int i = threadIdx.x; i < length; i += blockDim.x) staged[i] = control[i];
    }
    __syncthreads();
    if (threadIdx.x == 0) body(fits ? staged : control);
    __syncthreads();
    if (fits) {
        for (int i = threadIdx.x; i < length; i += blockDim.x) control[i] = staged[i];
    }
    show(fits ? staged : control);
}

template <typename Body>
__device__ __forceinline__ void on_staged_control(double* control, const Body& body) {
    on_staged_control(control, body, [](const double*) {});
}

// Writes the state to memory that the host maps, between two copies of a number that no step before had. The
// host takes only what lies between equal ones, and so reads without waiting, in replays of a graph too. (A
// sequence lock; Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012.)
__device__ __forceinline__ void show_host(const double* c, double* snapshot) {
    const int count = shown_count(c);
    const double number = c[slot::step] + c[slot::skipped];
    volatile double* const at = snapshot;
    if (threadIdx.x == 0) at[0] = number;
    __syncthreads();
    __threadfence_system();  // by the threads that store after it
    for (int i = threadIdx.x; i < count; i += blockDim.x) at[1 + i] = c[STATE_BEGIN + i];
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence_system();
    at[1 + count] = number;
}

// One more step for every tensor that has a gradient.
__device__ __forceinline__ void advance_steps(const TensorTable& t) {
    const int64_t* __restrict__ grads = t.ptrs + GRAD * t.n_tensors;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < t.n_tensors; i += blockDim.x) {
        if (grads[i] != 0) step_count(t, i) += 1.0f;
    }
}

// What closes a step, beside its table.
struct Closing {
    Loss loss;         // read where it lies
    double* snapshot;  // [shown_count + 2] for the host; null: it copies the vector itself
};

__device__ __forceinline__ void control_in_block(const TensorTable& t, const Closing& closing) {
    if (t.control[slot::skip] == 0.0) advance_steps(t);
    on_staged_control(
        t.control,
        [&t, &closing](double* c) {
            take(c, closing.loss);
            run_control(c, t.curve);
        },
        [&closing](const double* c) {
            if (closing.snapshot != nullptr) show_host(c, closing.snapshot);
        });
}

// A lane's sum added over the warp in the order of added_in_pairs, in every lane.
__device__ __forceinline__ double over_lanes(double sum) {
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
    return sum;
}

// spike_limit by a warp, in every lane: of 128 values each lane has four, which are under way at once, so
// that it waits for memory once and then for two chains of five shuffles. One thread would read 512 numbers
// and add as many, several microseconds of a step, and ten times that where double is slow.
__device__ __forceinline__ double limit_in_warp(const double* c, const SpikeRing& ring, double sigmas) {
    static_assert(SPIKE_LANES == WARP, "a lane each");
    const int lane = threadIdx.x % WARP;
    const double mean = over_lanes(lane_sum(ring, lane)) / double(ring.count);
    return spike_limit(c, ring, mean, over_lanes(lane_squares(ring, lane, mean)), sigmas);
}

// For what has no larger launch to be the epilogue of, must wait for other ranks after one, or skips spikes:
// that is not in the epilogue of the measurement, whose registers are for the gradients. The limits of spikes
// are known before the step's values, which do not enter them.
__device__ __forceinline__ void clip_in_warp(double* control) {
    double* const rings = spike_rings(control);
    const bool skips = control[slot::spike_window] != 0.0;
    SpikeLimits limits = {NAN, NAN};
    if (skips) {
        limits.loss = limit_in_warp(control, loss_ring(control, rings), loss_sigmas(control));
        limits.norm = limit_in_warp(control, norm_ring(control, rings), control[slot::spike_sigmas]);
    }
    on_staged_control(control, [rings, limits, skips](double* c) {
        run_clip(c);
        if (skips) judge_spikes(c, rings, limits);
    });
}

__global__ void clip_kernel(const __grid_constant__ TensorTable table) { clip_in_warp(table.control); }

struct ControlArgs {
    TensorTable table;
    Closing closing;
};

__global__ void control_kernel(const __grid_constant__ ControlArgs args) {
    control_in_block(args.table, args.closing);
}

struct ObserveArgs {
    double* control;
    Observation seen;
};

__global__ void observe_kernel(const __grid_constant__ ObserveArgs args) {
    if (threadIdx.x == 0) take(args.control, args.seen);
}

}  // namespace cuda
}  // namespace greedylr
