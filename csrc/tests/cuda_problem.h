// A table of two mixes for the CUDA kernels, and the same step by the CPU's loops.
#pragma once

#include <math.h>

#include <vector>

#include "../core/control.h"
#include "../core/eight_bit.h"
#include "../cpu/loops.h"
#include "guarded.h"

namespace greedylr {

constexpr int64_t CHUNK = 256, TENSORS = 140, SECOND = 100, GROUPS = 3;
constexpr int SPIKES = 40;  // in each ring: some lanes of a warp have two
constexpr double HYPER[GROUPS][HYPER_COUNT] = {
    {0.9, 0.99, 1e-6, 0.1, 0.0, 0.0}, {0.3, 0.95, 1e-8, 0.0, 1.0, 0.0}, {0.9, 0.999, 1e-6, 0.01, 1.0, 2.5}};

// Every size from 0 to 129, and some of several chunks: exact, one less, one more, behind a head of up to 7.
inline int64_t size_of(int64_t tensor) {
    constexpr int64_t LARGE[] = {CHUNK - 1,     CHUNK,         CHUNK + 1,     CHUNK + 7, CHUNK + 8,
                                 2 * CHUNK - 1, 2 * CHUNK + 1, 2 * CHUNK + 9, 1500,      131};
    return tensor < 130 ? tensor : LARGE[tensor - 130];
}

// Tensors with 8-bit moments are whole groups.
inline int64_t size_of(int64_t tensor, const Mix& mix) {
    const int64_t size = size_of(tensor);
    return mix.state == Q8 ? (size + GROUP - 1) / GROUP * GROUP : size;
}

// Where a part lies in the whole parameter: whole, in runs of one or a few groups, across 2^32.
inline Place place_of(int64_t tensor, int64_t size) {
    const int64_t run = tensor % 4 == 1 ? GROUP : tensor % 4 == 2 ? 3 * GROUP : size + tensor % 2;
    const int64_t first = tensor % 3 == 0 ? (int64_t(1) << 32) - 2 * GROUP : tensor * 100 * GROUP;
    return {0, first, run > 0 ? run : 1, run + tensor % 5 * GROUP, tensor, 0.0f};
}

// Two mixes in one table, the second from tensor 100 on; a third of the tensors with amsgrad, every 7th
// without a gradient, streams on and off multiples of 16 bytes, alike and not.
struct Problem {
    Problem(int first_mix, bool long_window, bool with_l1 = false)
        : mixes{first_mix, (first_mix + 1) % MIX_COUNT}, l1(with_l1) {
        for (int64_t n = 0; n < TENSORS; ++n) {
            numel.push_back(size(n));
            group.push_back(int32_t(n % GROUPS));
            steps.push_back(float(n / 5 % 3));
            norm_weight.push_back(1.0 / double(1 + n % 3));
            for (int64_t k = 0; k * CHUNK < size(n); ++k) {
                chunk_tensor.push_back(int32_t(n));
                chunk_index.push_back(int32_t(k));
            }
            if (n == SECOND - 1) first_chunks = int64_t(chunk_tensor.size());
        }
        for (int row = 0; row < STEP; ++row) {
            for (int64_t n = 0; n < TENSORS; ++n) {
                const Mix m = MIXES[mix_of(n)];
                const DType remainder = m.param == BF16_R16 ? F16 : Q8;  // any bits of that size
                const DType types[STEP] = {has_master(m.param) ? BF16 : m.param,
                                           m.grad,
                                           m.state,
                                           m.state,
                                           m.state,
                                           remainder,
                                           F32,
                                           F32,
                                           BF16,
                                           F16};
                const int64_t offset = n % 4 == 0 ? 0 : n % 4 == 1 ? n % 9 : (n + row * (n % 4)) % 9;
                const bool scales = row == EXP_AVG_SCALE || row == EXP_AVG_SQ_SCALE;
                arrays[row].emplace_back(types[row], scales ? size(n) / GROUP : size(n),
                                         unsigned(row * 1000 + n), row >= EXP_AVG_SQ && row != REMAINDER,
                                         offset);
                const bool absent = (row == GRAD && n % 7 == 3) ||
                                    (row == MAX_EXP_AVG_SQ && (n / GROUPS % 3 != 1 || m.state == Q8)) ||
                                    (row == REMAINDER && !has_master(m.param)) || (scales && m.state != Q8) ||
                                    row >= COPY_BF16;  // these kernels leave copies to others
                ptrs.push_back(absent ? 0 : int64_t(arrays[row].back().at(0)));
            }
        }
        for (float& count : steps) ptrs.push_back(reinterpret_cast<int64_t>(&count));
        for (int64_t Place::* value : {&Place::number, &Place::first, &Place::run, &Place::stride}) {
            for (int64_t n = 0; n < TENSORS; ++n) ptrs.push_back(place_of(n, size(n)).*value);
        }
        set_control(long_window ? 700 : 5);
    }

    int mix_of(int64_t tensor) const { return mixes[tensor >= SECOND]; }
    int64_t size(int64_t tensor) const { return size_of(tensor, MIXES[mix_of(tensor)]); }
    bool has(Row row, int64_t tensor) const { return ptrs[size_t(row * TENSORS + tensor)] != 0; }

    // With rings of spikes, of which no step here is one.
    void set_control(int window) {
        control.assign(size_t(block_begin(block::count, GROUPS) + window + 2 * SPIKES), 0.0);
        const auto set = [this](slot::Slot s, double x) { control[s] = x; };
        set(slot::kind, double(Kind::GREEDY));
        set(slot::raises, 1);
        set(slot::factor, 0.5);
        set(slot::smooth, 1);
        set(slot::window_size, window);
        set(slot::spike_window, SPIKES);
        set(slot::spike_minimum, 2);
        set(slot::spike_sigmas, 1e9);
        set(slot::spike_losses, SPIKES);
        set(slot::losses_head, 3);
        set(slot::spike_norms, SPIKES - 2);
        set(slot::norms_head, SPIKES - 2);
        for (int i = 0; i < 2 * SPIKES; ++i) control[control.size() - 1 - size_t(i)] = 1.0 / (i % 7 + 1);
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
                l1,
                false};
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
            Place place = place_of(n, size(n));
            place.step = steps[size_t(n)] + 1;
            const auto scales = [&](Row row) { return reinterpret_cast<float*>(at(row)); };
            const Range range = {at(PARAM),
                                 at(GRAD),
                                 at(EXP_AVG),
                                 at(EXP_AVG_SQ),
                                 amsgrad ? at(MAX_EXP_AVG_SQ) : nullptr,
                                 at(REMAINDER),
                                 scales(EXP_AVG_SCALE),
                                 scales(EXP_AVG_SQ_SCALE),
                                 nullptr,
                                 nullptr,
                                 size(n),
                                 place,
                                 nullptr};
            const auto k = coefficients(HYPER[n % GROUPS], lr_of(control.data(), int(n % GROUPS)),
                                        control[slot::grad_multiplier], steps[size_t(n)]);
            loops_baseline.update[mix_of(n)][amsgrad](range, k);
            steps[size_t(n)] += 1;
        }
        run_control(control.data(), CURVE);
    }

    // Gives groups of 8-bit moments what is hard to scale: nothing, one number alone, subnormal and huge
    // ones, those that are none, large and small ones together; or takes it away again.
    void set_special_groups(bool special) {
        constexpr float SPECIAL[] = {0.0f, 1e-3f, 1e-42f, 1e-30f, 3e38f, INFINITY, NAN, 1e9f};
        for (int64_t n = 0; n < TENSORS; ++n) {
            if (MIXES[mix_of(n)].state != Q8 || !has(GRAD, n)) continue;
            for (int64_t k = 0; k < size(n) / GROUP; ++k) {
                const float x = SPECIAL[(n + k) % 8];
                const bool alone = x == 1e-3f || x == INFINITY;
                for (int64_t i = 0; i < GROUP; ++i) {
                    const bool here = x == 1e9f ? i == 9 : x != x ? i == 7 : alone ? i == 5 : true;
                    const double other = alone || x == 0.0f ? 0.0 : 0.01 * double(i);
                    arrays[GRAD][size_t(n)].set(k * GROUP + i, special && here ? double(x) : other);
                }
                if ((n + k) % 8 > 3 || !special) continue;
                arrays[EXP_AVG_SCALE][size_t(n)].set(k, 0.0);  // nothing before either
                arrays[EXP_AVG_SQ_SCALE][size_t(n)].set(k, 0.0);
            }
        }
    }

    // Adds up the gradients' absolute values to this power.
    long double sum_of_powers(int power) {
        long double sum = 0;
        for (int64_t n = 0; n < TENSORS; ++n) {
            for (int64_t i = 0; has(GRAD, n) && i < size(n); ++i)
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

}  // namespace greedylr
