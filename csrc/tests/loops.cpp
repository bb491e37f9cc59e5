// The CPU loops through the table: every mix, size, instruction set and number of threads gives the bits of
// the element function called one by one, and touches nothing else. Meant for the address and undefined
// sanitizers; with the thread sanitizer it checks how chunks are shared out.
#include "../cpu/loops.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "../core/control.h"
#include "../cpu/step.h"
#include "check.h"
#include "guarded.h"

using namespace greedylr;

namespace {

constexpr int64_t CHUNKS[] = {48, 1100};  // less than a block of staging, and several with a remainder
constexpr int64_t TENSORS = 132;

// Every size from 0 to 129, and two of several blocks.
int64_t last_size = 1031;
int64_t size_of(int64_t tensor) { return tensor < 130 ? tensor : tensor == 130 ? 257 : last_size; }

// Tensors of all sizes and one mix; every 7th has no gradient, of three F32 parameters two have a copy.
struct Problem {
    Problem(int mix_index, bool amsgrad, double beta1)
        : mix(mix_index), chunk(CHUNKS[amsgrad]), hyper{beta1, 0.99, 1e-6, 0.1, 1.0, 0.0} {
        const Mix m = MIXES[mix_index];
        const DType types[STEP] = {m.param, m.grad, m.state, m.state, m.state, F32, F32, F32, BF16, F16};
        for (int row = 0; row < STEP; ++row) {
            for (int64_t n = 0; n < TENSORS; ++n) {
                arrays[row].emplace_back(types[row], size_of(n), unsigned(row * 1000 + n), row >= EXP_AVG_SQ);
                const bool absent = (row == GRAD && n % 7 == 3) || (row == MAX_EXP_AVG_SQ && !amsgrad) ||
                                    (row >= REMAINDER && row < COPY_BF16);
                const bool no_copy = row >= COPY_BF16 && (m.param != F32 || n % 3 != row - COPY_BF16);
                ptrs.push_back(absent || no_copy ? 0 : int64_t(arrays[row].back().at(0)));
            }
        }
        for (int64_t n = 0; n < TENSORS; ++n) {
            numel.push_back(size_of(n));
            for (int64_t k = 0; k * chunk < size_of(n); ++k) {
                chunk_tensor.push_back(int32_t(n));
                chunk_index.push_back(int32_t(k));
            }
            steps.push_back(float(n % 3));
            norm_weight.push_back(1.0 / double(1 + n % 3));
        }
        for (float& count : steps) ptrs.push_back(reinterpret_cast<int64_t>(&count));
        ptrs.resize(size_t(ROW_COUNT * TENSORS), 1);  // no 8 bits and no masters here: see stored.cpp
        group.assign(size_t(TENSORS), 0);
        control.assign(size_t(block_begin(block::count, 1)), 0.0);
        control[slot::n_groups] = control[slot::grad_scale] = 1.0;
        control[slot::grad_multiplier] = 0.75;
        control[slot::max_grad_norm] = INFINITY;
        *lr_blocks(control.data()).lr = 0.01;
    }

    Stepper stepper(bool l1 = true) {
        const TensorTable table = {ptrs.data(),
                                   numel.data(),
                                   group.data(),
                                   hyper,
                                   norm_weight.data(),
                                   chunk_tensor.data(),
                                   chunk_index.data(),
                                   TENSORS,
                                   int64_t(chunk_tensor.size()),
                                   chunk,
                                   control.data(),
                                   nullptr,
                                   l1,
                                   false};
        return Stepper(table, {{mix, 0, int64_t(chunk_tensor.size())}});
    }

    template <typename T, bool AMSGRAD, bool FROM_OLD>
    void update_one_by_one() {
        for (int64_t n = 0; n < TENSORS; ++n) {
            if (ptrs[size_t(GRAD * TENSORS + n)] == 0) continue;
            const auto k =
                rounded<T>(coefficients(hyper, 0.01, control[slot::grad_multiplier], steps[size_t(n)]));
            CHECK(starts_at_old(k) == FROM_OLD, "beta1 %g", hyper[BETA1]);
            for (int64_t i = 0; i < size_of(n); ++i) {
                T x[STEP];
                for (int row = 0; row < STEP; ++row) x[row] = T(arrays[row][size_t(n)].value(i));
                adamw_element<AMSGRAD, FROM_OLD>(x[PARAM], x[GRAD], x[EXP_AVG], x[EXP_AVG_SQ],
                                                 x[MAX_EXP_AVG_SQ], k);
                for (int row : {int(PARAM), int(EXP_AVG), int(EXP_AVG_SQ), int(MAX_EXP_AVG_SQ)}) {
                    if (row != MAX_EXP_AVG_SQ || AMSGRAD) arrays[row][size_t(n)].set(i, double(x[row]));
                }
                for (int row : {int(COPY_BF16), int(COPY_F16)}) {
                    const bool there = ptrs[size_t(row * TENSORS + n)] != 0;
                    if (there) arrays[row][size_t(n)].set(i, double(x[PARAM]));
                }
            }
        }
    }

    template <typename T>
    void update_one_by_one(bool amsgrad) {
        const bool from_old = 1.0 - hyper[BETA1] < 0.5;
        amsgrad ? (from_old ? update_one_by_one<T, true, true>() : update_one_by_one<T, true, false>())
                : (from_old ? update_one_by_one<T, false, true>() : update_one_by_one<T, false, false>());
    }

    int mix;
    int64_t chunk;
    double hyper[HYPER_COUNT];
    std::vector<Guarded> arrays[STEP];
    std::vector<int64_t> ptrs, numel;
    std::vector<int32_t> group, chunk_tensor, chunk_index;
    std::vector<float> steps;
    std::vector<double> norm_weight, control;
};

double nan_of_ones() {
    const uint64_t bits = ~uint64_t(0);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// NaN of every kind, signalling ones too, here and there in every array of bf16.
void poison(Problem& p, double multiplier) {
    p.control[slot::grad_multiplier] = multiplier;
    constexpr uint16_t PATTERNS[] = {0x7fc0, 0xffc0, 0x7f81, 0xff80 | 1, 0x7fff, 0xffff};
    for (int row = 0; row < STEP; ++row) {
        for (int64_t n = 1; n < TENSORS; n += 2) {
            for (int64_t i = row; i < size_of(n); i += 97) {
                memcpy(p.arrays[row][size_t(n)].at(i), &PATTERNS[(n + i) % 6], 2);
            }
        }
    }
}

void check_update(int mix, bool amsgrad, double beta1, int threads, const double* poisoned = nullptr) {
    Problem expected(mix, amsgrad, beta1), actual(mix, amsgrad, beta1);
    if (poisoned != nullptr) {
        poison(expected, *poisoned);
        poison(actual, *poisoned);
    }
    MIXES[mix].param == F64 ? expected.update_one_by_one<double>(amsgrad)
                            : expected.update_one_by_one<float>(amsgrad);
    actual.stepper().update(threads, true);
    for (int row = 0; row < STEP; ++row) {
        for (size_t n = 0; n < size_t(TENSORS); ++n) {
            CHECK(actual.arrays[row][n] == expected.arrays[row][n], "%s mix %d amsgrad %d row %d tensor %zu",
                  loops().isa, mix, amsgrad, row, n);
            CHECK(actual.arrays[row][n].guard_intact(), "%s mix %d row %d tensor %zu", loops().isa, mix, row,
                  n);
        }
    }
}

// Sums as measured first, by any set of instructions and any number of threads.
struct Sums {
    double squares = NAN, absolute = NAN;
};

void check_sum(double sum, long double exact, double& first, int mix) {
    CHECK(fabsl(sum - exact) <= 1e-13L * exact, "%s mix %d: %.17g", loops().isa, mix, sum);
    CHECK(isnan(first) || sum == first, "%s mix %d: not the bits of another set", loops().isa, mix);
    first = sum;
}

void check_measure(int mix, Sums& first, int threads, bool l1) {
    Problem p(mix, false, 0.9);
    p.control[slot::grad_abs_sum] = -1;
    long double squares = 0, absolute = 0;
    for (int64_t n = 0; n < TENSORS; ++n) {
        if (p.ptrs[size_t(GRAD * TENSORS + n)] == 0) continue;
        const long double weight = p.norm_weight[size_t(n)];
        for (int64_t i = 0; i < size_of(n); ++i) {
            const long double g = p.arrays[GRAD][size_t(n)].value(i);
            squares += weight * g * g;
            absolute += weight * fabsl(g);
        }
    }
    p.stepper(l1).measure(threads, true);
    check_sum(p.control[slot::grad_sq_sum], squares, first.squares, mix);
    if (l1) check_sum(p.control[slot::grad_abs_sum], absolute, first.absolute, mix);
    CHECK(l1 || p.control[slot::grad_abs_sum] == -1, "%s mix %d: nobody asked for it", loops().isa, mix);
    CHECK(p.control[slot::grad_nonfinite] == 0, "%s mix %d", loops().isa, mix);
    p.arrays[GRAD][131].set(1030, INFINITY);
    p.stepper(l1).measure(threads, true);
    CHECK(!l1 || isinf(p.control[slot::grad_abs_sum]), "%s mix %d: inf in the last element", loops().isa,
          mix);
    CHECK(p.control[slot::grad_nonfinite] > 0, "%s mix %d: inf in the last element", loops().isa, mix);
}

// Enough elements for four threads give the bits of one. The thread sanitizer watches.
void check_threads() {
    last_size = 150'000;
    Problem one(0, true, 0.9), four(0, true, 0.9);
    Stepper alone = one.stepper(), shared = four.stepper();
    for (int step = 0; step < 3; ++step) {
        alone.measure(1, true);
        alone.update(1, true);
        // In parts, as when other ranks are waited for in between.
        shared.measure(4, false);
        shared.clip();
        shared.update(4, false);
        shared.control();
    }
    for (int row = 0; row < STEP; ++row) CHECK(one.arrays[row] == four.arrays[row], "row %d", row);
    CHECK(one.control == four.control && one.steps == four.steps, "control and step counts");
    last_size = 1031;
}

void check_skip_and_steps() {
    Problem before(0, true, 0.9), p(0, true, 0.9);
    p.control[slot::skip] = 1.0;
    Stepper stepper = p.stepper();
    stepper.update(2, true);
    for (int row = 0; row < STEP; ++row) CHECK(p.arrays[row] == before.arrays[row], "skipped, row %d", row);
    CHECK(p.steps == before.steps && p.control[slot::skipped] == 1, "a skipped step is only counted");
    p.control[slot::skip] = 0.0;
    stepper.update(2, true);
    for (int64_t n = 0; n < TENSORS; ++n) {
        const float taken = n % 7 == 3 ? 0.0f : 1.0f;
        CHECK(p.steps[size_t(n)] == before.steps[size_t(n)] + taken, "step count of tensor %d", int(n));
    }
}

}  // namespace

int main() {
    for (int mix = 0; mix < MIX_COUNT; ++mix) {
        if (MIXES[mix].state == Q8 || has_master(MIXES[mix].param)) continue;
        Sums sums;
        for (const Loops* const* set = available_loops(); *set != nullptr; ++set) {
            CHECK(force_loops((*set)->isa), "%s", (*set)->isa);
            for (bool amsgrad : {false, true}) {
                for (double beta1 : {0.9, 0.3}) check_update(mix, amsgrad, beta1, 1 + 3 * amsgrad);
                for (double multiplier : {0.75, nan_of_ones()}) {
                    if (mix == find_mix(BF16, BF16, BF16)) check_update(mix, amsgrad, 0.9, 1, &multiplier);
                }
            }
            for (bool l1 : {false, true}) {
                check_measure(mix, sums, 1, l1);
                check_measure(mix, sums, 4, l1);
            }
        }
    }
    check_threads();
    check_skip_and_steps();
}
