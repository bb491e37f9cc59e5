// The random bits of a chunk's elements, which depend on their indices in the whole parameter alone.
#pragma once

#include "../core/eight_bit.h"
#include "access.cuh"

namespace greedylr {
namespace cuda {

HOST_DEVICE constexpr bool rounds_at_random(DType p, DType s) { return p == BF16_R8 || s == Q8; }

// What the elements of a chunk share. Their indices follow that of the first, but for a gap after `left` of
// them and then after each `run`.
struct Randoms {
    uint64_t index;  // of the first
    int64_t gap, number;
    uint32_t left, run;  // cut to more than a chunk has
    float step;          // this one included
    uint32_t seed;
    bool straight;  // without a gap, and the upper halves of the indices are one: the seed is that of all
};

__device__ __forceinline__ Randoms randoms_of(const TensorTable& t, int64_t tensor, int64_t begin, int count,
                                              float steps_taken) {
    constexpr int64_t MANY = INT32_MAX;
    const int64_t run = address_of(t, RUN, tensor), stride = address_of(t, STRIDE, tensor);
    const bool whole = run >= t.numel[tensor];  // spares the division
    const int64_t runs = whole ? 0 : begin / run;
    const int64_t left = (runs + 1) * run - begin;
    Randoms r;
    r.gap = stride - run;
    r.index = uint64_t(address_of(t, FIRST, tensor) + begin + runs * r.gap);
    r.number = address_of(t, NUMBER, tensor);
    r.left = uint32_t(left < MANY ? left : MANY);
    r.run = uint32_t(run < MANY ? run : MANY);
    r.step = steps_taken + 1.0f;
    r.seed = hash_seed(r.index, r.number, r.step);
    r.straight = count <= left && (r.index + uint64_t(count - 1)) >> 32 == r.index >> 32;
    return r;
}

// What `mix_bits` makes random bits of, for element i of the chunk.
template <bool STRAIGHT>
__device__ __forceinline__ uint32_t start_of(const Randoms& r, int i) {
    if (STRAIGHT) return uint32_t(r.index + uint64_t(i)) ^ r.seed;
    const uint32_t left = fetched(r.left);
    const uint32_t gaps = uint32_t(i) < left ? 0 : 1 + (uint32_t(i) - left) / fetched(r.run);
    const uint64_t index = fetched(r.index) + uint64_t(i) + uint64_t(gaps * fetched(r.gap));
    return uint32_t(index) ^ hash_seed(index, fetched(r.number), fetched(r.step));
}

}  // namespace cuda
}  // namespace greedylr
