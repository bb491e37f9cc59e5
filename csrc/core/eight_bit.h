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

// 32 random bits of an element: 0-7 for exp_avg, 8-15 for a master of 24 bits, 16-31 for exp_avg_sq.
HOST_DEVICE inline uint32_t random_bits(uint64_t index, uint32_t seed) {
    return mix_bits(uint32_t(index) ^ seed);
}

HOST_DEVICE inline uint32_t bits_for_master(uint32_t random) { return random >> 8 & 0xffu; }
// In (0, 1).
HOST_DEVICE inline float fraction(uint32_t random) {
    return (float(int32_t(random & 0xffu)) + 0.5f) * 0x1p-8f;
}
HOST_DEVICE inline float fraction_sq(uint32_t random) {
    return (float(int32_t(random >> 16)) + 0.5f) * 0x1p-16f;
}

// The magnitude of a code.
HOST_DEVICE inline float decoded(float code, float scale, float largest) {
    float t = code * (1.0f / largest);
    t = t * t;
    return t * t * scale;
}

HOST_DEVICE inline float scale_of(float largest) { return largest < SMALLEST_SCALE ? 0.0f : largest; }
HOST_DEVICE inline float inverse_of(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

// The code of a magnitude, a whole number in [0, largest] after truncation.
HOST_DEVICE inline float encoded(float x, float inverse, float largest, float u) {
    const float code = largest * square_root(square_root(x * inverse)) + u;
    return code < largest ? code : largest;
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
