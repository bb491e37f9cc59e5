// Arrays of any storage type in the middle of bytes that nobody may touch.
#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "../core/launch.h"

namespace greedylr {

inline double load(DType d, const void* at) {
    uint16_t h;
    float f;
    double x;
    memcpy(&h, at, 2);
    if (d == BF16) return bf16_to_float(h);
    if (d == F16) return f16_to_float(h);
    memcpy(&f, at, 4);
    if (d == F32) return f;
    memcpy(&x, at, 8);
    return x;
}

inline void store(DType d, void* at, double x) {
    const uint16_t h = d == BF16 ? float_to_bf16(float(x)) : float_to_f16(float(x));
    const float f = float(x);
    memcpy(at,
           d == F64   ? static_cast<const void*>(&x)
           : d == F32 ? static_cast<const void*>(&f)
                      : &h,
           size_t(element_size(d)));
}

// Codes take the lowest byte.
inline void store_code(void* at, unsigned bits) {
    const uint8_t byte = uint8_t(bits);
    memcpy(at, &byte, 1);
}

// One array in an allocation of its own, `offset` elements off a multiple of 16 bytes. Before it lie bytes
// that show whether they were written; its end is that of the allocation, where the address sanitizer sees
// reads, too.
class Guarded {
  public:
    Guarded(DType dtype, int64_t n, unsigned seed, bool positive, int64_t offset = 1)
        : dtype_(dtype), offset_(offset), memory_(size_t(PAD + (offset + n) * element_size(dtype)), GUARD) {
        for (int64_t i = 0; i < n; ++i) {
            seed = seed * 1664525u + 1013904223u;
            const double x = double(seed >> 8) / (1 << 24);
            if (dtype == Q8) {
                store_code(at(i), seed >> 16);
            } else {
                store(dtype, at(i), positive ? x * 0.1 : x - 0.5);
            }
        }
    }
    unsigned char* at(int64_t i) { return memory_.data() + PAD + (offset_ + i) * element_size(dtype_); }
    double value(int64_t i) { return load(dtype_, at(i)); }
    void set(int64_t i, double x) { store(dtype_, at(i), x); }
    bool operator==(const Guarded& other) const { return memory_ == other.memory_; }
    bool guard_intact() {
        return std::all_of(memory_.data(), at(0), [](unsigned char c) { return c == GUARD; });
    }

  private:
    static constexpr unsigned char GUARD = 0xa5;
    static constexpr int64_t PAD = 64;
    DType dtype_;
    int64_t offset_;
    std::vector<unsigned char> memory_;
};

}  // namespace greedylr
