// The random bits of a chunk's elements, which depend on their indices in the whole parameter alone.
#pragma once

#include "../core/eight_bit.h"
#include "access.cuh"

namespace greedylr {
namespace cuda {

HOST_DEVICE constexpr bool rounds_at_random(DType p, DType s) { return p == BF16_R8 || s == Q8; }

// What the elements of a chunk share.
struct Randoms {
    int64_t tensor, begin, number;  // `begin`: the chunk's first element in the part that lies here
    uint64_t index;                 // of that one in the whole parameter
    float step;                     // this one included
    uint32_t seed;
    bool straight;  // the indices of the others follow it, and share its upper half: the seed is that of all
};

__device__ __forceinline__ Randoms randoms_of(const TensorTable& t, int64_t tensor, int64_t begin, int count,
                                              float steps_taken) {
    const int64_t run = address_of(t, RUN, tensor);
    const bool whole = run >= t.numel[tensor];  // all elements of the part; spares a division
    Randoms r;
    r.tensor = tensor;
    r.begin = begin;
    r.number = address_of(t, NUMBER, tensor);
    r.index = whole ? uint64_t(address_of(t, FIRST, tensor) + begin) : index_of(t, tensor, begin);
    r.step = steps_taken + 1.0f;
    r.seed = hash_seed(r.index, r.number, r.step);
    r.straight = (whole || begin % run + count <= run) && (r.index + count - 1) >> 32 == r.index >> 32;
    return r;
}

// Those of V neighbours, whatever their places.
template <int V>
__device__ __forceinline__ void draw(uint32_t (&random)[V], const Randoms& r, const TensorTable& t, int i) {
    if (r.straight) {
#pragma unroll
        for (int j = 0; j < V; ++j) random[j] = random_bits(r.index + uint64_t(i + j), r.seed);
        return;
    }
    const int64_t run = address_of(t, RUN, r.tensor);
    const int64_t gap = address_of(t, STRIDE, r.tensor) - run;
    uint64_t index = index_of(t, r.tensor, r.begin + i);
    int64_t left = run - (r.begin + i) % run;
#pragma unroll
    for (int j = 0; j < V; ++j) {
        random[j] = random_bits(index, hash_seed(index, r.number, r.step));
        ++index;
        if (--left == 0) {
            index += uint64_t(gap);
            left = run;
        }
    }
}

// Of a pack within one group, what `random_of` takes: no run ends in a group, and index and pack begin at
// multiples of the pack.
__device__ __forceinline__ uint32_t start_of(const Randoms& r, const TensorTable& t, int i) {
    if (r.straight) return uint32_t(r.index + uint64_t(i)) ^ r.seed;
    const uint64_t index = index_of(t, r.tensor, r.begin + i);
    return uint32_t(index) ^ hash_seed(index, r.number, r.step);
}

// The random bits of the j-th of the pack.
__device__ __forceinline__ uint32_t random_of(uint32_t start, int j) { return random_bits(uint32_t(j), start); }

}  // namespace cuda
}  // namespace greedylr
