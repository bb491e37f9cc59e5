// The update of parameters whose moments have 8 bits. Neighbouring lanes hold a group, so that its scales are
// known by shuffles before any code is written: one pass over memory.
#pragma once

#include "masters.cuh"
#include "randoms.cuh"

namespace greedylr {
namespace cuda {

// The lowest 8 bits are those of the whole part of x, in [0, 256).
__device__ __forceinline__ uint32_t cut(float x) {
#ifdef __CUDACC__
    return bits_of(__fadd_rz(x, 0x1p23f));  // conversions are four times as slow
#else
    return uint32_t(x);
#endif
}

// Four codes of 8 bits in a register, the first lowest, as floats. `bias` was added to each.
__device__ __forceinline__ float code_of(uint32_t four, int j, float bias) {
    const uint32_t code = four >> (8 * j) & 0xffu;
    return float_of(0x4b000000u | code) - (0x1p23f + bias);
}

constexpr uint32_t BIASED = 0x80808080u;  // turns four signed codes into ones that 128 was added to
constexpr float BIAS = 128.0f;

// The largest of numbers that are not negative, over the lanes that hold a group. As integers: a NaN is larger
// than infinity, and that than all else.
template <int LANES>
__device__ __forceinline__ uint32_t over_group(uint32_t largest) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) {
        const uint32_t other = __shfl_xor_sync(ALL_LANES, largest, apart);
        largest = other > largest ? other : largest;
    }
    return largest;
}

// V neighbours' moments: loaded as codes, kept as numbers until their scales are known.
template <int V>
struct Moments {
    Words<uint8_t, V> q, q_sq;
    float scale, scale_sq;
    float exp_avg[V], root[V];  // root: of exp_avg_sq
    uint32_t largest = 0, largest_sq = 0;

    __device__ __forceinline__ void load(const Task<float>& task, int i, unsigned wide) {
        q.load(stream<Q8>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
        q_sq.load(stream<Q8>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
        scale = load_global(stream<F32>(task, EXP_AVG_SCALE, i / GROUP));
        scale_sq = load_global(stream<F32>(task, EXP_AVG_SQ_SCALE, i / GROUP));
    }

    __device__ __forceinline__ void get(int j, float& m, float& v) const {
        const float code_sq = code_of(q_sq.quads[j / 4], j % 4, 0.0f);
        const float code = code_of(q.quads[j / 4] ^ BIASED, j % 4, BIAS);
        const float magnitude = decoded(fabsf(code), scale, LARGEST_CODE);
        m = code_sq == 0.0f ? 0.0f : copysignf(magnitude, code);
        const float r = decoded(code_sq, scale_sq, LARGEST_CODE_SQ);
        v = r * r;
    }

    __device__ __forceinline__ void set(int j, float m, float v) {
        exp_avg[j] = m;
        root[j] = square_root(v);
        const uint32_t a = bits_of(m) & 0x7fffffffu, b = bits_of(root[j]) & 0x7fffffffu;
        largest = a > largest ? a : largest;
        largest_sq = b > largest_sq ? b : largest_sq;
    }

    // By all lanes of a warp.
    __device__ __forceinline__ void agree() {
        scale = scale_of(float_of(over_group<GROUP / V>(largest)));
        scale_sq = scale_of(float_of(over_group<GROUP / V>(largest_sq)));
    }

    // A group with a moment that is not finite stays as it was.
    __device__ __forceinline__ void store(const Task<float>& task, int i, unsigned wide, uint32_t start) {
        if (!is_finite(scale) || !is_finite(scale_sq)) return;
        const float inverse = inverse_of(scale), inverse_sq = inverse_of(scale_sq);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const uint32_t random = random_of(start, j);
            const float code = encoded(fabsf(exp_avg[j]), inverse, LARGEST_CODE, fraction(random));
            float code_sq = encoded(root[j], inverse_sq, LARGEST_CODE_SQ, fraction_sq(random));
            code_sq = root[j] > 0.0f && scale_sq > 0.0f && code_sq < 1.0f ? 1.0f : code_sq;
            const uint32_t whole = cut(code);
            q.elements[j] = uint8_t(exp_avg[j] < 0.0f ? 0u - whole : whole);
            q_sq.elements[j] = uint8_t(cut(code_sq));
        }
        q.store(stream<Q8>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
        q_sq.store(stream<Q8>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
        if (i % GROUP != 0) return;
        store_global(stream<F32>(task, EXP_AVG_SCALE, i / GROUP), scale);
        store_global(stream<F32>(task, EXP_AVG_SQ_SCALE, i / GROUP), scale_sq);
    }
};

// By all lanes of a warp, of which those that are `active` have elements.
template <bool FROM_OLD, DType P, DType G>
__device__ __forceinline__ void update_groups(const Task<float>& task, const TensorTable& t, int i,
                                              unsigned wide, bool active) {
    constexpr int V = Streams<P, G, Q8>::V;
    Moments<V> moments;
    uint32_t start = 0;
    if (active) {
        Params<P, V> params;
        Pack<G, V> grad;
        params.load(task, i, wide);
        grad.load(stream<G>(task, GRAD, i), wide & (1u << GRAD));
        moments.load(task, i, wide);
        const Coefficients<float> k = fetched_scalars(task);
        start = start_of(task.randoms, t, i);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float p = params.get(j), m, v, vmax = 0.0f;
            moments.get(j, m, v);
            adamw_element<false, FROM_OLD>(p, grad.get(j), m, v, vmax, k);
            params.set(j, p, random_of(start, j));
            moments.set(j, m, v);
        }
        params.store(task, i, wide);
    }
    moments.agree();
    if (active) moments.store(task, i, wide, start);
}

// A warp's turns in which all lanes have elements and wide accesses, then those that are left.
template <bool FROM_OLD, DType P, DType G>
__device__ __forceinline__ void update_groups_of(const Task<float>& task, const TensorTable& t) {
    constexpr int V = Streams<P, G, Q8>::V, TURN = WARP * V;
    const int lane = threadIdx.x % WARP;
    const int turns_end = task.wide == ALL_WIDE ? task.count / TURN * TURN : 0;
#pragma unroll 1
    for (int begin = 0; begin < turns_end; begin += TURN) {
        update_groups<FROM_OLD, P, G>(task, t, begin + lane * V, ALL_WIDE, true);
    }
#pragma unroll 1
    for (int begin = turns_end; begin < fetched(task.count); begin += TURN) {
        const int i = begin + lane * V;
        update_groups<FROM_OLD, P, G>(task, t, i, fetched(task.wide), i < fetched(task.count));
    }
}

}  // namespace cuda
}  // namespace greedylr
