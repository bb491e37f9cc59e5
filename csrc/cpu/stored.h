// How the loops of one instruction set see state that is stored in fewer bits than it is computed in: moments
// in 8 bits and the masters of bfloat16 parameters.
#pragma once

#include "../core/eight_bit.h"
#include "../core/master.h"
#include "loops.h"
#include "staging.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {
namespace {

static_assert(BLOCK % GROUP == 0, "blocks are whole groups");

// Random bits of a block's elements, where they are needed: then tensors are made of whole groups, each of
// which lies in one piece in the whole parameter.
template <bool NEEDED>
class Randoms {
  public:
    explicit Randoms(const Range& range) : place_(range.place) {}

    void open(int64_t begin, int64_t n) {
        if constexpr (!NEEDED) return;
        for (int64_t i = 0; i < n; i += GROUP) {
            const uint64_t index = place_.index_of(begin + i);
            const uint32_t seed = hash_seed(index, place_.number, place_.step);
            for (int64_t j = 0; j < GROUP; ++j) bits_[i + j] = random_bits(index + uint64_t(j), seed);
        }
    }
    const uint32_t* bits() const { return bits_; }

  private:
    const Place place_;
    alignas(64) uint32_t bits_[NEEDED ? BLOCK : 1];
};

// The parameter, or its master.
template <DType P, typename T, bool MASTER = has_master(P)>
class Parameter : public Staged<P, T> {
  public:
    explicit Parameter(const Range& range) : Staged<P, T>(range.param) {}
    void store(int64_t begin, int64_t n, const uint32_t*) { Staged<P, T>::store(begin, n); }
};

template <DType P, typename T>
class Parameter<P, T, true> {
    using Low = std::conditional_t<P == BF16_R16, int16_t, int8_t>;
    static constexpr int SHIFT = P == BF16_R16 ? 0 : 8;

  public:
    explicit Parameter(const Range& range)
        : high_(static_cast<uint16_t*>(range.param)), low_(static_cast<Low*>(range.remainder)) {}

    void fetch(int64_t begin) const {
        fetch_block(high_ + begin);
        fetch_block(low_ + begin);
    }

    T* open(int64_t begin, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            buffer_[i] = joined_master(high_[begin + i], int32_t(low_[begin + i]) * (1 << SHIFT));
        }
        return buffer_;
    }

    void store(int64_t begin, int64_t n, const uint32_t* random) {
        for (int64_t i = 0; i < n; ++i) {
            words_[i] = P == BF16_R16 ? master_bits(buffer_[i])
                                      : master_bits_24(buffer_[i], bits_for_master(random[i]));
        }
        for (int64_t i = 0; i < n; ++i) high_[begin + i] = high_half(words_[i]);
        for (int64_t i = 0; i < n; ++i) low_[begin + i] = Low(words_[i] >> SHIFT);
    }

  private:
    uint16_t* const high_;
    Low* const low_;
    alignas(64) T buffer_[BLOCK];
    alignas(64) uint32_t words_[BLOCK];
};

template <DType S, typename T, bool AMSGRAD>
class Moments {
  public:
    explicit Moments(const Range& range)
        : exp_avg_(range.exp_avg), exp_avg_sq_(range.exp_avg_sq), largest_(range.max_exp_avg_sq) {}

    void fetch(int64_t begin) const {
        exp_avg_.fetch(begin);
        exp_avg_sq_.fetch(begin);
        if (AMSGRAD) largest_.fetch(begin);
    }
    void open(int64_t begin, int64_t n) {
        exp_avg = exp_avg_.open(begin, n);
        exp_avg_sq = exp_avg_sq_.open(begin, n);
        if (AMSGRAD) max_exp_avg_sq = largest_.open(begin, n);
    }
    void store(int64_t begin, int64_t n, const uint32_t*) {
        exp_avg_.store(begin, n);
        exp_avg_sq_.store(begin, n);
        if (AMSGRAD) largest_.store(begin, n);
    }

    T *exp_avg, *exp_avg_sq, *max_exp_avg_sq = nullptr;

  private:
    Staged<S, T> exp_avg_, exp_avg_sq_, largest_;
};

inline uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffu; }

// Loops of one width each, so that they vectorise: codes pass through words of 32 bits.
template <typename Code>
void widen_codes(const Code* __restrict from, int32_t* __restrict to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}
template <typename Code>
void narrow_codes(const int32_t* __restrict from, Code* __restrict to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = Code(from[i]);
}

inline void decode_group(const int32_t* __restrict code, const int32_t* __restrict code_sq, float scale,
                         float scale_sq, float* __restrict exp_avg, float* __restrict exp_avg_sq) {
    for (int i = 0; i < GROUP; ++i) {
        const float magnitude = decoded(float(code[i]), scale, LARGEST_CODE);
        const float root = decoded(float(code_sq[i]), scale_sq, LARGEST_CODE_SQ);
        const float signed_ = code[i] < 0 ? -magnitude : magnitude;
        exp_avg[i] = code_sq[i] == 0 ? 0.0f : signed_;
        exp_avg_sq[i] = root * root;
    }
}

// False if a value is NaN or infinite: as unsigned integers those are larger than all others.
inline bool group_scales(const float* __restrict exp_avg, const float* __restrict root, float* scale,
                         float* scale_sq) {
    uint32_t largest = 0, largest_sq = 0;
    for (int i = 0; i < GROUP; ++i) {
        const uint32_t m = magnitude_bits(exp_avg[i]), v = magnitude_bits(root[i]);
        largest = largest > m ? largest : m;
        largest_sq = largest_sq > v ? largest_sq : v;
    }
    *scale = scale_of(float_of(largest));
    *scale_sq = scale_of(float_of(largest_sq));
    return is_finite(float_of(largest)) && is_finite(float_of(largest_sq));
}

inline void encode_group(const float* __restrict exp_avg, const float* __restrict root,
                         const uint32_t* __restrict random, float scale, float scale_sq,
                         int32_t* __restrict code, int32_t* __restrict code_sq) {
    const float inverse = inverse_of(scale), inverse_sq = inverse_of(scale_sq);
    const int32_t smallest = scale_sq > 0.0f ? 1 : 0;
    for (int i = 0; i < GROUP; ++i) {
        const float m = float_of(magnitude_bits(exp_avg[i]));
        const int32_t c = int32_t(encoded(m, inverse, LARGEST_CODE, fraction(random[i])));
        code[i] = exp_avg[i] < 0.0f ? -c : c;
        const int32_t d = int32_t(encoded(root[i], inverse_sq, LARGEST_CODE_SQ, fraction_sq(random[i])));
        const int32_t least = root[i] > 0.0f ? smallest : 0;
        code_sq[i] = d > least ? d : least;
    }
}

template <>
class Moments<Q8, float, false> {
  public:
    explicit Moments(const Range& range)
        : code_(static_cast<int8_t*>(range.exp_avg)),
          code_sq_(static_cast<uint8_t*>(range.exp_avg_sq)),
          scale_(range.exp_avg_scale),
          scale_sq_(range.exp_avg_sq_scale) {}

    void fetch(int64_t begin) const {
        fetch_block(code_ + begin);
        fetch_block(code_sq_ + begin);
    }

    void open(int64_t begin, int64_t n) {
        widen_codes(code_ + begin, words_, n);
        widen_codes(code_sq_ + begin, words_sq_, n);
        for (int64_t i = 0; i < n; i += GROUP) {
            const int64_t group = (begin + i) / GROUP;
            decode_group(words_ + i, words_sq_ + i, scale_[group], scale_sq_[group], exp_avg + i,
                         exp_avg_sq + i);
        }
    }

    // Takes exp_avg_sq as its root. A group with a moment that is not finite keeps what it has.
    void store(int64_t begin, int64_t n, const uint32_t* random) {
        for (int64_t i = 0; i < n; i += GROUP) {
            const int64_t group = (begin + i) / GROUP;
            float scale, scale_sq;
            if (!group_scales(exp_avg + i, exp_avg_sq + i, &scale, &scale_sq)) continue;
            encode_group(exp_avg + i, exp_avg_sq + i, random + i, scale, scale_sq, words_, words_sq_);
            narrow_codes(words_, code_ + begin + i, GROUP);
            narrow_codes(words_sq_, code_sq_ + begin + i, GROUP);
            scale_[group] = scale;
            scale_sq_[group] = scale_sq;
        }
    }

    alignas(64) float exp_avg[BLOCK], exp_avg_sq[BLOCK];
    static constexpr float* max_exp_avg_sq = nullptr;

  private:
    int8_t* const code_;
    uint8_t* const code_sq_;
    float *const scale_, *const scale_sq_;
    alignas(64) int32_t words_[BLOCK], words_sq_[BLOCK];
};

}  // namespace
}  // namespace GREEDYLR_ISA
}  // namespace greedylr
