// Float32 masters of bfloat16 parameters: the parameter is the upper half, rounded to nearest with halves
// away from zero, the remainder what it lacks. `greedylr_fused/tensors/masters.py` specifies the same.
#pragma once

#include "common.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {

// `high`: the parameter in the upper half of a word. `low`: the remainder, of 8 bits shifted left by 8.
// Beside a parameter that was set to zero from outside a negative one would make a NaN: the maximum makes it
// zero.
HOST_DEVICE inline float joined_master(uint32_t high, int32_t low) {
    const int32_t magnitude = int32_t(high & 0x7fff0000u) + low;
    return float_of(uint32_t(magnitude > 0 ? magnitude : 0) | (high & 0x80000000u));
}
HOST_DEVICE inline float joined_master(uint16_t high, int32_t low) {
    return joined_master(uint32_t(high) << 16, low);
}

// The bits to divide among parameter and remainder; every NaN becomes one with the remainder 0.
HOST_DEVICE inline uint32_t master_bits(float x) {
#ifdef __CUDA_ARCH__
    // The only NaN that arithmetic gives there is the largest of all integers with a sign.
    const int32_t bits = int32_t(bits_of(x));
    return uint32_t(bits < 0x7fc00000 ? bits : 0x7fc00000);
#else
    return x != x ? 0x7fc00000u : bits_of(x);
#endif
}

// The same rounded to 24 bits; `random`: 8 bits, added below the last that is kept. Infinity and NaN, whose
// low bits are 0, stay what they are.
HOST_DEVICE inline uint32_t master_bits_24(float x, uint32_t random) {
    return (master_bits(x) + random) & 0xffffff00u;
}

HOST_DEVICE inline uint16_t high_half(uint32_t bits) { return uint16_t((bits + 0x8000u) >> 16); }

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
