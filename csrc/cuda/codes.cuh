// 8-bit moments in few instructions: codes in bytes of a register, roots and quotients as the hardware has
// them.
#pragma once

#include "../core/eight_bit.h"
#include "access.cuh"

namespace greedylr {
namespace cuda {

// Roots and quotients as the hardware gives them, off by at most 2 units in the last place where those of
// other kernels are the nearest number: exact ones would take half of all instructions.
struct Approximate {
#ifdef __CUDACC__
    __device__ __forceinline__ static float root(float x) {
        float y;
        asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    // Of numbers up to 1. Subnormal ones count as 0, and their codes are 0 in either case.
    __device__ __forceinline__ static float fourth_root(float x) {
        float y;
        asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(y));
        return y;
    }
    // y, which is at least eps, is no subnormal number (see prepare) and below 2^126.
    __device__ __forceinline__ static float quotient(float x, float y) {
        float quotient;
        asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
        return quotient;
    }
    __device__ __forceinline__ static float inverse(float x) {
        float y;
        asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
#else
    static float root(float x) { return Rounded::root(x); }
    static float fourth_root(float x) { return Rounded::fourth_root(x); }
    static float quotient(float x, float y) { return Rounded::quotient(x, y); }
    static float inverse(float x) { return Rounded::inverse(x); }
#endif
};

// The lowest 8 bits are those of the whole part of x, in [0, 256).
__device__ __forceinline__ uint32_t cut(float x) {
#ifdef __CUDACC__
    return bits_of(__fadd_rz(x, 0x1p23f));  // conversions are four times as slow
#else
    return uint32_t(x);
#endif
}

// Byte j of four, as the lowest of a word that is otherwise `above`, whose own is 0.
__device__ __forceinline__ uint32_t byte_of(uint32_t four, int j, uint32_t above) {
#ifdef __CUDACC__
    return __byte_perm(four, above, 0x7650 + j);
#else
    return above | (four >> (8 * j) & 0xffu);
#endif
}

// The lowest bytes of four words, the first lowest.
__device__ __forceinline__ uint32_t four_bytes(const uint32_t* words) {
#ifdef __CUDACC__
    return __byte_perm(__byte_perm(words[0], words[1], 0x0040), __byte_perm(words[2], words[3], 0x0040),
                       0x5410);
#else
    return (words[0] & 0xffu) | (words[1] & 0xffu) << 8 | (words[2] & 0xffu) << 16 | words[3] << 24;
#endif
}

// Code j of four in a register as a float. `bias` was added to each.
__device__ __forceinline__ float code_of(uint32_t four, int j, float bias) {
    return float_of(byte_of(four, j, 0x4b000000u)) - (0x1p23f + bias);
}

// 1 if a root, which is at least 2^-75 unless it is 0, is not 0.
__device__ __forceinline__ float one_if_positive(float root) {
#ifdef __CUDACC__
    return __saturatef(root * 0x1p126f);
#else
    return root > 0.0f ? 1.0f : 0.0f;
#endif
}

// 0xff in each byte that is not 0.
__device__ __forceinline__ uint32_t where_positive(uint32_t four) {
    const uint32_t top = ((four & 0x7f7f7f7fu) + 0x7f7f7f7fu) | four;
#ifdef __CUDACC__
    uint32_t mask;
    asm("prmt.b32 %0, %1, 0, 0xba98;" : "=r"(mask) : "r"(top));  // the highest bit of each byte, eight times
    return mask;
#else
    return (top >> 7 & 0x01010101u) * 0xffu;
#endif
}

constexpr uint32_t BIASED = 0x80808080u;  // turns four signed codes into ones that 128 was added to
constexpr float BIAS = 128.0f;

}  // namespace cuda
}  // namespace greedylr
