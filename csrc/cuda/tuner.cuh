// A step with a tuner: what it needs of parameters, gradients and offsets is added up by the warp that has
// just measured the gradient, and its learners take that after the clip. Kernels of their own, as that of the
// update (tuned_update.cuh), so that without a tuner nothing is paid for it.
#pragma once

#include "../core/mechanic.h"
#include "masters.cuh"
#include "measure.cuh"

namespace greedylr {
namespace cuda {

// A parameter of 16 bits alone would not be moved by most of its updates.
HOST_DEVICE constexpr bool is_tunable(DType p) { return p != BF16 && p != F16; }

struct MovedSum {
    double param_squares, grad_moved, param_moved;
};

__device__ __forceinline__ MovedSum added(const MovedSum& a, const MovedSum& b) {
    return {a.param_squares + b.param_squares, a.grad_moved + b.grad_moved, a.param_moved + b.param_moved};
}

__device__ __forceinline__ MovedSum over_warp(MovedSum sum) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        sum = added(sum, {__shfl_xor_sync(ALL_LANES, sum.param_squares, apart),
                          __shfl_xor_sync(ALL_LANES, sum.grad_moved, apart),
                          __shfl_xor_sync(ALL_LANES, sum.param_moved, apart)});
    }
    return sum;
}

// The streams of one span, by address.
struct MovedStreams {
    int64_t param, remainder, grad, offset;
};

// Which lane adds which element does not depend on the addresses.
template <DType P, DType G, int V>
__device__ __forceinline__ MovedSum moved_pack(const MovedStreams& at, int i, bool wide) {
    using T = typename Format<P>::Math;
    constexpr DType O = P == F64 ? F64 : F32;
    Params<P, V> params;
    Pack<G, V> grad;
    Pack<O, V> offset;
    params.high.load(reinterpret_cast<const typename Format<P>::Stored*>(at.param) + i, wide);
    if constexpr (has_master(P)) {
        params.low.load(reinterpret_cast<const typename RemainderOf<P>::Type*>(at.remainder) + i, wide);
    }
    grad.load(reinterpret_cast<const typename Format<G>::Stored*>(at.grad) + i, wide);
    offset.load(reinterpret_cast<const T*>(at.offset) + i, wide);
    MovedSum sum = {};
#pragma unroll
    for (int j = 0; j < V; ++j) {
        const double x = params.get(j), g = grad.get(j), o = offset.get(j);
        sum = added(sum, {x * x, g * o, x * o});
    }
    return sum;
}

template <DType P, DType G>
__device__ __forceinline__ MovedSum moved_span(const TensorTable& t, int64_t tensor, const Span& span) {
    constexpr int SIZE = int(sizeof(typename Format<P>::Math)), V = ACCESS / SIZE;
    const auto begin = [&](Row row, int size) { return address_of(t, row, tensor) + span.begin * size; };
    const MovedStreams at = {begin(PARAM, element_size(P)), begin(REMAINDER, remainder_size(P)),
                             begin(GRAD, element_size(G)), begin(OFFSET, SIZE)};
    const bool wide = on_access(at.param, V * element_size(P)) && on_access(at.grad, V * element_size(G)) &&
                      on_access(at.offset, ACCESS) &&
                      (!has_master(P) || on_access(at.remainder, V * remainder_size(P)));
    const int lane = threadIdx.x % WARP, packs_end = span.count / V * V;
    MovedSum sum = {};
#pragma unroll 2
    for (int i = lane * V; i < packs_end; i += WARP * V) sum = added(sum, moved_pack<P, G, V>(at, i, wide));
    if (packs_end + lane < span.count) {
        sum = added(sum, moved_pack<P, G, 1>(at, packs_end + lane, false));
    }
    return sum;
}

template <DType P>
__device__ __forceinline__ MovedSum moved_span_of(DType grad, const TensorTable& t, int64_t tensor,
                                                  const Span& span) {
    if constexpr (P == F64) return moved_span<F64, F64>(t, tensor, span);
    if constexpr (P != F64) {
        if (grad == F32) return moved_span<P, F32>(t, tensor, span);
        if constexpr (P == F32) {
            if (grad == F16) return moved_span<P, F16>(t, tensor, span);
        }
        return moved_span<P, BF16>(t, tensor, span);
    }
}

template <bool L1>
struct TunedMeasureArgs {
    MeasureArgs<L1> measure;
    MovedSum* moved;          // [min(LOTS, n_chunks)]
    DType params[MIX_COUNT];  // of each launch
};

template <bool L1>
__device__ __forceinline__ MovedSum moved_chunk(const TunedMeasureArgs<L1>& args, int64_t c) {
    const TensorTable& t = args.measure.table;
    const int64_t tensor = t.chunk_tensor[c];
    if (address_of(t, GRAD, tensor) == 0) return {};
    const Span span = span_of(t, tensor, t.chunk_index[c], 0);
    int launch = 0;
    while (c >= args.measure.launches[launch].end) ++launch;
    const DType param = args.params[launch], grad = args.measure.launches[launch].grad;
    MovedSum sum = param == F32        ? moved_span_of<F32>(grad, t, tensor, span)
                   : param == F64      ? moved_span_of<F64>(grad, t, tensor, span)
                   : param == BF16_R16 ? moved_span_of<BF16_R16>(grad, t, tensor, span)
                                       : moved_span_of<BF16_R8>(grad, t, tensor, span);
    const DirectionWeight weight = direction_weight(t, tensor);
    sum.param_squares *= t.norm_weight[tensor];
    sum.grad_moved *= weight.grad;
    sum.param_moved *= weight.param;
    return sum;
}

// The tuner's values fit on the chip: 3 and 5 for each of at most 16 learners.
constexpr int MOST_VALUES = 3 + 5 * 16;

// By all threads of a block, after the clip has been written back.
__device__ __forceinline__ void tuner_in_block(double* control) {
    GREEDYLR_SHARED(double, values, MOST_VALUES);
    __syncthreads();
    double* const at = control + int64_t(control[slot::tuner_begin]);
    const int count = 3 + 5 * int(control[slot::tuner_betas]);
    for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = at[i];
    __syncthreads();
    if (threadIdx.x == 0) run_tuner(control, values);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) at[i] = values[i];
}

// The S of this step for every tensor that has a gradient; then what `control_in_block` does.
__device__ __forceinline__ void tuned_control_in_block(const TensorTable& t, const Closing& closing) {
    if (t.control[slot::skip] == 0.0) {
        const int64_t* grads = t.ptrs + GRAD * t.n_tensors;
        const double scale = t.control[slot::tuner_scale];
        for (int64_t i = threadIdx.x; i < t.n_tensors; i += blockDim.x) {
            if (grads[i] != 0) written_at(t, i) = scale;
        }
    }
    control_in_block(t, closing);
}

__global__ void control_tuned_kernel(const __grid_constant__ ControlArgs args) {
    tuned_control_in_block(args.table, args.closing);
}

// As measure_kernel.
template <bool L1, bool PAIRS>
__global__ void __launch_bounds__(MEASURE_THREADS, MEASURE_RESIDENT / 2)
    measure_tuned_kernel(const __grid_constant__ TunedMeasureArgs<L1> args) {
    const MeasureArgs<L1>& own = args.measure;
    const int64_t n = own.table.n_chunks;
    const int64_t lots = n < LOTS ? n : LOTS;
    const int64_t warp = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    const int64_t warps = int64_t(gridDim.x) * blockDim.x / WARP;
    for (int64_t lot = warp; lot < lots; lot += warps) {
        GradSum<L1> sum = {};
        MovedSum moved = {};
        for (int64_t c = lot; c < n; c += LOTS) {
            if constexpr (PAIRS) {
                sum = added(sum, measure_chunk<PairSums>(own, n - 1 - c));
            } else {
                sum = added(sum, measure_chunk<ShiftedSums>(own, n - 1 - c));
            }
            moved = added(moved, moved_chunk(args, n - 1 - c));
        }
        sum = over_warp(sum);
        moved = over_warp(moved);
        if (threadIdx.x % WARP == 0) {
            own.lots[lot] = sum;
            args.moved[lot] = moved;
        }
    }
    if (!is_last_block(own.arrived)) return;
    const GradSum<L1> total = over_lots(own.lots, lots);
    const MovedSum moved = over_lots(args.moved, lots);
    const bool then_clip = own.then_clip;
    on_staged_control(own.table.control, [total, moved, then_clip](double* c) {
        c[slot::grad_sq_sum] = total.squares;
        if constexpr (L1) c[slot::grad_abs_sum] = total.absolute;
        c[slot::grad_nonfinite] = double(total.nonfinite);
        c[slot::param_sq_sum] = moved.param_squares;
        c[slot::grad_moved_sum] = moved.grad_moved;
        c[slot::param_moved_sum] = moved.param_moved;
        if (then_clip) run_clip(c);
    });
    if (then_clip) tuner_in_block(own.table.control);
}

__global__ void clip_tuned_kernel(const __grid_constant__ TensorTable table) {
    clip_in_warp(table.control);
    tuner_in_block(table.control);
}

}  // namespace cuda
}  // namespace greedylr
