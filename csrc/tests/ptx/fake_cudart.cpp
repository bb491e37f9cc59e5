// The CUDA runtime as far as nvcc's host code asks for it, on one device without a GPU: a launch goes to a
// function that the tests set, by the name of its kernel.
#include <cuda_runtime_api.h>

#include <map>
#include <string>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// Zero: the kernel has run. Kernels have one parameter.
using Launcher = int (*)(const char* name, unsigned grid, unsigned threads, const void* parameter);

Launcher launcher = nullptr;
int resident_blocks = 1;  // on the one multiprocessor
int single_to_double_ratio = 2;
int driver_version = CUDART_VERSION;

std::map<const void*, std::string>& kernel_names() {
    static std::map<const void*, std::string> names;
    return names;
}

}  // namespace

EXPORTED void fake_device(Launcher to, int resident, int ratio, int driver) {
    launcher = to;
    resident_blocks = resident;
    single_to_double_ratio = ratio;
    driver_version = driver;
}

// Code that nvcc generates calls these when the module is loaded,
extern "C" {

void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, void*, void*, void*,
                            void*, int*) {
    kernel_names()[host] = device;
}

// and these in the stubs of kernels, which nobody calls: launches go by cudaLaunchKernel.
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorInvalidDeviceFunction; }

cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
    return cudaErrorInvalidDeviceFunction;
}

unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return 1; }

}  // extern "C"

extern "C" {

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** parameters, size_t shared,
                             cudaStream_t) {
    const auto found = kernel_names().find(kernel);
    const bool flat = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
    if (found == kernel_names().end() || launcher == nullptr || shared != 0 || !flat) {
        return cudaErrorInvalidDeviceFunction;
    }
    const int failed = launcher(found->second.c_str(), grid.x, block.x, parameters[0]);
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                   unsigned) {
    *blocks = resident_blocks;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    if (attribute != cudaDevAttrMultiProcessorCount &&
        attribute != cudaDevAttrSingleToDoublePrecisionPerfRatio) {
        return cudaErrorInvalidValue;
    }
    *value = attribute == cudaDevAttrMultiProcessorCount ? 1 : single_to_double_ratio;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = driver_version;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

const char* cudaGetErrorName(cudaError_t) { return "fake_cudart"; }

const char* cudaGetErrorString(cudaError_t) { return "the launch failed in the PTX executor"; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

}  // extern "C"
