// The update of parameters whose moments have 8 bits. Neighbouring lanes hold a group, so that its scales are
// known by shuffles before any code is written: one pass over memory.
#pragma once

#include "codes.cuh"
#include "masters.cuh"

namespace greedylr {
namespace cuda {

// The larger of numbers that are not negative; a NaN is larger than all.
__device__ __forceinline__ float larger(float a, float b) {
#ifdef __CUDACC__
    float c;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
#else
    return b > a || b != b ? b : a;
#endif
}

// The largest over the lanes that hold a group.
template <int LANES>
__device__ __forceinline__ float over_group(float largest) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) {
        largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, apart));
    }
    return largest;
}

// V neighbours' moments: loaded as codes, kept as numbers until their scales are known.
template <int V>
struct Moments {
    Words<uint8_t, V> q, q_sq;
    float scale, scale_sq;
    float exp_avg[V], root[V];  // root: of exp_avg_sq
    float largest, largest_sq;

    __device__ __forceinline__ void load(const Task<float>& task, int i, unsigned wide) {
        q.load(stream<Q8>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
        q_sq.load(stream<Q8>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
        scale = load_global(stream<F32>(task, EXP_AVG_SCALE, i / GROUP));
        scale_sq = load_global(stream<F32>(task, EXP_AVG_SQ_SCALE, i / GROUP));
    }

    __device__ __forceinline__ void get(int j, float& m, float& v) const {
        const uint32_t four_sq = q_sq.quads[j / 4];
        const uint32_t four = (q.quads[j / 4] & where_positive(four_sq)) ^ BIASED;
        m = decoded(code_of(four, j % 4, BIAS), scale, LARGEST_CODE);
        const float r = decoded(code_of(four_sq, j % 4, 0.0f), scale_sq, LARGEST_CODE_SQ);
        v = r * r;
    }

    __device__ __forceinline__ void set(int j, float m, float v) {
        exp_avg[j] = m;
        root[j] = Approximate::root(v);
        largest = larger(largest, fabsf(m));
        largest_sq = larger(largest_sq, root[j]);
    }

    // By all lanes of a warp.
    __device__ __forceinline__ void agree() {
        scale = scale_of(over_group<GROUP / V>(largest));
        scale_sq = scale_of(over_group<GROUP / V>(largest_sq));
    }

    // A group with a moment that is not finite stays as it was.
    __device__ __forceinline__ void store(const Task<float>& task, int i, unsigned wide, uint32_t start) {
        if (!is_finite(scale) || !is_finite(scale_sq)) return;
        const float inverse = inverse_of<Approximate>(scale), inverse_sq = inverse_of<Approximate>(scale_sq);
        uint32_t codes[V], codes_sq[V];
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const uint32_t random = random_bits(uint32_t(j), start);
            const float m = exp_avg[j], r = root[j];
            const float code = unbounded_code<Approximate>(fabsf(m), inverse, LARGEST_CODE, fraction(random));
            const float code_sq = encoded<Approximate>(r, inverse_sq, LARGEST_CODE_SQ, fraction_sq(random));
            codes[j] = uint32_t(int32_t(copysignf(code, m)));
            codes_sq[j] = cut(fmaxf(code_sq, one_if_positive(r)));
        }
#pragma unroll
        for (int j = 0; j < V; j += 4) {
            q.quads[j / 4] = four_bytes(codes + j);
            q_sq.quads[j / 4] = four_bytes(codes_sq + j);
        }
        q.store(stream<Q8>(task, EXP_AVG, i), wide & (1u << EXP_AVG));
        q_sq.store(stream<Q8>(task, EXP_AVG_SQ, i), wide & (1u << EXP_AVG_SQ));
        if (i % GROUP != 0) return;
        store_global(stream<F32>(task, EXP_AVG_SCALE, i / GROUP), scale);
        store_global(stream<F32>(task, EXP_AVG_SQ_SCALE, i / GROUP), scale_sq);
    }
};

// By all lanes of a warp, of which those that are `active` have elements.
template <int V, bool PLAIN, bool FROM_OLD, DType P, DType G>
__device__ __forceinline__ void update_groups(const Task<float>& task, int i, unsigned wide, bool active) {
    // Of the pack's first element. That of the j-th differs in the lowest bits alone: packs begin at
    // multiples of their size, here and in the whole parameter, and neither gaps nor upper halves begin
    // within a group.
    uint32_t start = 0;
    Params<P, V> params = {};
    Pack<G, V> grad = {};
    Moments<V> moments = {};
    if (active) {
        start = start_of<PLAIN>(task.randoms, i);
        params.load(task, i, wide);
        grad.load(stream<G>(task, GRAD, i), wide & (1u << GRAD));
        moments.load(task, i, wide);
    }
    const Coefficients<float> k = fetched_scalars(task);
#pragma unroll
    for (int j = 0; j < V; ++j) {
        float p = params.get(j), m, v, vmax = 0.0f;
        moments.get(j, m, v);
        adamw_element<false, FROM_OLD, Approximate>(p, grad.get(j), m, v, vmax, k);
        params.set(j, p, random_bits(uint32_t(j), start));
        moments.set(j, m, v);
    }
    if (active) params.store(task, i, wide);
    moments.agree();
    __syncwarp();  // all lanes have read the scales that one writes
    if (active) moments.store(task, i, wide, start);
}

// A warp's turns in which all lanes have elements, at places that follow each other, and wide accesses; then
// the others, by four elements: with more, their many ways would take more registers than there are.
template <bool FROM_OLD, DType P, DType G>
__device__ __forceinline__ void update_groups_of(const Task<float>& task) {
    constexpr int V = Streams<P, G, Q8>::V, FEW = 4;
    const int lane = threadIdx.x % WARP;
#pragma unroll 1
    for (int i = lane * V; i < fetched(task.packs_end); i += WARP * V) {
        update_groups<V, true, FROM_OLD, P, G>(task, untracked(i), ALL_WIDE, true);
    }
#pragma unroll 1
    for (int begin = fetched(task.packs_end); begin < fetched(task.count); begin += WARP * FEW) {
        const int i = untracked(begin + lane * FEW);
        update_groups<FEW, false, FROM_OLD, P, G>(task, i, fetched(task.wide), i < fetched(task.count));
    }
}

}  // namespace cuda
}  // namespace greedylr
