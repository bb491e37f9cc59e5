// The gradients' sum of squares, and of absolute values where they are asked for, read once: all dtypes in
// one launch, whose last block adds up and clips.
#pragma once

#include "epilogue.cuh"
#include "sums.cuh"

namespace greedylr {
namespace cuda {

// Chunks are dealt to this many lots, and a warp sums whole lots. A fixed number, so that the order of
// summation, and with it the last bit of the norm, is the same on a GPU of any size; enough to fill the
// largest.
constexpr int64_t LOTS = 4096;

template <bool L1>
struct MeasureArgs {
    TensorTable table;
    GradSum<L1>* lots;  // [min(LOTS, n_chunks)]
    unsigned* arrived;
    bool then_clip;  // whether the last block goes on to the clip
    struct {
        DType grad;
        int64_t end;  // chunks
    } launches[MIX_COUNT];
};

template <bool L1>
__device__ __forceinline__ GradSum<L1> added(const GradSum<L1>& a, const GradSum<L1>& b) {
    GradSum<L1> sum;
    sum.squares = a.squares + b.squares;
    sum.nonfinite = a.nonfinite | b.nonfinite;
    if constexpr (L1) sum.absolute = a.absolute + b.absolute;
    return sum;
}

template <int DEPTH, DType G, int V, typename Sums>
__device__ __forceinline__ void add_packs(Sums& sums, const typename Format<G>::Stored* at, bool wide) {
    Pack<G, V> packs[DEPTH];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) packs[d].load(at + d * WARP * V, wide);
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        typename Format<G>::Math elements[V];
#pragma unroll
        for (int j = 0; j < V; ++j) elements[j] = packs[d].get(j);
        sums.add(elements);
    }
}

// Which lane adds which element, and in which order, does not depend on the address: a gradient that moves
// must not change the norm. Packs are under way four at a time only while all lanes have four: registers that
// a load may leave as they are would be kept through all of the kernel, and half as many warps fit.
template <typename Sums, DType G>
__device__ __forceinline__ Sums sums_of_lane(const typename Format<G>::Stored* grad, int count, bool wide) {
    constexpr int V = ACCESS / int(sizeof(*grad));
    constexpr int TURN = 4 * WARP * V;
    const int lane = threadIdx.x % WARP;
    const int packs_end = count / V * V;
    const int turns_end = wide ? count / TURN * TURN : 0;
    Sums sums;
#pragma unroll 1
    for (int i = lane * V; i < turns_end; i += TURN) add_packs<4, G, V>(sums, grad + i, true);
#pragma unroll 1
    for (int i = turns_end + lane * V; i < packs_end; i += WARP * V) add_packs<1, G, V>(sums, grad + i, wide);
    if (packs_end + lane < count) {
        const typename Format<G>::Math single[] = {widened<G>(load_global(grad + packs_end + lane))};
        sums.add(single);
    }
    return sums;
}

template <typename Sums, DType G, bool L1>
__device__ __forceinline__ GradSum<L1> measure_span(int64_t address, const Span& span) {
    const auto* grad = reinterpret_cast<const typename Format<G>::Stored*>(address) + span.begin;
    const bool wide = on_access(address + span.begin * int64_t(sizeof(*grad)), ACCESS);
    const Sums sums = sums_of_lane<Sums, G>(grad, span.count, wide);
    if (sums.hold()) return sums.total();
    return sums_of_lane<PlainSums<G, L1>, G>(grad, span.count, false).total();
}

template <template <DType, bool> typename Sums, bool L1>
__device__ __forceinline__ GradSum<L1> measure_span_of(DType grad, int64_t address, const Span& span) {
    switch (grad) {
        case F32:
            return measure_span<Sums<F32, L1>, F32, L1>(address, span);
        case F64:
            return measure_span<PlainSums<F64, L1>, F64, L1>(address, span);
        case BF16:
            return measure_span<Sums<BF16, L1>, BF16, L1>(address, span);
        default:
            return measure_span<Sums<F16, L1>, F16, L1>(address, span);
    }
}

template <template <DType, bool> typename Sums, bool L1>
__device__ __forceinline__ GradSum<L1> measure_chunk(const MeasureArgs<L1>& args, int64_t c) {
    const TensorTable& t = args.table;
    const int64_t tensor = t.chunk_tensor[c];
    const int64_t at = address_of(t, GRAD, tensor);
    if (at == 0) return {};
    const Span span = span_of(t, tensor, t.chunk_index[c], 0);
    int launch = 0;
    while (c >= args.launches[launch].end) ++launch;
    GradSum<L1> sum = measure_span_of<Sums, L1>(args.launches[launch].grad, at, span);
    sum.squares *= t.norm_weight[tensor];
    if constexpr (L1) sum.absolute *= t.norm_weight[tensor];
    return sum;
}

// The sum over a warp's lanes, in every lane.
template <bool L1>
__device__ __forceinline__ GradSum<L1> over_warp(GradSum<L1> sum) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        GradSum<L1> other;
        other.squares = __shfl_xor_sync(ALL_LANES, sum.squares, apart);
        other.nonfinite = __shfl_xor_sync(ALL_LANES, sum.nonfinite, apart);
        if constexpr (L1) other.absolute = __shfl_xor_sync(ALL_LANES, sum.absolute, apart);
        sum = added(sum, other);
    }
    return sum;
}

constexpr int MEASURE_THREADS = 256;

// Blocks that are to be resident on a multiprocessor: with 2 KB under way in each of 32 warps, twice what it
// takes on an H100 or H200 (update.cuh, RESIDENT), and on these all lots at once.
constexpr int MEASURE_RESIDENT = 4;

// The sum over all lots, by one block, in thread 0.
template <typename Sum>
__device__ __forceinline__ Sum over_lots(const Sum* lots, int64_t count) {
    GREEDYLR_SHARED(Sum, of_warp, MEASURE_THREADS / WARP);
    Sum sum = {};
    // The stride is MEASURE_THREADS: the order of summation must not depend on the launch.
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < count; i += MEASURE_THREADS) sum = added(sum, lots[i]);
    sum = over_warp(sum);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < MEASURE_THREADS / WARP; ++w) sum = added(sum, of_warp[w]);
    }
    return sum;
}

// From the last chunk to the first: the update then begins with what was read last and is still in the cache.
// PAIRS: for GPUs that are slow at double (sums.cuh). A kernel of its own, so that each has the registers it
// needs.
template <bool L1, bool PAIRS>
__global__ void __launch_bounds__(MEASURE_THREADS, MEASURE_RESIDENT)
    measure_kernel(const __grid_constant__ MeasureArgs<L1> args) {
    const int64_t n = args.table.n_chunks;
    const int64_t lots = n < LOTS ? n : LOTS;
    const int64_t warp = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    const int64_t warps = int64_t(gridDim.x) * blockDim.x / WARP;
    for (int64_t lot = warp; lot < lots; lot += warps) {
        GradSum<L1> sum = {};
        for (int64_t c = lot; c < n; c += LOTS) {
            if constexpr (PAIRS) {
                sum = added(sum, measure_chunk<PairSums>(args, n - 1 - c));
            } else {
                sum = added(sum, measure_chunk<ShiftedSums>(args, n - 1 - c));
            }
        }
        sum = over_warp(sum);
        if (threadIdx.x % WARP == 0) args.lots[lot] = sum;
    }
    if (!is_last_block(args.arrived)) return;
    const GradSum<L1> total = over_lots(args.lots, lots);
    const bool then_clip = args.then_clip;
    on_staged_control(args.table.control, [total, then_clip](double* c) {
        c[slot::grad_sq_sum] = total.squares;
        if constexpr (L1) c[slot::grad_abs_sum] = total.absolute;
        c[slot::grad_nonfinite] = double(total.nonfinite);
        if (then_clip) run_clip(c);
    });
}

}  // namespace cuda
}  // namespace greedylr
