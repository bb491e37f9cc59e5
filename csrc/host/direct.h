// Reading a Python tensor in place through PyTorch's C functions for compiled models (AOTInductor's shim,
// whose binary interface is kept between versions), a quarter of the time that DLPack takes. They want the
// address of the tensor inside its Python object; `greedylr_fused/tensors/direct.py` finds out where that is,
// and a Watch uses what is read so only of types for which it agreed with DLPack.
#pragma once

#include <pybind11/pybind11.h>
#include <stdint.h>

namespace greedylr {

struct Direct {
    using Tensor = void*;
    int32_t (*data)(Tensor, void**) = nullptr;  // each returns 0, or something else after an error
    int32_t (*dim)(Tensor, int64_t*) = nullptr;
    int32_t (*sizes)(Tensor, int64_t**) = nullptr;
    int32_t (*strides)(Tensor, int64_t**) = nullptr;
    int32_t (*dtype)(Tensor, int32_t*) = nullptr;
    Py_ssize_t offset = 0;

    struct Reading {
        void* data;
        int64_t ndim;
        int64_t *shape, *strides;
        int32_t dtype;
    };

    Tensor tensor_in(PyObject* object) const { return reinterpret_cast<char*>(object) + offset; }

    bool data_of(PyObject* object, void** out) const { return data(tensor_in(object), out) == 0; }

    bool read(PyObject* object, Reading* out) const {
        const Tensor tensor = tensor_in(object);
        return data(tensor, &out->data) == 0 && dim(tensor, &out->ndim) == 0 &&
               sizes(tensor, &out->shape) == 0 && strides(tensor, &out->strides) == 0 &&
               dtype(tensor, &out->dtype) == 0;
    }
};

}  // namespace greedylr
