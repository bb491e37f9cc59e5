// The end of a launch, by its last block when all others are done: the scalar side of a step, without a
// launch of its own.
#pragma once

#include "../core/control.h"
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

// Doubles of the control vector that fit on the chip; a longer one (hundreds of parameter groups or losses in
// the window) is used where it is.
constexpr int STAGED = 512;

// Calls `body(control)` in thread 0, then `show(control)` in all. The scalar code is one long chain of
// dependent accesses, so the vector is brought into shared memory first, by all threads, and taken back.
template <typename Body, typename Show>
__device__ __forceinline__ void on_staged_control(double* control, const Body& body, const Show& show) {
    GREEDYLR_SHARED(double, staged, STAGED);
    const int groups = int(control[slot::n_groups]);
    const int ring = control[slot::smooth] != 0.0 ? int(control[slot::window_size]) : 0;
    const int length = block_begin(block::count, groups) + ring;
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

// For what has no larger launch to be the epilogue of, or must wait for other ranks after one.
__global__ void clip_kernel(const __grid_constant__ TensorTable table) {
    on_staged_control(table.control, [](double* c) { run_clip(c); });
}

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
