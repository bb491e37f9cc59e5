// Shared by all compiled backends: number formats, dtype mixes and the table of addresses.
// No framework header and no library container: these files are also compiled for the device.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

// Functions live in an inline namespace named after the instruction set that their translation unit is
// compiled for. Without it the linker would keep one copy of each inline function, perhaps the AVX-512 one,
// for all.
#ifndef GREEDYLR_ISA
#define GREEDYLR_ISA baseline
#endif

namespace greedylr {

// BF16_R16 and BF16_R8 are bfloat16 with the remainder of a float32 master (master.h), Q8 moments as codes of
// 8 bits with scales (eight_bit.h). Of I64 are only the weights of losses.
enum DType : int { F32 = 0, F64 = 1, BF16 = 2, F16 = 3, I64 = 4, BF16_R16 = 5, BF16_R8 = 6, Q8 = 7 };
constexpr int DTYPE_COUNT = 4;  // of gradients and losses

// The supported (parameter, gradient, moments) mixes. One list: loops are instantiated and checked from it.
#define GREEDYLR_MIXES(X)  \
    X(F32, F32, F32)       \
    X(F32, F32, BF16)      \
    X(F32, BF16, F32)      \
    X(F32, F16, F32)       \
    X(F64, F64, F64)       \
    X(BF16, BF16, BF16)    \
    X(BF16, BF16, F32)     \
    X(BF16, F32, BF16)     \
    X(BF16, F32, F32)      \
    X(F16, F16, F16)       \
    X(F16, F16, F32)       \
    X(F16, F32, F16)       \
    X(F16, F32, F32)       \
    X(F32, F32, Q8)        \
    X(BF16, BF16, Q8)      \
    X(BF16, F32, Q8)       \
    X(BF16_R16, BF16, F32) \
    X(BF16_R16, F32, F32)  \
    X(BF16_R16, BF16, Q8)  \
    X(BF16_R16, F32, Q8)   \
    X(BF16_R8, BF16, F32)  \
    X(BF16_R8, F32, F32)   \
    X(BF16_R8, BF16, Q8)   \
    X(BF16_R8, F32, Q8)

struct Mix {
    DType param, grad, state;
};

#define GREEDYLR_MIX(P, G, S) {P, G, S},
constexpr Mix MIXES[] = {GREEDYLR_MIXES(GREEDYLR_MIX)};
#undef GREEDYLR_MIX
constexpr int MIX_COUNT = sizeof(MIXES) / sizeof(MIXES[0]);
static_assert(
    MIX_COUNT == 24,
    "F32 and F64 with themselves, 2 x 4 of 16 bits, F32 with BF16 moments, F32 with 16-bit gradients, "
    "3 without masters and 8-bit moments, 2 x 4 with masters");

// Rows of TensorTable::ptrs. COPY_*: where an F32 parameter is also written to, in that format, after its
// update; 0 for nowhere. Only the CPU loops read them. STEP: the float that counts the steps already taken.
// NUMBER to STRIDE are no addresses: see index_of. The last two are 0 without a tuner: see mechanic.h.
#define GREEDYLR_ROWS(X) \
    X(PARAM)             \
    X(GRAD)              \
    X(EXP_AVG)           \
    X(EXP_AVG_SQ)        \
    X(MAX_EXP_AVG_SQ)    \
    X(REMAINDER)         \
    X(EXP_AVG_SCALE)     \
    X(EXP_AVG_SQ_SCALE)  \
    X(COPY_BF16)         \
    X(COPY_F16)          \
    X(STEP)              \
    X(NUMBER)            \
    X(FIRST)             \
    X(RUN)               \
    X(STRIDE)            \
    X(OFFSET)            \
    X(WRITTEN_AT)

#define GREEDYLR_ROW(name) name,
enum Row : int { GREEDYLR_ROWS(GREEDYLR_ROW) ROW_COUNT };
#undef GREEDYLR_ROW

// Columns of TensorTable::hyper.
enum Hyper : int {
    BETA1 = 0,
    BETA2 = 1,
    EPS = 2,
    WEIGHT_DECAY = 3,
    MAXIMIZE = 4,
    DECAY_SLOPE = 5,
    HYPER_COUNT = 6
};

// One optimizer's tensors, as plain pointers. N tensors, C chunks, G groups; chunk k of a tensor covers its
// elements [k * chunk, min(numel, (k + 1) * chunk)).
struct TensorTable {
    const int64_t* ptrs;          // [ROW_COUNT, N] addresses; GRAD 0: no gradient, leave the tensor alone
    const int64_t* numel;         // [N]
    const int32_t* group;         // [N]
    const double* hyper;          // [G, HYPER_COUNT]
    const double* norm_weight;    // [N] share of each gradient's sum of squares that this process contributes
    const int32_t* chunk_tensor;  // [C]
    const int32_t* chunk_index;   // [C]
    int64_t n_tensors, n_chunks;
    int64_t chunk;        // elements
    double* control;      // the control vector, see slots.h
    const double* curve;  // lr / level by step, see set_lr in control.h
    bool l1;              // whether a measurement adds up absolute values, too
    bool tuned;           // whether there is a tuner, see mechanic.h
};

// A loss where it lies: one element of this DType, a weight also of I64; none at address 0.
struct Loss {
    int64_t address;
    int dtype;
};

// A loss with its weight: a number, unless it has an address of its own.
struct Observation {
    Loss loss, weight_at;
    double weight;
};

inline namespace GREEDYLR_ISA {

HOST_DEVICE inline float& step_count(const TensorTable& t, int64_t tensor) {
    return *reinterpret_cast<float*>(t.ptrs[STEP * t.n_tensors + tensor]);
}

// Index in the whole parameter of element i of the part that lies here.
HOST_DEVICE inline uint64_t index_of(const TensorTable& t, int64_t tensor, int64_t i) {
    const int64_t* place = t.ptrs + tensor;
    const int64_t run = place[RUN * t.n_tensors];
    return uint64_t(place[FIRST * t.n_tensors] + i / run * place[STRIDE * t.n_tensors] + i % run);
}

HOST_DEVICE inline uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

HOST_DEVICE inline float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

HOST_DEVICE inline uint64_t bits_of(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

HOST_DEVICE inline double double_of(uint64_t u) {
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

// Tested on the bits, so that it also vectorises and no optimisation flag can fold it away.
HOST_DEVICE inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }
HOST_DEVICE inline bool is_finite(double x) {
    return (bits_of(x) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
}

// The four conversions are selects over integer arithmetic, without branches, so that loops over them
// vectorise on any instruction set. They do not depend on the processor's denormal mode:
// torch.set_flush_denormal(True) changes no stored bit.
HOST_DEVICE inline float bf16_to_float(uint16_t h) { return float_of(uint32_t(h) << 16); }

HOST_DEVICE inline uint16_t float_to_bf16(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);  // to nearest, ties to even
    return uint16_t((x != x ? 0x7fc00000u : rounded) >> 16);  // rounding could carry a NaN into inf
}

HOST_DEVICE inline float f16_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16;
    const uint32_t magnitude = uint32_t(h & 0x7fffu) << 13;
    const uint32_t exponent = magnitude & 0x0f800000u;
    const uint32_t normal = magnitude + (112u << 23);  // exponent bias 15 -> 127
    const uint32_t quiet = (magnitude & 0x007fffffu) != 0 ? 0x00400000u : 0u;
    const uint32_t infinite = (magnitude + (224u << 23)) | quiet;  // exponent 31 -> 255
    const uint32_t one = 113u << 23;  // 2^-14; a denormal is a fraction of it without the one
    const uint32_t denormal = bits_of(float_of(one + magnitude) - float_of(one));
    const uint32_t finite = exponent == 0 ? denormal : normal;
    return float_of(sign | (exponent == 0x0f800000u ? infinite : finite));
}

HOST_DEVICE inline uint16_t float_to_f16(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t sign = u & 0x80000000u;
    const uint32_t magnitude = u ^ sign;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 aligns the last bit kept with the float's last bit: the addition itself rounds to nearest
    // even.
    const uint32_t half = 126u << 23;
    const uint32_t denormal = bits_of(float_of(magnitude) + float_of(half)) - half;
    const uint32_t quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // what vcvtps2ph gives
    const uint32_t infinite = magnitude > 0x7f800000u ? quiet_nan : 0x7c00u;
    const uint32_t finite = magnitude < (113u << 23) ? denormal : normal;
    return uint16_t((sign >> 16) | (magnitude >= (143u << 23) ? infinite : finite));
}

// How a format is stored, and the type its arithmetic is done in.
template <DType D>
struct Format;

template <>
struct Format<F32> {
    using Stored = float;
    using Math = float;
    HOST_DEVICE static float load(float x) { return x; }
    HOST_DEVICE static float store(float x) { return x; }
};

template <>
struct Format<F64> {
    using Stored = double;
    using Math = double;
    HOST_DEVICE static double load(double x) { return x; }
    HOST_DEVICE static double store(double x) { return x; }
};

template <>
struct Format<BF16> {
    using Stored = uint16_t;
    using Math = float;
    HOST_DEVICE static float load(uint16_t x) { return bf16_to_float(x); }
    HOST_DEVICE static uint16_t store(float x) { return float_to_bf16(x); }
};

template <>
struct Format<F16> {
    using Stored = uint16_t;
    using Math = float;
    HOST_DEVICE static float load(uint16_t x) { return f16_to_float(x); }
    HOST_DEVICE static uint16_t store(float x) { return float_to_f16(x); }
};

// The visible part; the arithmetic is that of the master.
template <>
struct Format<BF16_R16> : Format<BF16> {};
template <>
struct Format<BF16_R8> : Format<BF16> {};

template <>
struct Format<Q8> {
    using Stored = uint8_t;  // of exp_avg: int8_t in the same byte
    using Math = float;
};

HOST_DEVICE constexpr bool has_master(DType d) { return d == BF16_R16 || d == BF16_R8; }

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
