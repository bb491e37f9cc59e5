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

struct Arrays {
    Line* param;
    const Line* grad;
    Line* moments[MOST_MOMENTS];
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

// PARAM, GRAD, STATE: lines that 64 elements take, which is half the element size in bytes.
// With `ahead` the lines of so many times 64 elements later are fetched into the second-level cache.
template <int PARAM, int GRAD, int STATE, int MOMENTS>
void touch_range(const Arrays& a, int64_t begin, int64_t end, int64_t ahead) {
    for (int64_t i = begin; i < end; ++i) {
        if (ahead != 0 && i + ahead < end) {
            fetch<PARAM>(a.param + (i + ahead) * PARAM);
            fetch<GRAD>(a.grad + (i + ahead) * GRAD);
            for (int m = 0; m < MOMENTS; ++m) fetch<STATE>(a.moments[m] + (i + ahead) * STATE);
        }
        const Line* grad = a.grad + i * GRAD;
        touch<PARAM, GRAD>(a.param + i * PARAM, grad, a.zeros);
        for (int m = 0; m < MOMENTS; ++m) touch<STATE, GRAD>(a.moments[m] + i * STATE, grad, a.zeros);
    }
}

using TouchRange = void (*)(const Arrays&, int64_t, int64_t, int64_t);

TouchRange find(int param, int grad, int state, int moments) {
    switch (((param * 10 + grad) * 10 + state) * 10 + moments) {
        case 4442:
            return touch_range<4, 4, 4, 2>;
        case 2222:
            return touch_range<2, 2, 2, 2>;
        case 2242:
            return touch_range<2, 2, 4, 2>;
        case 4443:
            return touch_range<4, 4, 4, 3>;
        case 4422:
            return touch_range<4, 4, 2, 2>;
        case 4242:
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

// Element sizes in bytes, `elements`, `chunk` and `ahead` in elements and multiples of 64, arrays aligned to
// 64 bytes. Returns 0, or 1 for a mix that is not compiled in.
extern "C" int roofline(void* param, const void* grad, void* const* moments, int n_moments, int param_size,
                        int grad_size, int state_size, int64_t elements, int64_t chunk, int64_t ahead,
                        uint64_t zeros, int threads) {
    Pass pass{{static_cast<Line*>(param), static_cast<const Line*>(grad), {}, zeros},
              n_moments <= MOST_MOMENTS ? find(param_size, grad_size, state_size, n_moments) : nullptr,
              elements / 64,
              chunk / 64,
              ahead / 64};
    if (pass.touch_range == nullptr) return 1;
    for (int m = 0; m < n_moments; ++m) pass.arrays.moments[m] = static_cast<Line*>(moments[m]);
    greedylr::run_on_threads(threads, Pass::work, &pass);
    return 0;
}
