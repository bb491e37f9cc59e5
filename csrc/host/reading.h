// Reading tensors and Python objects where an error is an answer: what cannot be read is reported as
// different.
#pragma once

#include <pybind11/pybind11.h>
#include <stdint.h>

#include "dlpack.h"

namespace greedylr {

namespace py = pybind11;

// Names as Python's own strings, made once and never given back.
struct Names {
    PyObject* grad = PyUnicode_InternFromString("grad");
    PyObject* local = PyUnicode_InternFromString("_local_tensor");
    PyObject* spec = PyUnicode_InternFromString("_spec");
    PyObject* is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* is_conj = PyUnicode_InternFromString("is_conj");
    PyObject* params = PyUnicode_InternFromString("params");
    PyObject* amsgrad = PyUnicode_InternFromString("amsgrad");
    PyObject* hyper[4] = {PyUnicode_InternFromString("betas"), PyUnicode_InternFromString("eps"),
                          PyUnicode_InternFromString("weight_decay"), PyUnicode_InternFromString("maximize")};
};

inline const Names& names() {
    static const Names all;
    return all;
}

// Null if it cannot be read.
inline py::object attribute(PyObject* object, PyObject* name) {
    PyObject* value = PyObject_GetAttr(object, name);
    if (value == nullptr) PyErr_Clear();
    return py::reinterpret_steal<py::object>(value);
}

// Borrowed; null if it is not there or this is no dictionary.
inline PyObject* item(PyObject* dict, PyObject* key) {
    if (!PyDict_Check(dict)) return nullptr;
    PyObject* value = PyDict_GetItemWithError(dict, key);
    if (value == nullptr) PyErr_Clear();
    return value;
}

// What the method answers, or cannot.
inline bool maybe(PyObject* tensor, PyObject* method) {
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, method));
    if (!answer) PyErr_Clear();
    return answer.ptr() != Py_False;
}

// Whether an object that is still there has its value still: numbers and tuples of them cannot change.
inline bool is_fixed(PyObject* value) {
    if (PyFloat_CheckExact(value) || PyLong_CheckExact(value) || PyBool_Check(value)) return true;
    if (!PyTuple_CheckExact(value)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i) {
        if (!PyFloat_CheckExact(PyTuple_GET_ITEM(value, i))) return false;
    }
    return true;
}

inline bool read(const dlpack::ExchangeApi* api, PyObject* tensor, dlpack::Tensor* out) {
    if (api->tensor_from_py_object(tensor, out) == 0) return out->ndim == 0 || out->strides != nullptr;
    PyErr_Clear();
    return false;
}

inline uintptr_t address(const dlpack::Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
}

inline bool same_type(dlpack::DataType a, dlpack::DataType b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

}  // namespace greedylr
