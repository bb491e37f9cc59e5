// Compiled once per instruction set; the build defines GREEDYLR_ISA and the compiler flags of that set.
#include "loops.h"

#define GREEDYLR_PASTE(a, b) a##b
#define GREEDYLR_CONCAT(a, b) GREEDYLR_PASTE(a, b)
#define GREEDYLR_STRINGIFY(a) #a
#define GREEDYLR_STRING(a) GREEDYLR_STRINGIFY(a)

namespace greedylr {
inline namespace GREEDYLR_ISA {
namespace {

template <DType P, DType G, DType S, bool AMSGRAD>
void update_loop(const Range& range, const Coefficients<double>& scalars) {
    using T = typename Format<P>::Math;
    using State = typename Format<S>::Stored;
    auto* __restrict param = static_cast<typename Format<P>::Stored*>(range.param);
    const auto* __restrict grad = static_cast<const typename Format<G>::Stored*>(range.grad);
    auto* __restrict exp_avg = static_cast<State*>(range.exp_avg);
    auto* __restrict exp_avg_sq = static_cast<State*>(range.exp_avg_sq);
    auto* __restrict max_exp_avg_sq = static_cast<State*>(range.max_exp_avg_sq);
    const Coefficients<T> k = rounded<T>(scalars);
    for (int64_t i = 0; i < range.n; ++i) {
        T p = Format<P>::load(param[i]);
        T m = Format<S>::load(exp_avg[i]);
        T v = Format<S>::load(exp_avg_sq[i]);
        T vmax = AMSGRAD ? Format<S>::load(max_exp_avg_sq[i]) : T(0);
        adamw_element<AMSGRAD>(p, T(Format<G>::load(grad[i])), m, v, vmax, k);
        param[i] = Format<P>::store(p);
        exp_avg[i] = Format<S>::store(m);
        exp_avg_sq[i] = Format<S>::store(v);
        if (AMSGRAD) max_exp_avg_sq[i] = Format<S>::store(vmax);
    }
}

// Lanes are part of the result, not of the machine: element i is always added to lane i % LANES.
constexpr int LANES = 16;

template <DType G>
GradSum measure_loop(const void* address, int64_t n) {
    const auto* grad = static_cast<const typename Format<G>::Stored*>(address);
    double lanes[LANES] = {};
    int32_t nonfinite[LANES] = {};
    const int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int j = 0; j < LANES; ++j) {
            const auto g = Format<G>::load(grad[i + j]);
            lanes[j] += double(g) * double(g);
            nonfinite[j] += !is_finite(g);
        }
    }
    for (int j = 0; j < n - whole; ++j) {
        const auto g = Format<G>::load(grad[whole + j]);
        lanes[j] += double(g) * double(g);
        nonfinite[j] += !is_finite(g);
    }
    GradSum sum = {0.0, 0};
    for (int j = 0; j < LANES; ++j) {
        sum.squares += lanes[j];
        sum.nonfinite += nonfinite[j];
    }
    return sum;
}

}  // namespace
}  // namespace GREEDYLR_ISA

#define GREEDYLR_UPDATE(P, G, S) {update_loop<P, G, S, false>, update_loop<P, G, S, true>},
const Loops GREEDYLR_CONCAT(loops_, GREEDYLR_ISA) = {
    GREEDYLR_STRING(GREEDYLR_ISA),
    {GREEDYLR_MIXES(GREEDYLR_UPDATE)},
    {measure_loop<F32>, measure_loop<F64>, measure_loop<BF16>, measure_loop<F16>},
};

}  // namespace greedylr
