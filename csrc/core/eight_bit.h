// Moments in 8 bits: fourth roots of their shares in a scale for each group of 64, rounded stochastically by
// a hash. `greedylr_fused/tensors/eight_bit.py` specifies the same and says why.
#pragma once

#include "adamw.h"
#include "common.h"

namespace greedylr {

constexpr int GROUP = 64;  // elements
constexpr float LARGEST_CODE = 127.0f, LARGEST_CODE_SQ = 255.0f;
constexpr float SMALLEST_SCALE = 0x1p-126f;  // one below has no reciprocal, and counts as 0

inline namespace GREEDYLR_ISA {

HOST_DEVICE inline uint32_t mix_bits(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

// The part of the hash that elements share whose index in the whole parameter has the same upper half.
// `number`: the parameter's; `step`: its count of steps, this one included.
HOST_DEVICE inline uint32_t hash_seed(uint64_t index, int64_t number, float step) {
    const uint32_t upper = mix_bits(uint32_t(index >> 32));
    return mix_bits(uint32_t(int64_t(step)) ^ mix_bits(uint32_t(number) ^ upper));
}

// 32 random bits of an element: 0-7 for exp_avg, 8-15 for a master of 24 bits, 16-31 for exp_avg_sq. `lower`:
// of its index.
HOST_DEVICE inline uint32_t random_bits(uint32_t lower, uint32_t seed) { return mix_bits(lower ^ seed); }

HOST_DEVICE inline uint32_t bits_for_master(uint32_t random) { return random >> 8 & 0xffu; }
// In (0, 1): (random bits + 1/2) / 2^8, by writing the bits behind a power of two. Conversions are slow on
// GPUs.
HOST_DEVICE inline float fraction(uint32_t random) {
    return float_of(0x47000000u | (random & 0xffu)) - (0x1p15f - 0x1p-9f);
}
HOST_DEVICE inline float fraction_sq(uint32_t random) {
    return float_of(0x43000000u | random >> 16) - (0x1p7f - 0x1p-17f);
}

// The value of a code, with its sign.
HOST_DEVICE inline float decoded(float code, float scale, float largest) {
    float t = code * (1.0f / largest);
    t = t * fabsf(t);
    return t * fabsf(t) * scale;
}

HOST_DEVICE inline float scale_of(float largest) { return largest < SMALLEST_SCALE ? 0.0f : largest; }
template <typename Rounding = Rounded>
HOST_DEVICE inline float inverse_of(float scale) {
    return scale > 0.0f ? Rounding::inverse(scale) : 0.0f;
}

// The code of a magnitude, a whole number in [0, largest] after truncation. Without `largest` as its bound,
// that of 127 ends below 128 all the same, since its u has 8 bits.
template <typename Rounding = Rounded>
HOST_DEVICE inline float unbounded_code(float x, float inverse, float largest, float u) {
    return largest * Rounding::fourth_root(x * inverse) + u;
}
template <typename Rounding = Rounded>
HOST_DEVICE inline float encoded(float x, float inverse, float largest, float u) {
    const float code = unbounded_code<Rounding>(x, inverse, largest, u);
    return code < largest ? code : largest;
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
