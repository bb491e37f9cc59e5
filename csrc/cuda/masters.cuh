// Parameters in registers as the arithmetic takes them: as they are stored, or joined with the remainder of
// their float32 masters.
#pragma once

#include "../core/master.h"
#include "task.cuh"

namespace greedylr {
namespace cuda {

template <DType P>
struct RemainderOf {
    using Type = int8_t;
};
template <>
struct RemainderOf<BF16_R16> {
    using Type = int16_t;
};

// V neighbours. Their remainders are a stream of their own.
template <DType P, int V>
struct Params {
    using Math = typename Format<P>::Math;
    using Remainder = typename RemainderOf<P>::Type;
    Pack<P, V> high;
    Words<Remainder, V> low;  // only with a master

    __device__ __forceinline__ void load(const Task<Math>& task, int i, unsigned wide) {
        high.load(stream<P>(task, PARAM, i), wide & (1u << PARAM));
        if constexpr (has_master(P)) low.load(remainders(task, i), wide & (1u << REMAINDER));
    }

    __device__ __forceinline__ Math get(int j) const {
        if constexpr (has_master(P)) {
            const int32_t rest = low.elements[j];
            return joined_master(bits_of(high.get(j)), P == BF16_R8 ? rest * 256 : rest);
        } else {
            return high.get(j);
        }
    }

    // `random`: bits of the element's own, for a master that is rounded.
    __device__ __forceinline__ void set(int j, Math value, uint32_t random) {
        if constexpr (has_master(P)) {
            const uint32_t bits =
                P == BF16_R8 ? master_bits_24(value, bits_for_master(random)) : master_bits(value);
            high.elements[j] = high_half(bits);
            low.elements[j] = Remainder(P == BF16_R8 ? bits >> 8 : bits);
        } else {
            high.elements[j] = narrowed<P>(value);
        }
    }

    __device__ __forceinline__ void store(const Task<Math>& task, int i, unsigned wide) const {
        high.store(stream<P>(task, PARAM, i), wide & (1u << PARAM));
        if constexpr (has_master(P)) low.store(remainders(task, i), wide & (1u << REMAINDER));
    }

  private:
    __device__ __forceinline__ static Remainder* remainders(const Task<Math>& task, int i) {
        return stream_of<Remainder>(task, REMAINDER, i);
    }
};

}  // namespace cuda
}  // namespace greedylr
