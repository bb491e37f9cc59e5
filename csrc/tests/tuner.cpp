// Mechanic on the emulated GPU and in the CPU's loops, over the same tables: the same bits of every array,
// whatever the alignment, the schedule and the number of blocks; and sums that are those of long double.
// Meant for the sanitizers.
#include <math.h>
#include <string.h>

#include <vector>

#include "../core/master.h"
#include "../core/mechanic.h"
#include "../cpu/step.h"
#include "../cuda/step.h"
#include "check.h"
#include "cuda_problem.h"
#include "emulation.h"

using namespace greedylr;

namespace {

constexpr int LEARNERS = 6;

// A problem whose parameters have come some way from where they started, at an S of their own.
struct Tuned : Problem {
    explicit Tuned(int first_mix) : Problem(first_mix, false) {
        for (int64_t n = 0; n < TENSORS; ++n) {
            offsets.emplace_back(type(n), size(n), unsigned(7000 + n), false, n % 3 == 0 ? 0 : n % 5);
            ptrs.push_back(int64_t(offsets.back().at(0)));
            written.push_back(1e-3 * double(1 + n % 4));
        }
        for (double& at : written) ptrs.push_back(reinterpret_cast<int64_t>(&at));
        control[slot::tuner_begin] = double(control.size());
        control[slot::tuner_betas] = LEARNERS;
        control.insert(control.end(), {0.01, 1e-6, 1e-8});
        for (int i = 1; i <= LEARNERS; ++i) control.push_back(1.0 - pow(0.1, i));
        control.insert(control.end(), LEARNERS, 1e-3);
        control.insert(control.end(), 3 * LEARNERS, 1e-2);
        control[slot::skip_nonfinite] = 1.0;
        control[slot::max_grad_norm] = 2.0;
        set_special_groups(false);
    }

    DType type(int64_t n) const { return MIXES[mix_of(n)].param == F64 ? F64 : F32; }

    TensorTable table() {
        TensorTable t = Problem::table();
        t.tuned = true;
        return t;
    }

    long double param(int64_t n, int64_t i) {
        const DType p = MIXES[mix_of(n)].param;
        if (!has_master(p)) return arrays[PARAM][size_t(n)].value(i);
        uint16_t high;
        int16_t low16;
        int8_t low8;
        memcpy(&high, arrays[PARAM][size_t(n)].at(i), sizeof high);
        const auto read = [&](auto& low) { memcpy(&low, arrays[REMAINDER][size_t(n)].at(i), sizeof low); };
        if (p == BF16_R8) {
            read(low8);
            return joined_master(high, low8 * 256);
        }
        read(low16);
        return joined_master(high, low16);
    }

    // Checks the three sums in `control` against those of all elements, one by one.
    void check_sums(const double* c, const char* whose) {
        long double sums[3] = {}, sizes[3] = {};
        for (int64_t n = 0; n < TENSORS; ++n) {
            const long double weight = norm_weight[size_t(n)];
            const long double direction = weight / (written[size_t(n)] + 1e-8);
            const int sign = HYPER[n % GROUPS][MAXIMIZE] != 0.0 ? -1 : 1;
            for (int64_t i = 0; has(GRAD, n) && i < size(n); ++i) {
                const long double x = param(n, i), g = arrays[GRAD][size_t(n)].value(i);
                const long double o = offsets[size_t(n)].value(i);
                const long double terms[] = {x * x * weight, g * o * direction * sign, x * o * direction};
                for (int k = 0; k < 3; ++k) {
                    sums[k] += terms[k];
                    sizes[k] += fabsl(terms[k]);
                }
            }
        }
        for (int k = 0; k < 3; ++k) {
            CHECK(fabsl(c[slot::param_sq_sum + k] - sums[k]) <= 1e-13L * sizes[k], "%s, mix %d, sum %d",
                  whose, mixes[0], k);
        }
    }

    std::vector<Guarded> offsets;
    std::vector<double> written;
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

void compare(Tuned& actual, const Tuned& expected, int step) {
    for (size_t n = 0; n < size_t(TENSORS); ++n) {
        for (int row = 0; row < STEP; ++row) {
            Guarded& found = actual.arrays[row][n];
            CHECK(found == expected.arrays[row][n] && found.guard_intact(),
                  "step %d, mix %d row %d tensor %zu", step, actual.mix_of(int64_t(n)), row, n);
        }
        Guarded& offset = actual.offsets[n];
        CHECK(offset == expected.offsets[n] && offset.guard_intact(), "step %d, mix %d, offset of tensor %zu",
              step, actual.mix_of(int64_t(n)), n);
    }
    CHECK(actual.steps == expected.steps && same_bits(actual.written, expected.written), "step %d", step);
    CHECK(same_bits(actual.control, expected.control), "step %d, mix %d", step, actual.mixes[0]);
}

// Two steps, and one that is skipped. The sums of the GPU, which has another order, become those of the CPU.
void check_steps(int mix, uint64_t seed, unsigned blocks) {
    emulation::set_schedule(seed);
    emulation::set_resident_blocks(blocks);
    emulation::set_single_to_double_ratio(mix % 2 == 0 ? 2 : 64);
    Tuned expected(mix), actual(mix);
    std::vector<unsigned char> scratch(size_t(cuda::scratch_bytes()));
    const cuda::Stepper gpu(actual.table(), actual.launches(), scratch.data(), nullptr, 0);
    Stepper cpu(expected.table(), expected.launches());
    for (int step = 0; step < 3; ++step) {
        for (Tuned* p : {&expected, &actual}) {
            p->control[slot::loss_sum] = p->control[slot::loss_weight] = 1.0;
            p->control[slot::grad_scale] = step == 1 ? 4.0 : 1.0;
            if (step == 2) p->arrays[GRAD][TENSORS - 1].set(0, INFINITY);
        }
        gpu.measure(0, false);
        cpu.measure(1, false);
        if (step < 2) {
            actual.check_sums(actual.control.data(), "GPU");
            actual.check_sums(expected.control.data(), "CPU");
        }
        for (int s = slot::grad_sq_sum; s <= slot::param_moved_sum; ++s)
            expected.control[s] = actual.control[s];
        if (blocks == 1) {
            gpu.clip(0);
            gpu.update(0, false);
            gpu.control(0);
        } else {
            gpu.clip(0);
            gpu.update(0, true);
        }
        cpu.clip();
        cpu.update(1, true);
        compare(actual, expected, step);
    }
    CHECK(actual.control[slot::step] == 2 && actual.control[slot::skipped] == 1, "mix %d", mix);
    CHECK(actual.control[slot::tuner_scale] > 0 && actual.written[3] == 1e-3 * 4 &&
              actual.written[0] == actual.control[slot::tuner_scale],
          "mix %d", mix);
}

// A measurement that goes on to the clip and the learners by itself.
void check_in_one_launch() {
    emulation::set_schedule(3);
    emulation::set_resident_blocks(5);
    Tuned apart(0), together(0);
    for (Tuned* p : {&apart, &together}) {
        p->control[slot::spike_window] = 0.0;  // only the clip alone skips spikes
        std::vector<unsigned char> scratch(size_t(cuda::scratch_bytes()));
        const cuda::Stepper gpu(p->table(), p->launches(), scratch.data(), nullptr, 0);
        gpu.measure(0, p == &together);
        if (p == &apart) gpu.clip(0);
    }
    CHECK(same_bits(apart.control, together.control), "clip and learners after the measurement");
}

}  // namespace

int main() {
    for (int mix = 0; mix < MIX_COUNT; ++mix) {
        const Mix first = MIXES[mix], second = MIXES[(mix + 1) % MIX_COUNT];
        const auto tunable = [](const Mix& m) { return m.param != BF16 && m.param != F16; };
        if (!tunable(first) || !tunable(second)) continue;
        check_steps(mix, 0, 1);
        check_steps(mix, 2, 5);
    }
    check_in_one_launch();
}
