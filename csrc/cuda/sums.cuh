// How a lane adds up a gradient's squares, and with L1 its absolute values, as if all were double: three ways
// to the same sum. A multiprocessor converts 16 numbers to double in a clock, or 2, and reads more than that
// from memory, or nearly; so two ways do without, and what they cannot add, the third adds again.
#pragma once

#include <float.h>
#include <math.h>

#include "access.cuh"

namespace greedylr {
namespace cuda {

// L1: with the absolute values. A kernel of its own, so that without them nothing is paid for them.
template <bool L1>
struct GradSum {
    double squares;
    int nonfinite;  // 0: every element is finite
};
template <>
struct GradSum<true> {
    double squares;
    int nonfinite;
    double absolute;
};

template <bool L1>
__device__ __forceinline__ GradSum<L1> grad_sum(double squares, double absolute, int nonfinite) {
    GradSum<L1> sum;
    sum.squares = squares;
    sum.nonfinite = nonfinite;
    if constexpr (L1) sum.absolute = absolute;
    return sum;
}

// Whatever it is. Squares of a double can overflow, so each element is looked at; those of narrower types
// cannot, so their sum is finite if and only if all of them are.
template <DType G, bool L1>
struct PlainSums {
    using Math = typename Format<G>::Math;
    double squares = 0.0, absolute = 0.0;
    int nonfinite = 0;

    template <int V>
    __device__ __forceinline__ void add(const Math (&elements)[V]) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const double g = elements[j];
            squares = fma(g, g, squares);  // of narrower types the product is exact
            if (L1) absolute += fabs(g);
            if (G == F64) nonfinite |= !is_finite(g);
        }
    }
    __device__ __forceinline__ bool hold() const { return true; }
    __device__ __forceinline__ GradSum<L1> total() const {
        return grad_sum<L1>(squares, absolute, G == F64 ? nonfinite : !is_finite(squares));
    }
};

// |x| as a double, by its bits: with three more bits of exponent in front they are those of |x| * 2^-896, of
// a subnormal x too, and the product is exact. Infinity and NaN become numbers from 2^128 on, which no other
// x does.
template <DType G>
__device__ __forceinline__ double magnitude(float x) {
    const uint32_t high = bits_of(x) >> 3 & 0x0fffffffu;
    const uint32_t low = sizeof(typename Format<G>::Stored) == 2 ? 0 : bits_of(x) << 29;
    return double_of(uint64_t(high) << 32 | low) * 0x1p896;
}

// For GPUs that are fast at double: the bits of PlainSums.
template <DType G, bool L1>
struct ShiftedSums {
    using Math = typename Format<G>::Math;
    double squares = 0.0, absolute = 0.0;

    template <int V>
    __device__ __forceinline__ void add(const Math (&elements)[V]) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const double g = magnitude<G>(elements[j]);
            squares = fma(g, g, squares);
            if (L1) absolute += g;
        }
    }
    // Then no square was 2^256 or more, as one of infinity or NaN is.
    __device__ __forceinline__ bool hold() const { return squares < 0x1p256; }
    __device__ __forceinline__ GradSum<L1> total() const { return grad_sum<L1>(squares, absolute, 0); }
};

// A sum of numbers that are not negative, as the sum of two floats: `low` is what additions to `high` rounded
// off.
struct Pair {
    float high = 0.0f, low = 0.0f;

    // Adds V numbers; plus(x, j) is x plus number j, rounded once. They go on top of twice their rough sum,
    // which none of them exceeds: so each addition has its larger number first, and what it rounds off is
    // exact (Dekker 1971, Fast2Sum) without asking which one that is. Their sum is the difference to where
    // they began, which is exact since it is less than half of the sum. docs/numerics.md has the bound of the
    // error.
    template <int V, typename Plus>
    __device__ __forceinline__ void add(const Plus& plus) {
        float rough = 0.0f;
#pragma unroll
        for (int j = 0; j < V; ++j) rough = plus(rough, j);
        const float begin = rough + rough;
        float sum = begin, rounded_off = 0.0f;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const float next = plus(sum, j);
            rounded_off += plus(sum - next, j);
            sum = next;
        }
        join(sum - begin, rounded_off);
    }
    __device__ __forceinline__ double value() const { return double(high) + double(low); }

  private:
    __device__ __forceinline__ void join(float other, float other_low) {
        const float sum = high + other;
        low += (fminf(high, other) - (sum - fmaxf(high, other))) + other_low;
        high = sum;
    }
};

// For GPUs that are slow at double: pairs of floats.
template <DType G, bool L1>
struct PairSums {
    Pair squares, absolute;
    uint32_t bits = 0;  // of all elements

    template <int V>
    __device__ __forceinline__ void add(const float (&g)[V]) {
#pragma unroll
        for (int j = 0; j < V; ++j) bits |= bits_of(g[j]);
        squares.add<V>([&g](float x, int j) { return fmaf(g[j], g[j], x); });
        if (L1) absolute.add<V>([&g](float x, int j) { return x + fabsf(g[j]); });
    }
    // No overflow, in which an infinity or NaN ends, too; and no underflow, which loses less than 2^-147 of
    // an element: 2^-57 of such a sum each.
    __device__ __forceinline__ bool hold() const {
        return (squares.high >= 0x1p-90f && squares.high <= FLT_MAX) || (bits & 0x7fffffffu) == 0;
    }
    __device__ __forceinline__ GradSum<L1> total() const {
        return grad_sum<L1>(squares.value(), absolute.value(), 0);
    }
};

}  // namespace cuda
}  // namespace greedylr
