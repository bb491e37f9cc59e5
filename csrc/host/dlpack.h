// The part of DLPack 1.3 that reading a tensor's memory without owning it takes: the layout of DLTensor, and
// of the table of functions that a tensor type offers as `__dlpack_c_exchange_api__`, a capsule.
// Specification: https://dmlc.github.io/dlpack/latest/c_api.html. Written from it; only what is used has a
// name.
#pragma once

#include <stdint.h>

namespace greedylr::dlpack {

constexpr uint32_t MAJOR_VERSION = 1;  // another one may have another layout
constexpr const char* CAPSULE_NAME = "dlpack_exchange_api";

struct Device {
    int32_t type, id;
};

constexpr uint8_t COMPLEX = 5;  // code of the complex types

struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;    // [ndim], borrowed
    int64_t* strides;  // [ndim] in elements, borrowed; null if row-major
    uint64_t byte_offset;
};

// Fills a Tensor that is valid as long as the Python object is, and not changed; -1 with a Python error set
// if it cannot. Does not wait for the device.
using TensorFromPyObject = int (*)(void* py_object, Tensor* out);

struct ExchangeApi {
    uint32_t major, minor;
    void* previous;
    void *allocate, *managed_from_py_object, *managed_to_py_object;  // not used
    TensorFromPyObject tensor_from_py_object;                        // may be null
    void* current_stream;                                            // not used
};

}  // namespace greedylr::dlpack
