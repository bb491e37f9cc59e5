// The update with a tuner: parameter and offset move together.
#pragma once

#include "tuner.cuh"
#include "update.cuh"

namespace greedylr {
namespace cuda {

// Where the offsets of a task's elements begin, and the scalars of their moves.
template <typename T>
struct Offsets {
    T* at;
    bool wide;
    Moves<T> by;
};

template <DType P, typename T>
__device__ __forceinline__ Offsets<T> offsets_of(const TensorTable& t, int64_t chunk, const Task<T>& task,
                                                 int v) {
    const int64_t tensor = t.chunk_tensor[chunk];
    const int64_t first = (task.at[PARAM] - address_of(t, PARAM, tensor)) / element_size(P);
    const int64_t at = address_of(t, OFFSET, tensor) + first * int64_t(sizeof(T));
    const int group = t.group[tensor];
    const Moves<double> by =
        moves_of(t.control, t.hyper + group * HYPER_COUNT, lr_of(t.control, group), written_at(t, tensor));
    return {reinterpret_cast<T*>(at), on_access(at + task.head * int64_t(sizeof(T)), v * int(sizeof(T))),
            rounded<T>(by)};
}

template <int V, bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void tune_pack(const Task<T>& task, const Offsets<T>& offsets, int i,
                                          unsigned wide, bool wide_offset) {
    constexpr DType O = P == F64 ? F64 : F32;
    Params<P, V> params;
    Pack<G, V> grad;
    Pack<S, V> exp_avg, exp_avg_sq, max_exp_avg_sq;
    Pack<O, V> offset;
    params.load(task, i, wide);
    grad.load(stream<G>(task, GRAD, i), wide & (1u << GRAD));
    exp_avg.load(stream<S>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
    exp_avg_sq.load(stream<S>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
    if (AMSGRAD) max_exp_avg_sq.load(stream<S>(task, MAX_EXP_AVG_SQ, i), wide & (1u << MAX_EXP_AVG_SQ));
    offset.load(offsets.at + i, wide_offset);
    const Coefficients<T> k = fetched_scalars(task);
#pragma unroll
    for (int j = 0; j < V; ++j) {
        T step = T(0), p = params.get(j), o = offset.get(j);
        T m = exp_avg.get(j), v = exp_avg_sq.get(j);
        T vmax = AMSGRAD ? T(max_exp_avg_sq.get(j)) : T(0);
        adamw_element<AMSGRAD, FROM_OLD>(step, T(grad.get(j)), m, v, vmax, k);
        move_element(p, o, step, offsets.by);
        params.set(j, p, P == BF16_R8 ? mix_bits(start_of<(V > 1)>(task.randoms, i + j)) : 0);
        offset.elements[j] = o;
        exp_avg.elements[j] = narrowed<S>(m);
        exp_avg_sq.elements[j] = narrowed<S>(v);
        if (AMSGRAD) max_exp_avg_sq.elements[j] = narrowed<S>(vmax);
    }
    params.store(task, i, wide);
    offset.store(offsets.at + i, wide_offset);
    exp_avg.store(stream<S>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
    exp_avg_sq.store(stream<S>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
    if (AMSGRAD) max_exp_avg_sq.store(stream<S>(task, MAX_EXP_AVG_SQ, i), wide & (1u << MAX_EXP_AVG_SQ));
}

template <bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void tune_chunk(const Task<T>& task, const Offsets<T>& offsets) {
    constexpr int V = Streams<P, G, S>::V;
    const int lane = threadIdx.x % WARP;
    if (task.wide == ALL_WIDE && offsets.wide) {
#pragma unroll 1
        for (int i = task.head + lane * V; i < fetched(task.packs_end); i += WARP * V) {
            tune_pack<V, AMSGRAD, FROM_OLD, P, G, S>(task, offsets, untracked(i), ALL_WIDE, true);
        }
    } else if constexpr (!rounds_at_random(P, S)) {
#pragma unroll 1
        for (int i = task.head + lane * V; i < fetched(task.packs_end); i += WARP * V) {
            tune_pack<V, AMSGRAD, FROM_OLD, P, G, S>(task, offsets, untracked(i), fetched(task.wide), false);
        }
    } else {
#pragma unroll 1
        for (int i = task.head + lane; i < fetched(task.packs_end); i += WARP) {
            tune_pack<1, AMSGRAD, FROM_OLD, P, G, S>(task, offsets, i, 0, false);
        }
    }
    const int singles = fetched(task.head) + fetched(task.count) - fetched(task.packs_end);
#pragma unroll 1
    for (int k = lane; k < singles; k += WARP) {
        const int i = k < task.head ? k : k - task.head + task.packs_end;
        tune_pack<1, AMSGRAD, FROM_OLD, P, G, S>(task, offsets, i, 0, false);
    }
}

// Moments in 8 bits, by all lanes of a warp, four elements each: as update_groups.
template <bool FROM_OLD, DType P, DType G>
__device__ __forceinline__ void tune_groups(const Task<float>& task, const Offsets<float>& offsets, int i,
                                            unsigned wide, bool active) {
    constexpr int V = 4;
    uint32_t start = 0;
    Params<P, V> params = {};
    Pack<G, V> grad = {};
    Pack<F32, V> offset = {};
    Moments<V> moments = {};
    const bool wide_offset = on_access(reinterpret_cast<int64_t>(offsets.at), ACCESS);
    if (active) {
        start = start_of<false>(task.randoms, i);
        params.load(task, i, wide);
        grad.load(stream<G>(task, GRAD, i), wide & (1u << GRAD));
        offset.load(offsets.at + i, wide_offset);
        moments.load(task, i, wide);
    }
    const Coefficients<float> k = fetched_scalars(task);
#pragma unroll
    for (int j = 0; j < V; ++j) {
        float step = 0.0f, p = params.get(j), o = offset.get(j), m, v, vmax = 0.0f;
        moments.get(j, m, v);
        adamw_element<false, FROM_OLD, Approximate>(step, grad.get(j), m, v, vmax, k);
        move_element(p, o, step, offsets.by);
        params.set(j, p, random_bits(uint32_t(j), start));
        offset.elements[j] = o;
        moments.set(j, m, v);
    }
    if (active) {
        params.store(task, i, wide);
        offset.store(offsets.at + i, wide_offset);
    }
    moments.agree();
    __syncwarp();  // all lanes have read the scales that one writes
    if (active) moments.store(task, i, wide, start);
}

template <bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void tune_chunk_from(const Task<T>& task, const Offsets<T>& offsets) {
    if constexpr (S == Q8) {
#pragma unroll 1
        for (int begin = 0; begin < fetched(task.count); begin += WARP * 4) {
            const int i = untracked(begin + int(threadIdx.x % WARP) * 4);
            tune_groups<FROM_OLD, P, G>(task, offsets, i, fetched(task.wide), i < fetched(task.count));
        }
    } else if (task.at[MAX_EXP_AVG_SQ] == 0) {
        tune_chunk<false, FROM_OLD, P, G, S>(task, offsets);
    } else {
        tune_chunk<true, FROM_OLD, P, G, S>(task, offsets);
    }
}

// A warp prepares a task at a time, since each has moves of its own.
template <DType P, DType G, DType S>
__global__ void __launch_bounds__(THREADS, RESIDENT<P>) tune_kernel(const __grid_constant__ UpdateArgs args) {
    using T = typename Format<P>::Math;
    GREEDYLR_SHARED(Task<T>, tasks, THREADS / WARP);
    const TensorTable& t = args.table;
    if (t.control[slot::skip] == 0.0) {
        Task<T>& task = tasks[threadIdx.x / WARP];
        const int lane = threadIdx.x % WARP;
        if (lane == 0) task.group = -1;
        const int warp = int(blockIdx.x * blockDim.x + threadIdx.x) / WARP;
        const int warps = int(gridDim.x * blockDim.x) / WARP;
        for (int c = warp; c < args.count; c += warps) {
            __syncwarp();
            if (lane == 0) prepare<P, G, S>(task, t, args.first + c);
            __syncwarp();
            if (task.count == 0) continue;
            const Offsets<T> offsets = offsets_of<P>(t, args.first + c, task, Streams<P, G, S>::V);
            if (starts_at_old(task.k)) {
                tune_chunk_from<true, P, G, S>(task, offsets);
            } else {
                tune_chunk_from<false, P, G, S>(task, offsets);
            }
        }
    }
    if (args.arrived != nullptr && is_last_block(args.arrived)) tuned_control_in_block(t, args.closing);
}

}  // namespace cuda
}  // namespace greedylr
