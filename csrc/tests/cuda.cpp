// The CUDA kernels' own source on the emulated GPU, through the table: every mix gives the bits of the CPU's
// loops, in every schedule and with any number of blocks, and touches nothing else. Meant for the sanitizers;
// the thread sanitizer sees the GPU's threads.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "../core/control.h"
#include "../cpu/loops.h"
#include "../cuda/step.h"
#include "check.h"
#include "emulation.h"
#include "guarded.h"

using namespace greedylr;

namespace {

constexpr int64_t CHUNK = 256, TENSORS = 140, SECOND = 100, GROUPS = 3;
constexpr double HYPER[GROUPS][HYPER_COUNT] = {
    {0.9, 0.99, 1e-6, 0.1, 0.0, 0.0}, {0.3, 0.95, 1e-8, 0.0, 1.0, 0.0}, {0.9, 0.999, 1e-6, 0.01, 1.0, 0.0}};

// How a GPU may run the same launches: the order of threads, and how many blocks at a time. The time of the
// thread sanitizer grows with the square of these.
struct Schedule {
    uint64_t seed;
    unsigned blocks;
};
constexpr Schedule SCHEDULES[] = {{0, 1}, {1, 2}, {2, 5}};

// Every size from 0 to 129, and some of several chunks: exact, one less, one more, behind a head of up to 7.
int64_t size_of(int64_t tensor) {
    constexpr int64_t LARGE[] = {CHUNK - 1,     CHUNK,         CHUNK + 1,     CHUNK + 7, CHUNK + 8,
                                 2 * CHUNK - 1, 2 * CHUNK + 1, 2 * CHUNK + 9, 1500,      131};
    return tensor < 130 ? tensor : LARGE[tensor - 130];
}

// Two mixes in one table, the second from tensor 100 on; a third of the tensors with amsgrad, every 7th
// without a gradient, streams on and off multiples of 16 bytes, alike and not.
struct Problem {
    Problem(int first_mix, bool long_window, bool with_l1 = false)
        : mixes{first_mix, (first_mix + 1) % MIX_COUNT}, l1(with_l1) {
        for (int64_t n = 0; n < TENSORS; ++n) {
            numel.push_back(size_of(n));
            group.push_back(int32_t(n % GROUPS));
            steps.push_back(float(n / 5 % 3));
            norm_weight.push_back(1.0 / double(1 + n % 3));
            for (int64_t k = 0; k * CHUNK < size_of(n); ++k) {
                chunk_tensor.push_back(int32_t(n));
                chunk_index.push_back(int32_t(k));
            }
            if (n == SECOND - 1) first_chunks = int64_t(chunk_tensor.size());
        }
        for (int row = 0; row < STEP; ++row) {
            for (int64_t n = 0; n < TENSORS; ++n) {
                const Mix m = MIXES[mix_of(n)];
                const DType types[STEP] = {m.param, m.grad, m.state, m.state, m.state, BF16, F16};
                const int64_t offset = n % 4 == 0 ? 0 : n % 4 == 1 ? n % 9 : (n + row * (n % 4)) % 9;
                arrays[row].emplace_back(types[row], size_of(n), unsigned(row * 1000 + n), row >= EXP_AVG_SQ,
                                         offset);
                const bool absent = (row == GRAD && n % 7 == 3) ||
                                    (row == MAX_EXP_AVG_SQ && n / GROUPS % 3 != 1) ||
                                    row >= COPY_BF16;  // these kernels leave copies to others
                ptrs.push_back(absent ? 0 : int64_t(arrays[row].back().at(0)));
            }
        }
        for (float& count : steps) ptrs.push_back(reinterpret_cast<int64_t>(&count));
        set_control(long_window ? 700 : 5);
    }

    int mix_of(int64_t tensor) const { return mixes[tensor >= SECOND]; }
    bool has(Row row, int64_t tensor) const { return ptrs[size_t(row * TENSORS + tensor)] != 0; }

    void set_control(int window) {
        control.assign(size_t(block_begin(block::count, GROUPS) + window), 0.0);
        const auto set = [this](slot::Slot s, double x) { control[s] = x; };
        set(slot::kind, double(Kind::GREEDY));
        set(slot::raises, 1);
        set(slot::factor, 0.5);
        set(slot::smooth, 1);
        set(slot::window_size, window);
        set(slot::reset_start, 100);
        set(slot::resets_left, 100);
        set(slot::best, HUGE_VAL);
        set(slot::n_groups, GROUPS);
        set(slot::curve_length, 2);
        set(slot::decay_start, 1);
        set(slot::decay_steps, 2);
        set(slot::grad_scale, 1);
        set(slot::grad_multiplier, 0.75);
        const LrBlocks b = lr_blocks(control.data());
        for (int g = 0; g < GROUPS; ++g) {
            b.lr[g] = b.initial_lr[g] = b.level[g] = 0.01 * (1 + g);
            b.max_lr[g] = 1.0;
        }
    }

    TensorTable table() {
        return {ptrs.data(),
                numel.data(),
                group.data(),
                &HYPER[0][0],
                norm_weight.data(),
                chunk_tensor.data(),
                chunk_index.data(),
                TENSORS,
                int64_t(chunk_tensor.size()),
                CHUNK,
                control.data(),
                CURVE,
                l1};
    }

    std::vector<Launch> launches() const {
        return {{mixes[0], 0, first_chunks},
                {mixes[1], first_chunks, int64_t(chunk_tensor.size()) - first_chunks}};
    }

    // The same step by the CPU's loops, a tensor at a time.
    void update() {
        for (int64_t n = 0; n < TENSORS && control[slot::skip] == 0; ++n) {
            if (!has(GRAD, n)) continue;
            const bool amsgrad = has(MAX_EXP_AVG_SQ, n);
            const auto at = [&](Row row) { return arrays[row][size_t(n)].at(0); };
            const Range range = {
                at(PARAM), at(GRAD), at(EXP_AVG), at(EXP_AVG_SQ), amsgrad ? at(MAX_EXP_AVG_SQ) : nullptr,
                nullptr,   nullptr,  size_of(n)};
            const auto k = coefficients(HYPER[n % GROUPS], lr_of(control.data(), int(n % GROUPS)),
                                        control[slot::grad_multiplier], steps[size_t(n)]);
            loops_baseline.update[mix_of(n)][amsgrad](range, k);
            steps[size_t(n)] += 1;
        }
        run_control(control.data(), CURVE);
    }

    // Adds up the gradients' absolute values to this power.
    long double sum_of_powers(int power) {
        long double sum = 0;
        for (int64_t n = 0; n < TENSORS; ++n) {
            for (int64_t i = 0; has(GRAD, n) && i < size_of(n); ++i)
                sum += norm_weight[size_t(n)] * powl(fabsl(arrays[GRAD][size_t(n)].value(i)), power);
        }
        return sum;
    }

    static constexpr double CURVE[] = {1.0, 0.9, 1.0, 0.7, 0.3};
    const int mixes[2];
    const bool l1;
    std::vector<Guarded> arrays[STEP];
    std::vector<int64_t> ptrs, numel;
    std::vector<int32_t> group, chunk_tensor, chunk_index;
    std::vector<float> steps;
    std::vector<double> norm_weight, control;
    int64_t first_chunks = 0;
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// A stepper on the emulated GPU with the memory of its own that it needs.
class Gpu {
  public:
    Gpu(const TensorTable& table, const std::vector<Launch>& launches)
        : scratch_(size_t(cuda::scratch_bytes())),
          snapshot_(size_t(shown_count(table.control) + 2)),
          stepper(table, launches, scratch_.data(), snapshot_.data(), 0) {}

    // What a host would find: the state of this vector, between two copies of this number.
    bool shows(double number, const std::vector<double>& control) const {
        std::vector<double> expected(snapshot_.size(), number);
        std::copy_n(control.begin() + STATE_BEGIN, snapshot_.size() - 2, expected.begin() + 1);
        return same_bits(snapshot_, expected);
    }

  private:
    std::vector<unsigned char> scratch_;
    std::vector<double> snapshot_;

  public:
    const cuda::Stepper stepper;
};

void compare(Problem& actual, const Problem& expected, const char* step) {
    for (int row = 0; row < STEP; ++row) {
        for (size_t n = 0; n < size_t(TENSORS); ++n) {
            Guarded& found = actual.arrays[row][n];
            CHECK(found == expected.arrays[row][n] && found.guard_intact(), "%s, mix %d row %d tensor %zu",
                  step, actual.mix_of(int64_t(n)), row, n);
        }
    }
    CHECK(actual.steps == expected.steps, "%s, mix %d", step, actual.mixes[0]);
    CHECK(same_bits(actual.control, expected.control), "%s, mix %d", step, actual.mixes[0]);
}

// Measured sums of squares and of absolute values, in step 1 and in step 2.
using Sums = double[2][2];

// A sum that was measured, against the exact one, and the one that the first schedule gave.
void check_sum(double sum, long double exact, bool finite, double& first, int mix) {
    CHECK(finite ? fabsl(sum - exact) <= 1e-13L * exact : !isfinite(sum), "mix %d: %.17g", mix, sum);
    CHECK(isnan(first) || sum == first, "mix %d: a sum of another schedule", mix);
    first = sum;
}

// Plain, clipped under a loss scale, and with an inf in the last gradient. Every other mix has absolute
// values added up too, so that each type of gradient is read both with and without; and every other two run
// on a device that is slow at double.
void check_steps(int mix, const Schedule& schedule, Sums& sums) {
    emulation::set_schedule(schedule.seed);
    emulation::set_resident_blocks(schedule.blocks);
    emulation::set_single_to_double_ratio(mix / 2 % 2 == 0 ? 2 : 64);
    const bool l1 = mix % 2 == 1;
    Problem expected(mix, mix % 2 == 1, l1), actual(mix, mix % 2 == 1, l1);
    const Gpu gpu(actual.table(), actual.launches());
    const char* const steps[] = {"plain", "clipped", "not finite"};
    const bool alone = schedule.blocks != SCHEDULES[0].blocks;  // else other ranks are waited for in between
    for (int step = 0; step < 3; ++step) {
        for (Problem* p : {&expected, &actual}) {
            p->control[slot::loss_sum] = 1.0 + step;
            p->control[slot::loss_weight] = 2.0;
            p->control[slot::max_grad_norm] = step == 1 ? 0.5 : HUGE_VAL;
            p->control[slot::grad_scale] = step == 1 ? 4.0 : 1.0;
            p->control[slot::skip_nonfinite] = step == 2;
            if (step == 2) p->arrays[GRAD][TENSORS - 1].set(size_of(TENSORS - 1) - 1, INFINITY);
        }
        if (step > 0) {
            gpu.stepper.measure(0, alone);
            if (!alone) gpu.stepper.clip(0);
            for (int power = 2; power > (l1 ? 0 : 1); --power) {
                const slot::Slot s = power == 2 ? slot::grad_sq_sum : slot::grad_abs_sum;
                const long double exact = expected.sum_of_powers(power);
                check_sum(actual.control[s], exact, step == 1, sums[step - 1][power - 1], mix);
                expected.control[s] = actual.control[s];
            }
            expected.control[slot::grad_nonfinite] = actual.control[slot::grad_nonfinite];
            run_clip(expected.control.data());
            CHECK(same_bits(actual.control, expected.control), "mix %d, after the norm", mix);
        }
        gpu.stepper.update(0, alone);
        if (!alone) gpu.stepper.control(0);
        expected.update();
        compare(actual, expected, steps[step]);
        CHECK(gpu.shows(step + 1, actual.control), "mix %d, %s", mix, steps[step]);
    }
    CHECK(actual.control[slot::step] == 2 && actual.control[slot::skipped] == 1, "mix %d", mix);
}

// Both ends of torch.lerp, each with and without amsgrad, in both mixes of a table.
void check_what_a_problem_has() {
    const Problem p(0, false);
    bool seen[2][2][2] = {};
    for (int64_t n = 0; n < TENSORS; ++n) {
        const bool from_old = 1.0 - HYPER[n % GROUPS][BETA1] < 0.5;
        if (p.has(GRAD, n) && size_of(n) > 8) seen[n >= SECOND][p.has(MAX_EXP_AVG_SQ, n)][from_old] = true;
    }
    for (int i = 0; i < 8; ++i) CHECK(seen[i / 4][i / 2 % 2][i % 2], "combination %d is not run", i);
}

void check_step_without_reading_gradients() {
    Problem before(0, false), p(0, false);
    const Gpu gpu(p.table(), p.launches());
    p.control[slot::found_inf] = 1.0;
    gpu.stepper.clip(0);
    gpu.stepper.update(0, true);
    for (int row = 0; row < STEP; ++row) CHECK(p.arrays[row] == before.arrays[row], "skipped, row %d", row);
    CHECK(p.steps == before.steps && p.control[slot::skipped] == 1, "a skipped step is only counted");
    TensorTable empty = p.table();
    empty.n_tensors = empty.n_chunks = 0;
    p.control[slot::skip] = 0.0;
    Gpu(empty, {}).stepper.update(0, true);
    CHECK(p.control[slot::step] == 1, "a step of no tensors is a step");
}

void check_send(int driver) {
    emulation::set_driver_version(driver);
    for (int64_t n : {0, 1, 255, 448, 449, 4000, 4001, 8449}) {
        std::vector<int64_t> words(static_cast<size_t>(n)), target(size_t(n + 1), -1);
        for (int64_t i = 0; i < n; ++i) words[size_t(i)] = i * 3;
        cuda::send(target.data(), words.data(), n, 0, 0);
        words.push_back(-1);
        CHECK(target == words, "%d words, driver %d", int(n), driver);
    }
}

}  // namespace

// The number of mixes to run, all without one: each takes two of them, itself and the next.
int main(int argc, char** argv) {
    const int mixes = argc > 1 ? atoi(argv[1]) : MIX_COUNT;
    for (int mix = 0; mix < mixes; ++mix) {
        Sums sums = {{NAN, NAN}, {NAN, NAN}};
        for (const Schedule& schedule : SCHEDULES) check_steps(mix, schedule, sums);
    }
    check_what_a_problem_has();
    check_step_without_reading_gradients();
    for (int driver : {12000, 13000}) check_send(driver);
}
