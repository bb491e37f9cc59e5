// The norm's sums on the emulated GPU, of both kinds: one that is fast at double has the bits of a plain sum
// of doubles, one that is slow has its sum within a bound; and what neither can add in its own way is added
// as plainly.
#include <math.h>

#include <functional>
#include <vector>

#include "../core/control.h"
#include "../cuda/step.h"
#include "check.h"
#include "emulation.h"
#include "guarded.h"

using namespace greedylr;

namespace {

constexpr int64_t CHUNK = 2048;
constexpr int FAST = 2, SLOW = 64;       // operations in float for one in double
constexpr double PAIRS_ERROR = 0x1p-39;  // relative; docs/numerics.md
constexpr DType TYPES[] = {F32, F64, BF16, F16};
constexpr int MIX_OF[DTYPE_COUNT] = {0, 4, 2, 3};  // some mix with gradients of that type

struct Sums {
    double squares, absolute, nonfinite;
};

bool same(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

// One gradient, measured on a device of that kind.
Sums measured(DType type, Guarded& grad, int64_t n, int ratio) {
    emulation::set_single_to_double_ratio(ratio);
    std::vector<int64_t> ptrs(ROW_COUNT, 0);
    ptrs[GRAD] = int64_t(grad.at(0));
    const double weight = 1.0;
    std::vector<double> control(slot::count, 0.0);
    std::vector<int32_t> tensor, index;
    for (int32_t k = 0; k * CHUNK < n; ++k) {
        tensor.push_back(0);
        index.push_back(k);
    }
    const auto chunks = int64_t(index.size());
    TensorTable table = {};
    table.ptrs = ptrs.data();
    table.numel = &n;
    table.norm_weight = &weight;
    table.chunk_tensor = tensor.data();
    table.chunk_index = index.data();
    table.n_tensors = 1;
    table.n_chunks = chunks;
    table.chunk = CHUNK;
    table.control = control.data();
    table.l1 = true;
    std::vector<unsigned char> scratch(size_t(cuda::scratch_bytes()));
    cuda::Stepper(table, {{MIX_OF[type], 0, chunks}}, scratch.data(), nullptr, 0).measure(0, false);
    const Sums with = {control[slot::grad_sq_sum], control[slot::grad_abs_sum],
                       control[slot::grad_nonfinite]};
    table.l1 = false;
    cuda::Stepper(table, {{MIX_OF[type], 0, chunks}}, scratch.data(), nullptr, 0).measure(0, false);
    CHECK(same(control[slot::grad_sq_sum], with.squares), "type %d: L1 changes the squares", type);
    return with;
}

// Of one chunk, in the order that is promised: packs of 16 bytes to lanes in turn, what is left one each,
// then always both halves of the lanes.
Sums plain(DType type, Guarded& grad, int64_t n) {
    const int pack = 16 / element_size(type);
    const int64_t packs_end = n / pack * pack;
    double squares[32] = {}, absolute[32] = {};
    for (int64_t i = 0; i < n; ++i) {
        const int lane = int(i < packs_end ? i / pack % 32 : i - packs_end);
        squares[lane] = fma(grad.value(i), grad.value(i), squares[lane]);
        absolute[lane] += fabs(grad.value(i));
    }
    for (int apart = 16; apart > 0; apart /= 2) {
        for (int lane = 0; lane < apart; ++lane) {
            squares[lane] += squares[lane + apart];
            absolute[lane] += absolute[lane + apart];
        }
    }
    return {squares[0], absolute[0], !isfinite(squares[0]) ? 1.0 : 0.0};
}

void check_plain(DType type, Guarded& grad, int64_t n, int ratio, const char* what) {
    const Sums expected = plain(type, grad, n), sums = measured(type, grad, n, ratio);
    CHECK(same(sums.squares, expected.squares) || (isnan(sums.squares) && isnan(expected.squares)),
          "type %d, %d of %s: %a, not %a", type, int(n), what, sums.squares, expected.squares);
    CHECK(same(sums.absolute, expected.absolute) || isnan(expected.absolute), "type %d, %d of %s: %a, not %a",
          type, int(n), what, sums.absolute, expected.absolute);
    CHECK((sums.nonfinite != 0) == (expected.nonfinite != 0), "type %d, %d of %s", type, int(n), what);
}

void check_error(DType type, Guarded& grad, int64_t n, const char* what) {
    long double squares = 0, absolute = 0;
    for (int64_t i = 0; i < n; ++i) {
        squares += (long double)grad.value(i) * grad.value(i);
        absolute += fabsl(grad.value(i));
    }
    const Sums sums = measured(type, grad, n, SLOW);
    CHECK(fabsl(sums.squares - squares) <= PAIRS_ERROR * squares, "type %d, %d of %s: off by %Lg", type,
          int(n), what, (sums.squares - squares) / squares);
    CHECK(fabsl(sums.absolute - absolute) <= PAIRS_ERROR * absolute, "type %d, %d of %s: off by %Lg", type,
          int(n), what, (sums.absolute - absolute) / absolute);
    CHECK(sums.nonfinite == 0, "type %d, %d of %s", type, int(n), what);
}

// Sizes that end in every part of a chunk.
constexpr int64_t SIZES[] = {0, 1, 7, 8, 31, 32, 33, 255, 256, 257, 1023, 2047, 2048};

void check_random(DType type) {
    for (int64_t n : SIZES) {
        Guarded grad(type, n, unsigned(n), false, 0);
        check_plain(type, grad, n, FAST, "random numbers");
        check_error(type, grad, n, "random numbers");
        Guarded moved(type, n, unsigned(n), false, 1);
        for (int ratio : {FAST, SLOW}) {
            const Sums here = measured(type, grad, n, ratio), there = measured(type, moved, n, ratio);
            CHECK(same(here.squares, there.squares) && same(here.absolute, there.absolute),
                  "type %d, %d elements: another address, another sum", type, int(n));
        }
    }
    Guarded large(type, 9 * CHUNK + 5, 1, false, 3);
    check_error(type, large, 9 * CHUNK + 5, "random numbers in several chunks");
}

// Their squares' sum is next to a power of two: on top of no more than that much, it would take a digit more
// than a float has.
constexpr double NEXT_TO_ONE[] = {0x1.b9f882p-1, 0x1.f66f22p-1, 0x1.00653p-3, 0x1.0d1314p-1};

// Whatever the numbers, a sum of pairs is as good: growing, so that each is more than all before it, falling,
// far apart, and with squares around the ends of what a float holds.
void check_shapes(DType type) {
    struct Shape {
        const char* name;
        std::function<double(int64_t)> value;
    };
    const Shape shapes[] = {
        {"growing numbers", [](int64_t i) { return 1e-4 * exp(double(i) * 0.006); }},
        {"falling numbers", [](int64_t i) { return -4.0 * exp(double(i) * -0.006); }},
        {"numbers far apart",
         [](int64_t i) { return ldexp(1.0 + double(i % 97) / 128, int(i * 7 % 24) - 16); }},
        {"equal numbers", [](int64_t) { return 1.0 / 3; }},
        {"few numbers, else zeros", [](int64_t i) { return i % 300 == 7 ? -0.3 : 0.0; }},
        {"a sum next to a power of two", [](int64_t i) { return i < 4 ? NEXT_TO_ONE[i] : 0.0; }},
        {"tiny numbers", [](int64_t i) { return ldexp(1.0 + double(i % 97) / 128, int(i % 5) - 44); }},
        {"huge numbers", [](int64_t i) { return ldexp(1.0 + double(i % 97) / 128, int(i % 5) + 53); }},
    };
    for (const Shape& shape : shapes) {
        Guarded grad(type, CHUNK, 0, false, 0);
        for (int64_t i = 0; i < CHUNK; ++i) grad.set(i, shape.value(i));
        if (!isfinite(grad.value(CHUNK - 1))) continue;  // of float16
        check_plain(type, grad, CHUNK, FAST, shape.name);
        check_error(type, grad, CHUNK, shape.name);
    }
}

// What pairs cannot hold, and what has no sum: all kinds agree to the bit.
void check_ends(DType type) {
    const double largest = type == F16    ? 65504.0
                           : type == BF16 ? 0x1.fep127
                           : type == F32  ? 0x1.fffffep127
                                          : 1e150;
    for (double end : {0.0, -0.0, 1e-45, 6e-8, -1e-38, 1e-25, 3e18, 2e19, largest, -largest, double(INFINITY),
                       -double(INFINITY), double(NAN)}) {
        if (type == F16 && isfinite(end) && fabs(end) > largest) continue;
        for (int64_t n : {1, 40, 2047}) {
            Guarded all(type, n, 1, false, 0), one(type, n, 1, false, 0);
            for (int64_t i = 0; i < n; ++i) all.set(i, end);
            one.set(n - 1, end);
            check_plain(type, all, n, FAST, "one number");
            if (isfinite(end) && (type == F16 || end == 6e-8 || end == 3e18)) {
                check_error(type, all, n, "one number");  // of 3e18 a pair holds few
            } else {
                check_plain(type, all, n, SLOW, "one number that no pair holds");
            }
            check_plain(type, one, n, FAST, "random numbers and one other");
            if (isfinite(end)) {
                check_error(type, one, n, "random numbers and one other");
            } else {
                CHECK(measured(type, one, n, SLOW).nonfinite != 0, "type %d, one of %d", type, int(n));
                CHECK(!isfinite(measured(type, one, n, SLOW).squares), "type %d, one of %d", type, int(n));
            }
        }
    }
}

}  // namespace

int main() {
    for (DType type : TYPES) {
        check_random(type);
        check_shapes(type);
        check_ends(type);
    }
}
