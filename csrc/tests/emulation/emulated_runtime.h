// The names of cuda/runtime.h for kernels that run here: one device, one stream, in order.
#pragma once

#include <stdexcept>
#include <string>

#include "emulation.h"

namespace greedylr {
namespace cuda {

using Stream = void*;

struct DeviceGuard {
    explicit DeviceGuard(int) {}
};

template <typename Args>
int resident_blocks(void (*)(Args), int) {
    return int(emulation::resident_blocks());
}

template <typename Args>
void launch(void (*kernel)(Args), int blocks, int threads, Stream, const Args& args) {
    const bool fits = sizeof(Args) <= (emulation::driver_version() < 12010 ? 4096 : 32764);
    if (!fits) throw std::runtime_error("more kernel parameters than this driver takes");
    emulation::launch(unsigned(blocks), unsigned(threads), [kernel, &args] { kernel(args); });
}

inline int single_to_double_ratio(int) { return emulation::single_to_double_ratio(); }

using emulation::driver_version;

inline void check_device(int device) {
    if (device == 0) return;
    throw std::runtime_error("there is no emulated device " + std::to_string(device) + ", only device 0");
}

}  // namespace cuda
}  // namespace greedylr
