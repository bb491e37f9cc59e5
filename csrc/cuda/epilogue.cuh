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
    if (threadIdx.x == 0) {
        __threadfence();
        rank[0] = atomicAdd(arrived, 1u);
        __threadfence();
    }
    __syncthreads();
    if (rank[0] != gridDim.x - 1) return false;
    if (threadIdx.x == 0) *arrived = 0;
    return true;
}

// Doubles of the control vector that fit on the chip; a longer one (hundreds of parameter groups or losses in
// the window) is used where it is.
constexpr int STAGED = 512;

// Calls `body(control)` in thread 0. The scalar code is one long chain of dependent accesses, so the vector
// is brought into shared memory first, by all threads, and taken back.
template <typename Body>
__device__ __forceinline__ void on_staged_control(double* control, const Body& body) {
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
}

// One more step for every tensor that has a gradient.
__device__ __forceinline__ void advance_steps(const TensorTable& t) {
    const int64_t* __restrict__ grads = t.ptrs + GRAD * t.n_tensors;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < t.n_tensors; i += blockDim.x) {
        if (grads[i] != 0) step_count(t, i) += 1.0f;
    }
}

// Closes the step, whose loss is read where it lies.
__device__ __forceinline__ void control_in_block(const TensorTable& t, const Loss& loss) {
    if (t.control[slot::skip] == 0.0) advance_steps(t);
    const double* curve = t.curve;
    on_staged_control(t.control, [curve, loss](double* c) {
        take(c, loss);
        run_control(c, curve);
    });
}

// For what has no larger launch to be the epilogue of, or must wait for other ranks after one.
__global__ void clip_kernel(const __grid_constant__ TensorTable table) {
    on_staged_control(table.control, [](double* c) { run_clip(c); });
}

struct ControlArgs {
    TensorTable table;
    Loss loss;
};

__global__ void control_kernel(const __grid_constant__ ControlArgs args) {
    control_in_block(args.table, args.loss);
}

}  // namespace cuda
}  // namespace greedylr
