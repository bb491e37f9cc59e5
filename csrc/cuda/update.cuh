// The update: A1-A6 on every element of one dtype mix, in one launch however many tensors there are.
//
// A warp takes a chunk at a time. All warps are resident at once and take chunks in turns, so that
// neighbouring warps stream neighbouring memory, a tensor of one element costs one turn of one warp, and
// nothing is left over but the last turn.
#pragma once

#include "../core/adamw.h"
#include "../core/launch.h"
#include "epilogue.cuh"

namespace greedylr {
namespace cuda {

struct UpdateArgs {
    TensorTable table;
    int64_t first;
    int count;          // chunks, fewer than 2^31 - 2^20: more would be more memory than there is
    unsigned* arrived;  // null: not the last launch of the step, which has the control
    Closing closing;    // of the step, if it is
};

HOST_DEVICE constexpr int widest(DType p, DType g, DType s) {
    const int larger = element_size(p) > element_size(g) ? element_size(p) : element_size(g);
    return larger > element_size(s) ? larger : element_size(s);
}

// The work of a warp, in shared memory: addresses and scalars are fetched from there at each turn, which
// costs little beside memory and leaves registers to the elements under way.
template <typename T>
struct Task {
    int64_t at[MAX_EXP_AVG_SQ + 1];  // by Row: address of the chunk's first element; 0: no such stream
    int count, head, packs_end;      // elements; packs are those from head to packs_end
    unsigned wide;                   // bit Row: that stream's packs lie on multiples of their size
    int group;                       // whose scalars these are, -1: nobody's
    float steps_taken;               // for tensors that have taken as many steps
    Coefficients<T> k;
};

constexpr unsigned ALL_WIDE = (2u << MAX_EXP_AVG_SQ) - 1;

// The storage of one dtype mix, stream by stream.
template <DType P, DType G, DType S>
struct Streams {
    // Elements per lane and turn: one access of the widest stream, and one of every other. With more than one
    // of a stream, neighbouring lanes would leave gaps in each, which costs a sector for every half that is
    // stored.
    static constexpr int V = ACCESS / widest(P, G, S);

    __device__ __forceinline__ static int size(int row) {
        return row == PARAM ? element_size(P) : row == GRAD ? element_size(G) : element_size(S);
    }
};

// With how many elements before the first pack the most streams lie on multiples of a pack, and which do.
template <DType P, DType G, DType S, typename T>
__device__ __forceinline__ void align(Task<T>& task) {
    int most = -1;
    constexpr int V = Streams<P, G, S>::V;
    for (int head = 0; head < V && most <= MAX_EXP_AVG_SQ; ++head) {
        unsigned wide = 0;
        int streams = 0;
        for (int row = PARAM; row <= MAX_EXP_AVG_SQ; ++row) {
            const int size = Streams<P, G, S>::size(row);
            const bool aligned = task.at[row] == 0 || on_access(task.at[row] + head * size, V * size);
            wide |= unsigned(aligned) << row;
            streams += aligned;
        }
        if (streams > most) {
            most = streams;
            task.head = head;
            task.wide = wide;
        }
    }
}

// One lane prepares the task of chunk `c`. Its scalars are kept from one chunk to the next, since neighbours
// mostly share group and step count, and the two pow of the bias corrections cost more than many elements.
template <DType P, DType G, DType S, typename T>
__device__ __forceinline__ void prepare(Task<T>& task, const TensorTable& t, int64_t c) {
    const int64_t tensor = t.chunk_tensor[c];
    const int64_t index = t.chunk_index[c];
    for (int row = PARAM; row <= MAX_EXP_AVG_SQ; ++row) task.at[row] = address_of(t, Row(row), tensor);
    task.count = 0;
    if (task.at[GRAD] == 0) return;
    align<P, G, S>(task);
    const Span span = span_of(t, tensor, index, task.head);
    task.count = span.count;
    if (index != 0) task.head = 0;
    if (task.head > span.count) task.head = span.count;
    task.packs_end = task.head + (span.count - task.head) / Streams<P, G, S>::V * Streams<P, G, S>::V;
    for (int row = PARAM; row <= MAX_EXP_AVG_SQ; ++row) {
        if (task.at[row] != 0) task.at[row] += span.begin * Streams<P, G, S>::size(row);
    }
    const int group = t.group[tensor];
    const float steps_taken = step_count(t, tensor);
    if (group == task.group && steps_taken == task.steps_taken) return;
    task.group = group;
    task.steps_taken = steps_taken;
    task.k = rounded<T>(coefficients(t.hyper + group * HYPER_COUNT, lr_of(t.control, group),
                                     t.control[slot::grad_multiplier], steps_taken));
}

// Fetched anew at each use, whatever the compiler thinks of it.
template <typename T>
__device__ __forceinline__ T fetched(const T& in_task) {
    return *static_cast<const volatile T*>(&in_task);
}

template <typename T>
__device__ __forceinline__ Coefficients<T> fetched_scalars(const Task<T>& task) {
    const auto& k = task.k;
    return {fetched(k.grad_multiplier),
            fetched(k.decay),
            fetched(k.beta1),
            fetched(k.weight1),
            fetched(k.beta2),
            fetched(k.weight2),
            fetched(k.step_size),
            fetched(k.inv_bias_correction2_sqrt),
            fetched(k.eps)};
}

template <DType D, typename T>
__device__ __forceinline__ typename Format<D>::Stored* stream(const Task<T>& task, Row row, int i) {
    return reinterpret_cast<typename Format<D>::Stored*>(fetched(task.at[row])) + i;
}

template <bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_one(const Task<T>& task, int i) {
    T p = widened<P>(load_global(stream<P>(task, PARAM, i)));
    const T g = widened<G>(load_global(stream<G>(task, GRAD, i)));
    T m = widened<S>(load_global(stream<S>(task, EXP_AVG, i)));
    T v = widened<S>(load_global(stream<S>(task, EXP_AVG_SQ, i)));
    T vmax = AMSGRAD ? T(widened<S>(load_global(stream<S>(task, MAX_EXP_AVG_SQ, i)))) : T(0);
    adamw_element<AMSGRAD, FROM_OLD>(p, g, m, v, vmax, fetched_scalars(task));
    store_global(stream<P>(task, PARAM, i), narrowed<P>(p));
    store_global(stream<S>(task, EXP_AVG, i), narrowed<S>(m));
    store_global(stream<S>(task, EXP_AVG_SQ, i), narrowed<S>(v));
    if (AMSGRAD) store_global(stream<S>(task, MAX_EXP_AVG_SQ, i), narrowed<S>(vmax));
}

// V elements: all loads before the first use, so that as many bytes as possible are under way.
template <bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_pack(const Task<T>& task, int i, unsigned wide) {
    constexpr int V = Streams<P, G, S>::V;
    Pack<P, V> param;
    Pack<G, V> grad;
    Pack<S, V> exp_avg, exp_avg_sq, max_exp_avg_sq;
    param.load(stream<P>(task, PARAM, i), wide & (1u << PARAM));
    grad.load(stream<G>(task, GRAD, i), wide & (1u << GRAD));
    exp_avg.load(stream<S>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
    exp_avg_sq.load(stream<S>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
    if (AMSGRAD) max_exp_avg_sq.load(stream<S>(task, MAX_EXP_AVG_SQ, i), wide & (1u << MAX_EXP_AVG_SQ));
    const Coefficients<T> k = fetched_scalars(task);
#pragma unroll
    for (int j = 0; j < V; ++j) {
        T p = param.get(j);
        T m = exp_avg.get(j), v = exp_avg_sq.get(j);
        T vmax = AMSGRAD ? T(max_exp_avg_sq.get(j)) : T(0);
        adamw_element<AMSGRAD, FROM_OLD>(p, T(grad.get(j)), m, v, vmax, k);
        param.elements[j] = narrowed<P>(p);
        exp_avg.elements[j] = narrowed<S>(m);
        exp_avg_sq.elements[j] = narrowed<S>(v);
        if (AMSGRAD) max_exp_avg_sq.elements[j] = narrowed<S>(vmax);
    }
    param.store(stream<P>(task, PARAM, i), wide & (1u << PARAM));
    exp_avg.store(stream<S>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
    exp_avg_sq.store(stream<S>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
    if (AMSGRAD) max_exp_avg_sq.store(stream<S>(task, MAX_EXP_AVG_SQ, i), wide & (1u << MAX_EXP_AVG_SQ));
}

// All lanes update a few single elements, the packs, and the elements that are left.
template <bool AMSGRAD, bool FROM_OLD, DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_chunk(const Task<T>& task) {
    constexpr int V = Streams<P, G, S>::V;
    const int lane = threadIdx.x % WARP;
    if (task.wide == ALL_WIDE) {
#pragma unroll 1
        for (int i = task.head + lane * V; i < fetched(task.packs_end); i += WARP * V) {
            update_pack<AMSGRAD, FROM_OLD, P, G, S>(task, i, ALL_WIDE);
        }
    } else {
#pragma unroll 1
        for (int i = task.head + lane * V; i < fetched(task.packs_end); i += WARP * V) {
            update_pack<AMSGRAD, FROM_OLD, P, G, S>(task, i, fetched(task.wide));
        }
    }
    // Fewer than 2 V elements, one each.
    const int single = lane < task.head ? lane : lane - task.head + task.packs_end;
    if (single < task.count) update_one<AMSGRAD, FROM_OLD, P, G, S>(task, single);
}

template <DType P, DType G, DType S, typename T>
__device__ __forceinline__ void update_chunk_of(const Task<T>& task) {
    if (task.count == 0) return;
    const bool from_old = starts_at_old(task.k);
    if (task.at[MAX_EXP_AVG_SQ] == 0) {
        if (from_old) {
            update_chunk<false, true, P, G, S>(task);
        } else {
            update_chunk<false, false, P, G, S>(task);
        }
    } else if (from_old) {
        update_chunk<true, true, P, G, S>(task);
    } else {
        update_chunk<true, false, P, G, S>(task);
    }
}

constexpr int THREADS = 256;

// Blocks that are to be resident on a multiprocessor, hence registers per thread (64, or 80 for values of 64
// bits). Its share of bandwidth times latency is 15 to 25 KB on an H100 to B200; a warp has 2 KB under way
// with uniform types, 1.5 KB where 16-bit streams go with wider ones, so 32 or 24 warps have at least 48 KB.
template <DType P>
constexpr int RESIDENT = P == F64 ? 3 : 4;

template <DType P, DType G, DType S>
__global__ void __launch_bounds__(THREADS, RESIDENT<P>)
    update_kernel(const __grid_constant__ UpdateArgs args) {
    GREEDYLR_SHARED(Task<typename Format<P>::Math>, tasks, THREADS / WARP);
    const TensorTable& t = args.table;
    if (t.control[slot::skip] == 0.0) {
        auto& task = tasks[threadIdx.x / WARP];
        const bool first_lane = threadIdx.x % WARP == 0;
        if (first_lane) task.group = -1;
        const int warp = int(blockIdx.x * blockDim.x + threadIdx.x) / WARP;
        for (int c = warp; c < args.count; c += int(gridDim.x * blockDim.x) / WARP) {
            if (first_lane) prepare<P, G, S>(task, t, args.first + c);
            __syncwarp();
            update_chunk_of<P, G, S>(task);
            __syncwarp();
        }
    }
    if (args.arrived != nullptr && is_last_block(args.arrived)) control_in_block(t, args.closing);
}

}  // namespace cuda
}  // namespace greedylr
