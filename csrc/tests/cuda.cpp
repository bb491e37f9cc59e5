// The CUDA kernels' own source on the emulated GPU, through the table: every mix gives the bits of the CPU's
// loops, in every schedule and with any number of blocks, and touches nothing else. Meant for the sanitizers;
// the thread sanitizer sees the GPU's threads.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "../core/control.h"
#include "../core/spikes.h"
#include "../cuda/step.h"
#include "check.h"
#include "cuda_problem.h"
#include "emulation.h"

using namespace greedylr;

namespace {

// How a GPU may run the same launches: the order of threads, and how many blocks at a time. The time of the
// thread sanitizer grows with the square of these.
struct Schedule {
    uint64_t seed;
    unsigned blocks;
};
constexpr Schedule SCHEDULES[] = {{0, 1}, {1, 2}, {2, 5}};

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
            p->control[slot::spike_window] = alone ? 0 : SPIKES;
            if (step == 2) p->arrays[GRAD][TENSORS - 1].set(p->size(TENSORS - 1) - 1, INFINITY);
            if (step < 2) p->set_special_groups(step == 0);
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
            skip_spikes(expected.control.data());
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
        if (p.has(GRAD, n) && p.size(n) > 8) seen[n >= SECOND][p.has(MAX_EXP_AVG_SQ, n)][from_old] = true;
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

// A warp's sums over rings are those of one thread, and so are its decisions.
void check_spikes(int size) {
    Problem p(0, false);
    p.control.resize(p.control.size() - 2 * SPIKES + size_t(2 * size));
    p.control[slot::spike_window] = size;
    p.control[slot::spike_sigmas] = 2.0;
    for (int s : {slot::spike_losses, slot::losses_head, slot::spike_norms, slot::norms_head})
        p.control[s] = 0;
    TensorTable table = p.table();
    table.n_tensors = table.n_chunks = 0;
    const Gpu gpu(table, {});
    std::vector<double> expected = p.control;
    uint64_t random = 1;
    for (int step = 0; step < size + 10; ++step) {
        for (auto* control : {&expected, &p.control}) {
            uint64_t next = random;
            for (slot::Slot s : {slot::loss_sum, slot::grad_sq_sum}) {
                next = next * 6364136223846793005u + 1442695040888963407u;
                (*control)[s] = 1.0 + double(next >> 40) * 0x1p-26;
            }
            (*control)[slot::loss_weight] = 1.0;
            if (control == &p.control) random = next;
        }
        run_clip(expected.data());
        skip_spikes(expected.data());
        gpu.stepper.clip(0);
        CHECK(same_bits(p.control, expected), "rings of %d, step %d", size, step);
    }
    CHECK(expected[slot::spikes] > 0 || size < 20, "no spike among rings of %d", size);
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

// How far the mixes are apart that are run, 1 without one: each takes two of them, itself and the next.
int main(int argc, char** argv) {
    const int apart = argc > 1 ? atoi(argv[1]) : 1;
    for (int mix = 0; mix < MIX_COUNT; mix += apart) {
        Sums sums = {{NAN, NAN}, {NAN, NAN}};
        for (const Schedule& schedule : SCHEDULES) check_steps(mix, schedule, sums);
    }
    check_what_a_problem_has();
    check_step_without_reading_gradients();
    for (int size : {2, 40}) check_spikes(size);
    for (int driver : {12000, 13000}) check_send(driver);
}
