// The CPU loops over 8-bit moments and masters: every mix of them, instruction set and number of threads
// gives the bits of the core's functions called element by element, and touches nothing else.
#include <math.h>
#include <string.h>

#include <vector>

#include "../core/control.h"
#include "../core/eight_bit.h"
#include "../core/master.h"
#include "../cpu/loops.h"
#include "../cpu/step.h"
#include "check.h"
#include "guarded.h"

using namespace greedylr;

namespace {

constexpr int64_t CHUNK = 320;  // two blocks of staging and a half
constexpr int64_t WHOLE[] = {0, 64, 128, 192, 320, 384, 1088, 6400};
constexpr int64_t ANY[] = {1, 7, 63, 65, 129, 320, 1031, 5000};
constexpr int64_t TENSORS = 8;
constexpr int ARRAYS = COPY_BF16;  // rows before this one hold what these mixes read and write

// Small numbers, here and there one that no group can hold: zero, subnormal, huge, infinite, NaN.
float drawn(unsigned& seed, int64_t i) {
    seed = seed * 1664525u + 1013904223u;
    const float x = (float(seed >> 8) / (1 << 24) - 0.5f) * float(exp(-double(seed % 23u)));
    if (i / GROUP % 4 == 1) return i % GROUP == 5 ? x : 0.0f;
    if (i % 1000 == 901) return INFINITY;
    if (i % 1000 == 502) return NAN;
    return i % 97 == 96 ? 1e-42f : i % 131 == 130 ? 1e9f : x;
}

struct Problem {
    explicit Problem(int mix_index, bool amsgrad)
        : mix(MIXES[mix_index]), index(mix_index), any(mix.param == BF16_R16 && mix.state == F32) {
        const DType state = mix.state == Q8 ? I64 : mix.state;  // codes are bytes, given below
        const DType types[ARRAYS] = {
            mix.param == F32 ? F32 : BF16, mix.grad, state, state, state, I64, F32, F32};
        ptrs.assign(size_t(ROW_COUNT * TENSORS), 0);
        for (int64_t n = 0; n < TENSORS; ++n) {
            for (int row = 0; row < ARRAYS; ++row) {
                if (!has(row) || (row == MAX_EXP_AVG_SQ && !amsgrad)) continue;
                bytes[row][size_t(n)].assign(size_t(64 + length(row, n) * size(row) + 64), 0xa5);
                fill(row, n, types[row]);
                ptrs[size_t(row * TENSORS + n)] = int64_t(at(row, n, 0));
            }
            if (n == 3) ptrs[size_t(GRAD * TENSORS + n)] = 0;
            const int64_t first = n == 4 ? (int64_t(1) << 32) - 128 : 1000 * GROUP * n;
            const int64_t run = n == 5 ? 128 : n == 6 ? 192 : numel(n) + 1;
            const int64_t place[] = {n, first, run, 4 * run};
            for (int k = 0; k < 4; ++k) ptrs[size_t((NUMBER + k) * TENSORS + n)] = place[k];
            ptrs[size_t(STEP * TENSORS + n)] = reinterpret_cast<int64_t>(&steps[n]);
            sizes.push_back(numel(n));
            for (int64_t k = 0; k * CHUNK < numel(n); ++k) {
                chunk_tensor.push_back(int32_t(n));
                chunk_index.push_back(int32_t(k));
            }
        }
        control.assign(size_t(block_begin(block::count, 1)), 0.0);
        control[slot::n_groups] = control[slot::grad_scale] = control[slot::grad_multiplier] = 1.0;
        control[slot::max_grad_norm] = INFINITY;
        *lr_blocks(control.data()).lr = 0.01;
    }

    bool has(int row) const {
        if (row == MAX_EXP_AVG_SQ) return mix.state == F32;
        if (row == REMAINDER) return has_master(mix.param);
        return row < REMAINDER || mix.state == Q8;
    }
    int64_t numel(int64_t n) const { return any ? ANY[n] : WHOLE[n]; }
    int64_t length(int row, int64_t n) const { return row > REMAINDER ? numel(n) / GROUP : numel(n); }
    int size(int row) const {
        if (row == REMAINDER) return remainder_size(mix.param);
        return row == PARAM      ? element_size(mix.param)
               : row == GRAD     ? element_size(mix.grad)
               : row > REMAINDER ? 4
                                 : element_size(mix.state);
    }
    unsigned char* at(int row, int64_t n, int64_t i) {
        return bytes[row][size_t(n)].data() + 64 + i * size(row);
    }

    void fill(int row, int64_t n, DType type) {
        unsigned seed = unsigned(row * 100 + n);
        for (int64_t i = 0; i < length(row, n); ++i) {
            if (type == I64) {  // codes of any value, zero too, and remainders
                seed = seed * 1664525u + 1013904223u;
                memcpy(at(row, n, i), reinterpret_cast<unsigned char*>(&seed) + 1, size_t(size(row)));
            } else {
                const float x = row == GRAD || row == PARAM ? drawn(seed, i) : 1e-3f * float(1 + i % 7);
                store(type, at(row, n, i), row == PARAM && !isfinite(x) ? 1.0 : double(x));
            }
        }
    }

    Stepper stepper() {
        const TensorTable table = {ptrs.data(),
                                   sizes.data(),
                                   group,
                                   hyper,
                                   weights,
                                   chunk_tensor.data(),
                                   chunk_index.data(),
                                   TENSORS,
                                   int64_t(chunk_tensor.size()),
                                   CHUNK,
                                   control.data(),
                                   nullptr,
                                   false,
                                   false};
        return Stepper(table, {{index, 0, int64_t(chunk_tensor.size())}});
    }

    template <typename T>
    T get(int row, int64_t n, int64_t i) {
        T x;
        memcpy(&x, at(row, n, i), sizeof x);
        return x;
    }
    template <typename T>
    void set(int row, int64_t n, int64_t i, T x) {
        memcpy(at(row, n, i), &x, sizeof x);
    }

    float loaded_param(int64_t n, int64_t i) {
        if (mix.param == F32) return get<float>(PARAM, n, i);
        const uint16_t high = get<uint16_t>(PARAM, n, i);
        if (mix.param == BF16) return bf16_to_float(high);
        return joined_master(
            high, mix.param == BF16_R16 ? get<int16_t>(REMAINDER, n, i) : get<int8_t>(REMAINDER, n, i) * 256);
    }

    void store_param(int64_t n, int64_t i, float x, uint32_t random) {
        if (mix.param == F32) return set(PARAM, n, i, x);
        if (mix.param == BF16) return set(PARAM, n, i, float_to_bf16(x));
        const uint32_t bits = mix.param == BF16_R16 ? master_bits(x) : master_bits_24(x, random >> 8 & 255u);
        set(PARAM, n, i, high_half(bits));
        mix.param == BF16_R16 ? set(REMAINDER, n, i, int16_t(bits)) : set(REMAINDER, n, i, int8_t(bits >> 8));
    }

    uint32_t random_of(const TensorTable& t, int64_t n, int64_t i) {
        const uint64_t global = index_of(t, n, i);
        return random_bits(uint32_t(global), hash_seed(global, n, steps[n] + 1.0f));
    }

    // Elements [begin, end) of tensor n, a group where moments have 8 bits.
    void update_one_by_one(const TensorTable& t, int64_t n, int64_t begin, int64_t end, bool amsgrad) {
        const auto k = rounded<float>(coefficients(hyper, 0.01, 1.0, steps[n]));
        float moments[GROUP], squares[GROUP];
        for (int64_t i = begin; i < end; ++i) {
            float p = loaded_param(n, i), m, v, largest = 0.0f;
            const float g =
                mix.grad == F32 ? get<float>(GRAD, n, i) : bf16_to_float(get<uint16_t>(GRAD, n, i));
            if (mix.state == Q8) {
                const int8_t code = get<int8_t>(EXP_AVG, n, i);
                const uint8_t code_sq = get<uint8_t>(EXP_AVG_SQ, n, i);
                const float root = decoded(code_sq, get<float>(EXP_AVG_SQ_SCALE, n, i / GROUP), 255.0f);
                m = decoded(code, get<float>(EXP_AVG_SCALE, n, i / GROUP), 127.0f);
                if (code_sq == 0) m = 0.0f;
                v = root * root;
            } else {
                m = get<float>(EXP_AVG, n, i);
                v = get<float>(EXP_AVG_SQ, n, i);
                if (amsgrad) largest = get<float>(MAX_EXP_AVG_SQ, n, i);
            }
            amsgrad ? adamw_element<true, true>(p, g, m, v, largest, k)
                    : adamw_element<false, true>(p, g, m, v, largest, k);
            store_param(n, i, p, random_of(t, n, i));
            if (mix.state == Q8) {
                moments[i - begin] = m;
                squares[i - begin] = v;
            } else {
                set(EXP_AVG, n, i, m);
                set(EXP_AVG_SQ, n, i, v);
                if (amsgrad) set(MAX_EXP_AVG_SQ, n, i, largest);
            }
        }
        if (mix.state == Q8) encode_one_by_one(t, n, begin, moments, squares);
    }

    void encode_one_by_one(const TensorTable& t, int64_t n, int64_t begin, const float* m, const float* v) {
        float s = 0.0f, s_sq = 0.0f;
        for (int i = 0; i < GROUP; ++i) {
            if (!isfinite(m[i]) || !isfinite(v[i])) return;
            s = fmaxf(s, fabsf(m[i]));
            s_sq = fmaxf(s_sq, sqrtf(v[i]));
        }
        if (s < 0x1p-126f) s = 0.0f;
        if (s_sq < 0x1p-126f) s_sq = 0.0f;
        set(EXP_AVG_SCALE, n, begin / GROUP, s);
        set(EXP_AVG_SQ_SCALE, n, begin / GROUP, s_sq);
        for (int i = 0; i < GROUP; ++i) {
            const uint32_t random = random_of(t, n, begin + i);
            const float u = float(random & 255u) / 256 + 1.0f / 512,
                        w = float(random >> 16) / 65536 + 1.0f / 131072;
            int code = int(fminf(floorf(127 * sqrtf(sqrtf(fabsf(m[i]) * (s > 0 ? 1 / s : 0))) + u), 127));
            int code_sq =
                int(fminf(floorf(255 * sqrtf(sqrtf(sqrtf(v[i]) * (s_sq > 0 ? 1 / s_sq : 0))) + w), 255));
            if (code_sq == 0 && v[i] > 0 && s_sq > 0) code_sq = 1;
            set(EXP_AVG, n, begin + i, int8_t(m[i] < 0 ? -code : code));
            set(EXP_AVG_SQ, n, begin + i, uint8_t(code_sq));
        }
    }

    void update_one_by_one(bool amsgrad) {
        TensorTable t = {};
        t.ptrs = ptrs.data();
        t.n_tensors = TENSORS;
        for (int64_t n = 0; n < TENSORS; ++n) {
            if (ptrs[size_t(GRAD * TENSORS + n)] == 0) continue;
            for (int64_t i = 0; i < numel(n); i += GROUP) {
                update_one_by_one(t, n, i, i + GROUP < numel(n) ? i + GROUP : numel(n), amsgrad);
            }
            steps[n] += 1.0f;
        }
    }

    const Mix mix;
    const int index;
    const bool any;
    const double hyper[HYPER_COUNT] = {0.9, 0.99, 1e-6, 0.1, 1.0, 0.0};
    const int32_t group[TENSORS] = {};
    const double weights[TENSORS] = {};
    std::vector<unsigned char> bytes[ARRAYS][TENSORS];
    std::vector<int64_t> ptrs, sizes;
    std::vector<int32_t> chunk_tensor, chunk_index;
    float steps[TENSORS] = {0, 1, 2, 3, 40, 5, 6, 7};
    std::vector<double> control;
};

void check_update(int mix, bool amsgrad, int threads) {
    Problem expected(mix, amsgrad), actual(mix, amsgrad);
    Stepper stepper = actual.stepper();
    for (int step = 0; step < 3; ++step) {
        expected.update_one_by_one(amsgrad);
        stepper.update(threads, true);
    }
    for (int row = 0; row < ARRAYS; ++row) {
        for (int64_t n = 0; n < TENSORS; ++n) {
            CHECK(actual.bytes[row][n] == expected.bytes[row][n], "%s mix %d amsgrad %d row %d tensor %d",
                  loops().isa, mix, amsgrad, row, int(n));
        }
    }
}

// Every exponent, with mantissas at and around where halves and bytes round.
void check_masters() {
    for (uint32_t upper = 0; upper < 0x10000u; ++upper) {
        for (uint32_t lower :
             {0x0000u, 0x0001u, 0x007fu, 0x0080u, 0x7fffu, 0x8000u, 0x8001u, 0xff80u, 0xffffu}) {
            const float x = float_of(upper << 16 | lower);
            const uint32_t bits = master_bits(x);
            const float back = joined_master(high_half(bits), int16_t(bits));
            CHECK(x != x ? bits == 0x7fc00000u && back != back : bits_of(back) == bits_of(x), "%08x",
                  bits_of(x));
            const uint32_t below = master_bits_24(x, 0), above = master_bits_24(x, 255);
            const float back_24 = joined_master(high_half(above), int32_t(int8_t(above >> 8)) * 256);
            CHECK(x != x || (below <= bits && above - below <= 0x100u), "%08x", bits_of(x));
            CHECK(x != x || bits_of(back_24) == above, "%08x", bits_of(x));
        }
    }
    CHECK(joined_master(uint16_t(0x0000), -5) == 0.0f && joined_master(uint16_t(0x8000), -5) == 0.0f,
          "a zero from outside");
}

}  // namespace

int main() {
    check_masters();
    for (int mix = 0; mix < MIX_COUNT; ++mix) {
        if (MIXES[mix].state != Q8 && !has_master(MIXES[mix].param)) continue;
        for (const Loops* const* set = available_loops(); *set != nullptr; ++set) {
            CHECK(force_loops((*set)->isa), "%s", (*set)->isa);
            for (int threads : {1, 4}) {
                check_update(mix, false, threads);
                if (MIXES[mix].state != Q8) check_update(mix, true, threads);
            }
        }
    }
}
