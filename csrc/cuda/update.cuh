// The update: A1-A6 on every element of one dtype mix, in one launch however many tensors there are.
//
// A warp takes a chunk at a time. All warps are resident at once and take chunks in turns, so that
// neighbouring warps stream neighbouring memory, a tensor of one element costs one turn of one warp, and
// nothing is left over but the last turn.
#pragma once

#include "epilogue.cuh"
#include "groups.cuh"
#include "masters.cuh"
#include "task.cuh"

namespace greedylr {
namespace cuda {

struct UpdateArgs {
    TensorTable table;
    int64_t first;
    int count;          // chunks, fewer than 2^31 - 2^20: more would be more memory than there is
    unsigned* arrived;  // null: not the last launch of the step, which has the control
    Closing closing;    // of the step, if it is
};

// V elements: all loads before the first use, so that as many bytes as possible are under way.
template <int V, bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_pack(const Task<T>& task, int i, unsigned wide) {
    Params<P, V> params;
    Pack<G, V> grad;
    Pack<S, V> exp_avg, exp_avg_sq, max_exp_avg_sq;
    params.load(task, i, wide);
    grad.load(stream<G>(task, GRAD, i), wide & (1u << GRAD));
    exp_avg.load(stream<S>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
    exp_avg_sq.load(stream<S>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
    if (AMSGRAD) max_exp_avg_sq.load(stream<S>(task, MAX_EXP_AVG_SQ, i), wide & (1u << MAX_EXP_AVG_SQ));
    const Coefficients<T> k = fetched_scalars(task);
#pragma unroll
    for (int j = 0; j < V; ++j) {
        T p = params.get(j);
        T m = exp_avg.get(j), v = exp_avg_sq.get(j);
        T vmax = AMSGRAD ? T(max_exp_avg_sq.get(j)) : T(0);
        adamw_element<AMSGRAD, FROM_OLD>(p, T(grad.get(j)), m, v, vmax, k);
        // Where there is more than one, indices follow each other.
        params.set(j, p, P == BF16_R8 ? mix_bits(start_of<(V > 1)>(task.randoms, i + j)) : 0);
        exp_avg.elements[j] = narrowed<S>(m);
        exp_avg_sq.elements[j] = narrowed<S>(v);
        if (AMSGRAD) max_exp_avg_sq.elements[j] = narrowed<S>(vmax);
    }
    params.store(task, i, wide);
    exp_avg.store(stream<S>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
    exp_avg_sq.store(stream<S>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
    if (AMSGRAD) max_exp_avg_sq.store(stream<S>(task, MAX_EXP_AVG_SQ, i), wide & (1u << MAX_EXP_AVG_SQ));
}

// All lanes update packs, and the single elements before and behind them.
template <bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_chunk(const Task<T>& task) {
    constexpr int V = Streams<P, G, S>::V;
    const int lane = threadIdx.x % WARP;
    if (task.wide == ALL_WIDE) {
#pragma unroll 1
        for (int i = task.head + lane * V; i < fetched(task.packs_end); i += WARP * V) {
            update_pack<V, AMSGRAD, FROM_OLD, P, G, S>(task, untracked(i), ALL_WIDE);
        }
    } else if constexpr (!rounds_at_random(P, S)) {
#pragma unroll 1
        for (int i = task.head + lane * V; i < fetched(task.packs_end); i += WARP * V) {
            update_pack<V, AMSGRAD, FROM_OLD, P, G, S>(task, untracked(i), fetched(task.wide));
        }
    }
    const int singles = fetched(task.head) + fetched(task.count) - fetched(task.packs_end);
    // Fewer than 2 V and so one for each lane at most, unless there are no packs.
#pragma unroll 1
    for (int k = lane; k < singles; k += WARP) {
        const int i = k < task.head ? k : k - task.head + task.packs_end;
        update_pack<1, AMSGRAD, FROM_OLD, P, G, S>(task, i, 0);
    }
}

template <bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_chunk_from(const Task<T>& task) {
    if constexpr (S == Q8) {
        update_groups_of<FROM_OLD, P, G>(task);
    } else if (task.at[MAX_EXP_AVG_SQ] == 0) {
        update_chunk<false, FROM_OLD, P, G, S>(task);
    } else {
        update_chunk<true, FROM_OLD, P, G, S>(task);
    }
}

template <DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_chunk_of(const Task<T>& task) {
    if (task.count == 0) return;
    if (starts_at_old(task.k)) {
        update_chunk_from<true, P, G, S>(task);
    } else {
        update_chunk_from<false, P, G, S>(task);
    }
}

constexpr int THREADS = 256;

// Chunks that a warp prepares at a time, a lane each. The addresses and scalars of a chunk are four loads
// that wait for each other, from memory that the elements have pushed out of the caches, and two pow: as long
// as the elements of a small tensor, but no longer for four than for one.
constexpr int BATCH = 4;

// Blocks that are to be resident on a multiprocessor, hence registers per thread (64, or 80 for values of 64
// bits). Its share of bandwidth times latency is 15 to 25 KB on an H100 to B200; a warp has 2 KB under way
// with uniform types, 1.5 KB where 16-bit streams go with wider ones, so 32 or 24 warps have at least 48 KB.
template <DType P>
constexpr int RESIDENT = P == F64 ? 3 : 4;

template <DType P, DType G, DType S>
__global__ void __launch_bounds__(THREADS, RESIDENT<P>)
    update_kernel(const __grid_constant__ UpdateArgs args) {
    GREEDYLR_SHARED(Task<typename Format<P>::Math>, tasks, THREADS / WARP * BATCH);
    const TensorTable& t = args.table;
    if (t.control[slot::skip] == 0.0) {
        auto* batch = tasks + threadIdx.x / WARP * BATCH;
        const int lane = threadIdx.x % WARP;
        if (lane < BATCH) batch[lane].group = -1;
        const int warp = int(blockIdx.x * blockDim.x + threadIdx.x) / WARP;
        const int warps = int(gridDim.x * blockDim.x) / WARP;
        // The number of the chunk is fetched back from the first task: registers are for the elements.
        for (int c = warp; c < args.count; c = fetched(batch->chunk) + BATCH * warps) {
            __syncwarp();
            if (lane < BATCH) {
                const int own = c + lane * warps;
                batch[lane].chunk = own;
                batch[lane].count = 0;
                if (own < args.count) prepare<P, G, S>(batch[lane], t, args.first + own);
            }
            __syncwarp();
#pragma unroll 1
            for (auto* task = batch; task != batch + BATCH; ++task) update_chunk_of<P, G, S>(*task);
        }
    }
    if (args.arrived != nullptr && is_last_block(args.arrived)) control_in_block(t, args.closing);
}

}  // namespace cuda
}  // namespace greedylr
