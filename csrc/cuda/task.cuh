// A chunk as the work of a warp: where its elements lie, how wide each stream may be accessed, and the
// scalars that they share.
#pragma once

#include "../core/adamw.h"
#include "../core/launch.h"
#include "access.cuh"
#include "randoms.cuh"

namespace greedylr {
namespace cuda {

HOST_DEVICE constexpr int widest(DType p, DType g, DType s) {
    const int larger = element_size(p) > element_size(g) ? element_size(p) : element_size(g);
    return larger > element_size(s) ? larger : element_size(s);
}

// The work of a warp, in shared memory: addresses and scalars are fetched from there at each turn, which
// costs little beside memory and leaves registers to the elements under way.
template <typename T>
struct Task {
    int64_t at[EXP_AVG_SQ_SCALE + 1];  // by Row: address of the chunk's first element; 0: no such stream
    int chunk;                         // of the launch
    int count, head, packs_end;        // elements; packs are those from head to packs_end
    unsigned wide;                     // bit Row: that stream's packs lie on multiples of their size
    int group;                         // whose scalars these are, -1: nobody's
    float steps_taken;                 // for tensors that have taken as many steps
    Coefficients<T> k;
    Randoms randoms;  // only where something is rounded by them
};

constexpr unsigned ALL_WIDE = (2u << REMAINDER) - 1;

// The storage of one dtype mix, stream by stream.
template <DType P, DType G, DType S>
struct Streams {
    // Elements per lane and turn: one access of the widest stream, and one of every other. With more than one
    // of a stream, neighbouring lanes would leave gaps in each, which costs a sector for every half that is
    // stored.
    static constexpr int V = ACCESS / widest(P, G, S);
    // Elements before the first pack, fewer than this: none where packs must not cross groups.
    static constexpr int HEADS = S == Q8 ? 1 : V;
    static constexpr int LAST = has_master(P) ? REMAINDER : MAX_EXP_AVG_SQ;  // row of a stream

    __device__ __forceinline__ static int size(int row) {
        return row == PARAM       ? element_size(P)
               : row == GRAD      ? element_size(G)
               : row == REMAINDER ? remainder_size(P)
                                  : element_size(S);
    }
};

// With how many elements before the first pack the most streams lie on multiples of a pack, and which do.
template <DType P, DType G, DType S, typename T>
__device__ __forceinline__ void align(Task<T>& task) {
    int most = -1;
    constexpr int V = Streams<P, G, S>::V, LAST = Streams<P, G, S>::LAST;
    for (int head = 0; head < Streams<P, G, S>::HEADS && most <= LAST; ++head) {
        unsigned wide = ALL_WIDE >> (LAST + 1) << (LAST + 1);
        int streams = 0;
        for (int row = PARAM; row <= LAST; ++row) {
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
    constexpr int LAST = Streams<P, G, S>::LAST;
    for (int row = PARAM; row <= LAST; ++row) task.at[row] = address_of(t, Row(row), tensor);
    task.count = 0;
    if (task.at[GRAD] == 0) return;
    align<P, G, S>(task);
    const Span span = span_of(t, tensor, index, task.head);
    task.count = span.count;
    if (index != 0) task.head = 0;
    if (task.head > span.count) task.head = span.count;
    task.packs_end = task.head + (span.count - task.head) / Streams<P, G, S>::V * Streams<P, G, S>::V;
    for (int row = PARAM; row <= LAST; ++row) {
        if (task.at[row] != 0) task.at[row] += span.begin * Streams<P, G, S>::size(row);
    }
    const int group = t.group[tensor];
    const float steps_taken = step_count(t, tensor);
    if constexpr (rounds_at_random(P, S)) {
        task.randoms = randoms_of(t, tensor, span.begin, span.count, steps_taken);
        if (task.wide != ALL_WIDE || !task.randoms.straight) task.packs_end = task.head;
    }
    if constexpr (S == Q8) {
        constexpr int TURN = WARP * Streams<P, G, S>::V;  // elements of a warp
        task.packs_end = task.packs_end / TURN * TURN;
        for (int row = EXP_AVG_SCALE; row <= EXP_AVG_SQ_SCALE; ++row)
            task.at[row] = address_of(t, Row(row), tensor) + span.begin / GROUP * int64_t(sizeof(float));
    }
    if (group == task.group && steps_taken == task.steps_taken) return;
    task.group = group;
    task.steps_taken = steps_taken;
    task.k = rounded<T>(coefficients(t.hyper + group * HYPER_COUNT, lr_of(t.control, group),
                                     t.control[slot::grad_multiplier], steps_taken));
    // So that no denominator is subnormal, which an approximate quotient takes for 0.
    if (S == Q8 && task.k.eps > 0 && task.k.eps < T(0x1p-126)) task.k.eps = T(0x1p-126);
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

template <typename Stored, typename T>
__device__ __forceinline__ Stored* stream_of(const Task<T>& task, Row row, int i) {
    return reinterpret_cast<Stored*>(fetched(task.at[row])) + i;
}

template <DType D, typename T>
__device__ __forceinline__ typename Format<D>::Stored* stream(const Task<T>& task, Row row, int i) {
    return stream_of<typename Format<D>::Stored>(task, row, i);
}

}  // namespace cuda
}  // namespace greedylr
