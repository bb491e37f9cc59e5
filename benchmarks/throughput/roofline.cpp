// The memory traffic of one AdamW step without its arithmetic: what a step over the same arrays cannot beat.
//
// Every array but the gradient is read and written in place, the gradient is read. What is written is what
// was read, xor the gradient and a mask of zeros that the compiler does not know: no value changes, no access
// can be left out. Work is cut and handed out as in csrc/cpu/step.cpp, on the same threads.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../../csrc/cpu/threads.h"

namespace {

// One cache line; the compiler makes of it what the instruction set has.
typedef uint64_t Line __attribute__((vector_size(64), aligned(64), may_alias));

constexpr int MOST_MOMENTS = 3;
// Groups of 64 elements whose scales take a line.
constexpr int64_t GROUPS = 16;

struct Arrays {
    Line* param;
    const Line* grad;
    Line* moments[MOST_MOMENTS];
    Line* others[MOST_MOMENTS];  // scales of both moments, if these are codes; then the remainder
    uint64_t zeros;
};

// WIDTH lines of one array, for 64 elements.
template <int WIDTH, int GRAD>
inline void touch(Line* __restrict array, const Line* __restrict grad, uint64_t zeros) {
    for (int k = 0; k < WIDTH; ++k) array[k] ^= grad[k % GRAD] & zeros;
}

template <int WIDTH>
inline void fetch(const Line* array) {
    for (int k = 0; k < WIDTH; ++k) __builtin_prefetch(array + k, 0, 2);
}

// PARAM, GRAD, STATE, REMAINDER: lines that 64 elements take, which is the element size in bytes; moments of
// one byte have scales. With `ahead` the lines of so many times 64 elements later are fetched into the
// second-level cache.
template <int PARAM, int GRAD, int STATE, int MOMENTS, int REMAINDER = 0>
void touch_range(const Arrays& a, int64_t begin, int64_t end, int64_t ahead) {
    Line* const remainder = a.others[STATE == 1 ? 2 : 0];
    for (int64_t i = begin; i < end; ++i) {
        if (ahead != 0 && i + ahead < end) {
            fetch<PARAM>(a.param + (i + ahead) * PARAM);
            fetch<GRAD>(a.grad + (i + ahead) * GRAD);
            for (int m = 0; m < MOMENTS; ++m) fetch<STATE>(a.moments[m] + (i + ahead) * STATE);
            if (REMAINDER) fetch<REMAINDER>(remainder + (i + ahead) * REMAINDER);
        }
        const Line* grad = a.grad + i * GRAD;
        touch<PARAM, GRAD>(a.param + i * PARAM, grad, a.zeros);
        for (int m = 0; m < MOMENTS; ++m) touch<STATE, GRAD>(a.moments[m] + i * STATE, grad, a.zeros);
        if (REMAINDER) touch<REMAINDER, GRAD>(remainder + i * REMAINDER, grad, a.zeros);
        if (STATE == 1 && i % GROUPS == 0) {
            for (int m = 0; m < 2; ++m) touch<1, GRAD>(a.others[m] + i / GROUPS, grad, a.zeros);
        }
    }
}

using TouchRange = void (*)(const Arrays&, int64_t, int64_t, int64_t);

TouchRange find(int param, int grad, int state, int moments, int remainder) {
    switch ((((param * 10 + grad) * 10 + state) * 10 + moments) * 10 + remainder) {
        case 44120:
            return touch_range<4, 4, 1, 2>;
        case 22422:
            return touch_range<2, 2, 4, 2, 2>;
        case 22122:
            return touch_range<2, 2, 1, 2, 2>;
        case 22121:
            return touch_range<2, 2, 1, 2, 1>;
        case 22120:
            return touch_range<2, 2, 1, 2>;
        case 44420:
            return touch_range<4, 4, 4, 2>;
        case 22220:
            return touch_range<2, 2, 2, 2>;
        case 22420:
            return touch_range<2, 2, 4, 2>;
        case 44430:
            return touch_range<4, 4, 4, 3>;
        case 44220:
            return touch_range<4, 4, 2, 2>;
        case 42420:
            return touch_range<4, 2, 4, 2>;
        default:
            return nullptr;
    }
}

struct Pass {
    Arrays arrays;
    TouchRange touch_range;
    int64_t count, chunk, ahead;
    std::atomic<int64_t> next{0};

    static void work(void* address) {
        Pass& pass = *static_cast<Pass*>(address);
        for (int64_t begin; (begin = pass.next.fetch_add(pass.chunk)) < pass.count;) {
            pass.touch_range(pass.arrays, begin, std::min(begin + pass.chunk, pass.count), pass.ahead);
        }
    }
};

}  // namespace

// Element sizes in bytes (of no remainder 0), `elements`, `chunk` and `ahead` in elements and multiples of
// 64, with scales of 64 GROUPS, arrays aligned to 64 bytes, `moments` and `others` of MOST_MOMENTS. Returns
// 0, or 1 for a mix that is not compiled in.
extern "C" int roofline(void* param, const void* grad, void* const* moments, int n_moments,
                        void* const* others, int param_size, int grad_size, int state_size,
                        int remainder_size, int64_t elements, int64_t chunk, int64_t ahead, uint64_t zeros,
                        int threads) {
    Pass pass{{static_cast<Line*>(param), static_cast<const Line*>(grad), {}, {}, zeros},
              find(param_size, grad_size, state_size, n_moments, remainder_size),
              elements / 64,
              chunk / 64,
              ahead / 64};
    if (pass.touch_range == nullptr) return 1;
    for (int m = 0; m < MOST_MOMENTS; ++m) pass.arrays.moments[m] = static_cast<Line*>(moments[m]);
    for (int m = 0; m < MOST_MOMENTS; ++m) pass.arrays.others[m] = static_cast<Line*>(others[m]);
    greedylr::run_on_threads(threads, Pass::work, &pass);
    return 0;
}
