// Reading what a kernel writes into mapped memory while it may be writing (cuda/epilogue.cuh, show_host).
#pragma once

#include <stdint.h>

namespace greedylr {

// Words [n + 2] at `source`: a number, n values, the number again. Copies the values to `target` and returns
// the number; -1 if it is `known` already, or the values may be those of two steps.
inline double take_snapshot(const double* source, double* target, int64_t n, double known) {
    double before, after, value;
    __atomic_load(source + n + 1, &after, __ATOMIC_ACQUIRE);
    if (after == known || after < 0.0) return -1.0;
    for (int64_t i = 0; i < n; ++i) {
        __atomic_load(source + 1 + i, &value, __ATOMIC_RELAXED);
        target[i] = value;
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    __atomic_load(source, &before, __ATOMIC_RELAXED);
    return before == after ? after : -1.0;
}

}  // namespace greedylr
