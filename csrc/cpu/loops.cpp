// Compiled once per instruction set; the build defines GREEDYLR_ISA and the compiler flags of that set.
#include "loops.h"

#include <math.h>

#include "staging.h"
#include "stored.h"

#define GREEDYLR_PASTE(a, b) a##b
#define GREEDYLR_CONCAT(a, b) GREEDYLR_PASTE(a, b)
#define GREEDYLR_STRINGIFY(a) #a
#define GREEDYLR_STRING(a) GREEDYLR_STRINGIFY(a)

namespace greedylr {
inline namespace GREEDYLR_ISA {
namespace {

// Not inlined: a compiler that inlines a function may forget that its arrays do not overlap, and then does
// not vectorise.
//
// ROOTS: exp_avg_sq comes out as its square root, which 8-bit moments store and the update has to take
// anyway.
template <bool AMSGRAD, bool FROM_OLD, bool ROOTS, typename T>
__attribute__((noinline)) void update_arrays(T* __restrict param, const T* __restrict grad,
                                             T* __restrict exp_avg, T* __restrict exp_avg_sq,
                                             T* __restrict max_exp_avg_sq, int64_t n,
                                             const Coefficients<T>& scalars) {
    const Coefficients<T> k = scalars;
    for (int64_t i = 0; i < n; ++i) {
        T p = param[i], m = exp_avg[i], v = exp_avg_sq[i], vmax = AMSGRAD ? max_exp_avg_sq[i] : T(0);
        adamw_element<AMSGRAD, FROM_OLD>(p, grad[i], m, v, vmax, k);
        param[i] = p;
        exp_avg[i] = m;
        exp_avg_sq[i] = ROOTS ? square_root(v) : v;
        if (AMSGRAD) max_exp_avg_sq[i] = vmax;
    }
}

// The same with a tuner: AdamW's own update is that of a parameter of 0.
template <bool AMSGRAD, bool FROM_OLD, bool ROOTS, typename T>
__attribute__((noinline)) void tune_arrays(T* __restrict param, const T* __restrict grad,
                                           T* __restrict exp_avg, T* __restrict exp_avg_sq,
                                           T* __restrict max_exp_avg_sq, T* __restrict offset, int64_t n,
                                           const Coefficients<T>& scalars, const Moves<T>& by) {
    const Coefficients<T> k = scalars;
    const Moves<T> moves = by;
    for (int64_t i = 0; i < n; ++i) {
        T step = T(0), m = exp_avg[i], v = exp_avg_sq[i], vmax = AMSGRAD ? max_exp_avg_sq[i] : T(0);
        adamw_element<AMSGRAD, FROM_OLD>(step, grad[i], m, v, vmax, k);
        T p = param[i], o = offset[i];
        move_element(p, o, step, moves);
        param[i] = p;
        offset[i] = o;
        exp_avg[i] = m;
        exp_avg_sq[i] = ROOTS ? square_root(v) : v;
        if (AMSGRAD) max_exp_avg_sq[i] = vmax;
    }
}

// While the parameters are still in the first-level cache.
inline void write_copies(const Range& range, int64_t begin, int64_t n) {
    const float* param = static_cast<float*>(range.param) + begin;
    if (range.copy_bf16 != nullptr) narrow<BF16>(param, static_cast<uint16_t*>(range.copy_bf16) + begin, n);
    if (range.copy_f16 != nullptr) narrow<F16>(param, static_cast<uint16_t*>(range.copy_f16) + begin, n);
}

// The general loop: any mix, through blocks in the type of the arithmetic, each by
// arrays(param, grad, moments, begin, n).
template <DType P, DType G, DType S, bool AMSGRAD, typename Arrays>
void update_blocks(const Range& range, int64_t begin, const Arrays& arrays) {
    using T = typename Format<P>::Math;
    Parameter<P, T> param(range);
    Staged<G, T> grad(const_cast<void*>(range.grad));  // opened only
    Moments<S, T, AMSGRAD> moments(range);
    Randoms<S == Q8 || P == BF16_R8> randoms(range);
    for (; begin < range.n; begin += BLOCK) {
        const int64_t n = range.n - begin < BLOCK ? range.n - begin : BLOCK;
        if (const int64_t next = begin + BLOCK; next < range.n) {
            param.fetch(next);
            grad.fetch(next);
            moments.fetch(next);
        }
        randoms.open(begin, n);
        moments.open(begin, n);
        arrays(param.open(begin, n), grad.open(begin, n), moments, begin, n);
        param.store(begin, n, randoms.bits());
        moments.store(begin, n, randoms.bits());
        if constexpr (P == F32) write_copies(range, begin, n);
    }
}

// bf16 everywhere, two neighbours as one 32-bit word: halves become floats by a shift or a mask, so that the
// whole loop has elements of one width and needs no shuffles. At most PAIRS of them.
//
// Parameters are rounded in a loop of their own. Their rounding waits for the division, at the end of a chain
// that is as long as some processors can look ahead: in one loop it would hold up the next elements' start.
template <bool AMSGRAD, bool FROM_OLD>
__attribute__((noinline)) void update_bf16_pairs(Pair* __restrict param, const Pair* __restrict grad,
                                                 Pair* __restrict exp_avg, Pair* __restrict exp_avg_sq,
                                                 Pair* __restrict max_exp_avg_sq, int64_t n,
                                                 const Coefficients<float>& scalars) {
    const Coefficients<float> k = scalars;
    alignas(64) float first[PAIRS], second[PAIRS];
    for (int64_t i = 0; i < n; ++i) {
        float p0 = first_of(param[i]), p1 = second_of(param[i]);
        float m0 = first_of(exp_avg[i]), m1 = second_of(exp_avg[i]);
        float v0 = first_of(exp_avg_sq[i]), v1 = second_of(exp_avg_sq[i]);
        float vmax0 = AMSGRAD ? first_of(max_exp_avg_sq[i]) : 0.0f;
        float vmax1 = AMSGRAD ? second_of(max_exp_avg_sq[i]) : 0.0f;
        adamw_element<AMSGRAD, FROM_OLD>(p0, first_of(grad[i]), m0, v0, vmax0, k);
        adamw_element<AMSGRAD, FROM_OLD>(p1, second_of(grad[i]), m1, v1, vmax1, k);
        first[i] = p0;
        second[i] = p1;
        exp_avg[i] = joined(m0, m1);
        exp_avg_sq[i] = joined(v0, v1);
        if (AMSGRAD) max_exp_avg_sq[i] = joined(vmax0, vmax1);
    }
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        param[i] = joined(first[i], second[i]);
        const uint32_t a = bits_of(first[i]) << 1, b = bits_of(second[i]) << 1;
        largest = largest > a ? largest : a;
        largest = largest > b ? largest : b;
    }
    if (largest <= INFINITY_SHIFTED) return;
    Pair* const written[] = {param, exp_avg, exp_avg_sq, max_exp_avg_sq};
    for (int i = 0; i < (AMSGRAD ? 4 : 3); ++i) one_nan(written[i], n);
}

template <DType P, DType G, DType S, bool AMSGRAD, bool FROM_OLD>
void update_range(const Range& range, const Coefficients<typename Format<P>::Math>& k) {
    int64_t begin = 0;
    if constexpr (P == BF16 && G == BF16 && S == BF16) {
        const auto pairs = [&begin](auto* array) {
            return array == nullptr ? nullptr : static_cast<Pair*>(const_cast<void*>(array)) + begin / 2;
        };
        while (range.n - begin >= 2 && keeps_nan(k)) {
            const int64_t n = range.n - begin < 2 * PAIRS ? (range.n - begin) / 2 : PAIRS;
            update_bf16_pairs<AMSGRAD, FROM_OLD>(pairs(range.param), pairs(range.grad), pairs(range.exp_avg),
                                                 pairs(range.exp_avg_sq), pairs(range.max_exp_avg_sq), n, k);
            begin += 2 * n;
        }
    }
    using T = typename Format<P>::Math;
    update_blocks<P, G, S, AMSGRAD>(
        range, begin, [&k](T* param, const T* grad, Moments<S, T, AMSGRAD>& moments, int64_t, int64_t n) {
            update_arrays<AMSGRAD, FROM_OLD, S == Q8>(param, grad, moments.exp_avg, moments.exp_avg_sq,
                                                      moments.max_exp_avg_sq, n, k);
        });
}

template <DType P, DType G, DType S, bool AMSGRAD, bool FROM_OLD>
void tune_range(const Range& range, const Coefficients<typename Format<P>::Math>& k,
                const Moves<typename Format<P>::Math>& by) {
    using T = typename Format<P>::Math;
    T* const offset = static_cast<T*>(range.offset);
    update_blocks<P, G, S, AMSGRAD>(
        range, 0, [&](T* param, const T* grad, Moments<S, T, AMSGRAD>& moments, int64_t begin, int64_t n) {
            fetch_block(offset + begin + (begin + BLOCK < range.n ? BLOCK : 0));
            tune_arrays<AMSGRAD, FROM_OLD, S == Q8>(param, grad, moments.exp_avg, moments.exp_avg_sq,
                                                    moments.max_exp_avg_sq, offset + begin, n, k, by);
        });
}

template <DType P, DType G, DType S, bool AMSGRAD>
void tuned_loop(const Range& range, const Coefficients<double>& scalars, const Moves<double>& by) {
    using T = typename Format<P>::Math;
    const auto k = rounded<T>(scalars);
    if (starts_at_old(k)) {
        tune_range<P, G, S, AMSGRAD, true>(range, k, rounded<T>(by));
    } else {
        tune_range<P, G, S, AMSGRAD, false>(range, k, rounded<T>(by));
    }
}

template <DType P, DType G, DType S, bool AMSGRAD>
void update_loop(const Range& range, const Coefficients<double>& scalars) {
    const auto k = rounded<typename Format<P>::Math>(scalars);
    if (starts_at_old(k)) {
        update_range<P, G, S, AMSGRAD, true>(range, k);
    } else {
        update_range<P, G, S, AMSGRAD, false>(range, k);
    }
}

// Lanes are part of the result, not of the machine: element i is always added to lane i % LANES.
constexpr int LANES = 64;

template <DType G, bool L1>
GradSum measure_loop(const void* address, int64_t n) {
    using T = typename Format<G>::Math;
    double lanes[LANES] = {}, absolute[L1 ? LANES : 1] = {};
    int64_t overflowing[LANES] = {};  // the square of a finite double can overflow, that of a float cannot
    Staged<G, T> array(const_cast<void*>(address));  // opened only
    for (int64_t begin = 0; begin < n; begin += LANES) {
        const int64_t count = n - begin < LANES ? n - begin : LANES;
        const T* grad = array.open(begin, count);
        for (int64_t j = 0; j < count; ++j) {
            lanes[j] += double(grad[j]) * double(grad[j]);
            if (L1) absolute[j] += fabs(double(grad[j]));
            if (G == F64) overflowing[j] += !is_finite(grad[j]);
        }
    }
    GradSum sum = {0.0, 0.0, 0};
    for (int j = 0; j < LANES; ++j) {
        sum.squares += lanes[j];
        if (L1) sum.absolute += absolute[j];
        sum.nonfinite += overflowing[j];
    }
    if (G != F64) sum.nonfinite = !is_finite(sum.squares);
    return sum;
}

// Of gradients that `measure_loop` has just read, with parameters and offsets.
template <DType P, DType G>
MovedSum moved_loop(const Range& range) {
    using T = typename Format<P>::Math;
    double squares[LANES] = {}, grads[LANES] = {}, params[LANES] = {};
    Parameter<P, T> param(range);
    Staged<G, T> grad(const_cast<void*>(range.grad));  // opened only
    const T* const offset = static_cast<const T*>(range.offset);
    for (int64_t begin = 0; begin < range.n; begin += LANES) {
        const int64_t count = range.n - begin < LANES ? range.n - begin : LANES;
        const T *x = param.open(begin, count), *g = grad.open(begin, count), *o = offset + begin;
        for (int64_t j = 0; j < count; ++j) {
            squares[j] += double(x[j]) * double(x[j]);
            grads[j] += double(g[j]) * double(o[j]);
            params[j] += double(x[j]) * double(o[j]);
        }
    }
    MovedSum sum = {0.0, 0.0, 0.0};
    for (int j = 0; j < LANES; ++j) {
        sum.param_squares += squares[j];
        sum.grad_offset += grads[j];
        sum.param_offset += params[j];
    }
    return sum;
}

}  // namespace
}  // namespace GREEDYLR_ISA

// 8-bit moments have no largest ones.
template <DType P, DType G, DType S>
constexpr UpdateLoop amsgrad_loop() {
    if constexpr (S == Q8) {
        return nullptr;
    } else {
        return update_loop<P, G, S, true>;
    }
}

template <DType P, DType G, DType S, bool AMSGRAD>
constexpr TunedLoop tuned_loop_of() {
    if constexpr (P == BF16 || P == F16 || (S == Q8 && AMSGRAD)) {
        return nullptr;
    } else {
        return tuned_loop<P, G, S, AMSGRAD>;
    }
}

template <DType P, DType G>
constexpr MovedLoop moved_loop_of() {
    if constexpr (P == BF16 || P == F16) {
        return nullptr;
    } else {
        return moved_loop<P, G>;
    }
}

#define GREEDYLR_TUNED(P, G, S) {tuned_loop_of<P, G, S, false>(), tuned_loop_of<P, G, S, true>()},
#define GREEDYLR_MOVED(P, G, S) moved_loop_of<P, G>(),
#define GREEDYLR_UPDATE(P, G, S) {update_loop<P, G, S, false>, amsgrad_loop<P, G, S>()},
#define GREEDYLR_MEASURE(G) {measure_loop<G, false>, measure_loop<G, true>}
const Loops GREEDYLR_CONCAT(loops_, GREEDYLR_ISA) = {
    GREEDYLR_STRING(GREEDYLR_ISA),
    {GREEDYLR_MIXES(GREEDYLR_UPDATE)},
    {GREEDYLR_MEASURE(F32), GREEDYLR_MEASURE(F64), GREEDYLR_MEASURE(BF16), GREEDYLR_MEASURE(F16)},
    {GREEDYLR_MIXES(GREEDYLR_TUNED)},
    {GREEDYLR_MIXES(GREEDYLR_MOVED)},
};

}  // namespace greedylr
