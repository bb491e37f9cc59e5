// Words from the host to the device inside the parameters of a kernel: no staging memory, so nothing to keep,
// to wait for or to free, in a captured graph either.
#pragma once

#include "access.cuh"

namespace greedylr {
namespace cuda {

constexpr int SEND_THREADS = 256;

// Kernel parameters hold 4 KB everywhere, and 32,764 bytes where both compiler and driver are of CUDA 12.1 or
// later. (A module built with a later 12.x also loads on the driver of 12.0.)
constexpr int LARGE_PARAMETERS = 12010;
constexpr int FEW_WORDS = 448;
#if defined(__CUDACC__) && CUDART_VERSION < 12010
constexpr int MANY_WORDS = FEW_WORDS;
#else
constexpr int MANY_WORDS = 4000;
#endif

template <int CAPACITY>
struct SendArgs {
    int64_t* target;
    int count;
    int64_t words[CAPACITY];
};

template <typename Args>
__global__ void __launch_bounds__(SEND_THREADS) send_kernel(const __grid_constant__ Args args) {
    for (int i = threadIdx.x; i < args.count; i += blockDim.x) args.target[i] = args.words[i];
}

}  // namespace cuda
}  // namespace greedylr
