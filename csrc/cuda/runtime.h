// The CUDA runtime as this backend uses it: everything that has an error code. Without nvcc, the same names
// come from csrc/tests/emulation.
#pragma once

#ifndef __CUDACC__
#include "emulated_runtime.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace greedylr {
namespace cuda {

using Stream = cudaStream_t;

inline void check(cudaError_t status, const char* doing) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // or the next call would report it again
    throw std::runtime_error(std::string("CUDA error while ") + doing + ": " + cudaGetErrorString(status) +
                             " (" + cudaGetErrorName(status) + ")");
}

// Makes a device current while it lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        if (device == before_) return;
        check(cudaSetDevice(device), "switching to the parameters' device");
        switched_ = true;
    }
    ~DeviceGuard() {
        if (switched_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool switched_ = false;
};

// Blocks of a kernel that the current device runs at the same time.
template <typename Args>
int resident_blocks(void (*kernel)(Args), int threads) {
    int device = 0, processors = 0, blocks = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "asking for its processors");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0), "loading a kernel");
    return processors * blocks;
}

template <typename Args>
void launch(void (*kernel)(Args), int blocks, int threads, Stream stream, const Args& args) {
    void* parameters[] = {const_cast<Args*>(&args)};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, threads, parameters, 0, stream),
          "launching a kernel");
}

// Returns how many operations in float the device does in the time of one in double.
inline int single_to_double_ratio(int device) {
    int ratio = 0;
    check(cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device),
          "asking for its speed at double");
    return ratio;
}

// Returns the newest CUDA version that the driver knows: 1000 * major + 10 * minor.
inline int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "asking for the driver's version");
    return version;
}

// Raises if this process cannot run kernels on the device.
inline void check_device(int device) {
    int count = 0;
    check(cudaGetDeviceCount(&count), "looking for devices");
    if (device < 0 || device >= count) {
        throw std::runtime_error("there is no CUDA device " + std::to_string(device) + ", only " +
                                 std::to_string(count));
    }
}

}  // namespace cuda
}  // namespace greedylr
#endif
