// Float32 masters of bfloat16 parameters: the parameter is the upper half, rounded to nearest with halves
// away from zero, the remainder what it lacks. `greedylr_fused/tensors/masters.py` specifies the same.
#pragma once

#include "common.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {

// `low`: the remainder, of 8 bits shifted left by 8. A parameter that was set to zero is zero, whatever its
// remainder: without the maximum, a negative one would make a NaN of it.
HOST_DEVICE inline float joined_master(uint16_t high, int32_t low) {
    const int32_t magnitude = int32_t(uint32_t(high & 0x7fffu) << 16) + low;
    return float_of(uint32_t(magnitude > 0 ? magnitude : 0) | uint32_t(high & 0x8000u) << 16);
}

// The bits to divide among parameter and remainder; every NaN becomes one with the remainder 0.
HOST_DEVICE inline uint32_t master_bits(float x) { return x != x ? 0x7fc00000u : bits_of(x); }

// The same rounded to 24 bits; `random`: 8 bits, added below the last that is kept.
HOST_DEVICE inline uint32_t master_bits_24(float x, uint32_t random) {
    const uint32_t rounded = is_finite(x) ? bits_of(x) + random : bits_of(x);
    return (x != x ? 0x7fc00000u : rounded) & 0xffffff00u;
}

HOST_DEVICE inline uint16_t high_half(uint32_t bits) { return uint16_t((bits + 0x8000u) >> 16); }

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
