// How the loops of one instruction set see arrays whose elements are narrower than the arithmetic.
#pragma once

#include "../core/adamw.h"
#include "../core/common.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace greedylr {
inline namespace GREEDYLR_ISA {
namespace {

// Narrow formats pass through buffers of this many elements, which stay in the first-level cache. One loop
// that mixes 16-bit and 32-bit elements defeats the vectoriser; three uniform ones do not.
constexpr int64_t BLOCK = 128;

template <DType D>
void widen(const typename Format<D>::Stored* __restrict from, typename Format<D>::Math* __restrict to,
           int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = Format<D>::load(from[i]);
}

template <DType D>
void narrow(const typename Format<D>::Math* __restrict from, typename Format<D>::Stored* __restrict to,
            int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = Format<D>::store(from[i]);
}

#ifdef __F16C__
// The processor's own conversions give the same bits as those of common.h, NaN included, in a tenth of the
// time. Of the 512-bit ones, GCC 12 warns that they start from an undefined register unless they are masked.
#ifdef __AVX512F__
constexpr __mmask16 ALL = 0xffff;
#endif
template <>
inline void widen<F16>(const uint16_t* __restrict from, float* __restrict to, int64_t n) {
    int64_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) {
        const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
        _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(ALL, h));
    }
#endif
    for (; i + 8 <= n; i += 8) {
        const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(h));
    }
    for (; i < n; ++i) to[i] = f16_to_float(from[i]);
}

template <>
inline void narrow<F16>(const float* __restrict from, uint16_t* __restrict to, int64_t n) {
    int64_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) {
        const __m512 x = _mm512_loadu_ps(from + i);
        const __m256i h = _mm512_maskz_cvtps_ph(ALL, x, _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), h);
    }
#endif
    for (; i + 8 <= n; i += 8) {
        const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), h);
    }
    for (; i < n; ++i) to[i] = float_to_f16(from[i]);
}
#endif

// Asks for a block to be brought into the second-level cache. While the division of one block is waited for,
// few reads of the next can begin, and the processor's own fetching stops at the end of each page. Measured
// on Zen 4, against none: 2 to 8 % faster in all mixes of the general loop, alone and with both cores at the
// memory's limit. Into the first level, or four blocks ahead, it is 10 to 20 % slower; in the loop over pairs
// of bf16 the next block costs 2 to 34 %, more the longer it is.
//
// Inlined by force: GCC may take a function that only fetches for one without effect, and leave its calls
// out.
template <typename T>
__attribute__((always_inline)) inline void fetch_block(const T* array) {
    const char* const bytes = reinterpret_cast<const char*>(array);
    for (int64_t i = 0; i < BLOCK * int64_t(sizeof(T)); i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// A view of one array, block by block, in the type of the arithmetic: the array itself where that is how it
// is stored, a converted copy otherwise.
template <DType D, typename T, bool DIRECT = sizeof(typename Format<D>::Stored) == sizeof(T)>
class Staged {
  public:
    explicit Staged(void* array) : array_(static_cast<T*>(array)) {}
    void fetch(int64_t begin) const { fetch_block(array_ + begin); }
    T* open(int64_t begin, int64_t) { return array_ + begin; }
    void store(int64_t, int64_t) {}

  private:
    T* const array_;
};

template <DType D, typename T>
class Staged<D, T, false> {
    using Stored = typename Format<D>::Stored;

  public:
    explicit Staged(void* array) : array_(static_cast<Stored*>(array)) {}

    void fetch(int64_t begin) const { fetch_block(array_ + begin); }
    // At most BLOCK elements.
    T* open(int64_t begin, int64_t n) {
        widen<D>(array_ + begin, buffer_, n);
        return buffer_;
    }
    void store(int64_t begin, int64_t n) { narrow<D>(buffer_, array_ + begin, n); }

  private:
    Stored* const array_;
    alignas(64) T buffer_[BLOCK];
};

// The BLOCK of the loop over pairs, which has fewer buffers.
constexpr int64_t PAIRS = 512;

// Two neighbouring bf16 as one word, aligned as they are. Which is first in memory does not matter: both are
// treated alike and put back in their places.
typedef uint32_t Pair __attribute__((aligned(2), may_alias));

inline float first_of(Pair w) { return float_of(w << 16); }
inline float second_of(Pair w) { return float_of(w & 0xffff0000u); }

// The rounding of float_to_bf16 without its care for NaN. It turns a NaN into something else only by carrying
// out of the mantissa, so not if the low half of the NaN is zero. A NaN has that half from the operand that
// it comes from, or from the processor, which makes 0x7fc00000 or its negative.
inline uint32_t rounded_bits(float x) { return bits_of(x) + 0x7fffu + ((bits_of(x) >> 16) & 1u); }

inline uint32_t joined(float first, float second) {
    return rounded_bits(first) >> 16 | (rounded_bits(second) & 0xffff0000u);
}

// Returns whether every NaN of an update with bf16 operands gets through `joined`: a NaN from an operand
// does, since bf16 is the upper half of a float; the scalars may hold a NaN of any kind.
inline bool keeps_nan(const Coefficients<float>& k) {
    const float sum = k.grad_multiplier + k.decay + k.weight1 + k.weight2 + k.step_size +
                      k.inv_bias_correction2_sqrt + k.eps;
    return sum == sum;
}

// Above these bits, shifted left by one to lose the sign, lie the NaN.
constexpr uint32_t INFINITY_SHIFTED = 0xff000000u;

// Every NaN the one that float_to_bf16 gives: which operand it came from is the compiler's choice.
inline void one_nan(Pair* array, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        array[i] = uint32_t(float_to_bf16(first_of(array[i]))) | uint32_t(float_to_bf16(second_of(array[i])))
                                                                     << 16;
    }
}

}  // namespace
}  // namespace GREEDYLR_ISA
}  // namespace greedylr
