// Reading tensors and Python objects where an error is an answer: what cannot be read is reported as
// different.
#pragma once

#include <pybind11/pybind11.h>
#include <stdint.h>
#include <structmember.h>

#include "dlpack.h"

namespace greedylr {

namespace py = pybind11;

constexpr size_t LINE = 64;  // bytes that processors fetch at a time, or half of them

constexpr int HYPERS = 5;  // of which the last is there only where it is asked for

// Names as Python's own strings, made once and never given back.
struct Names {
    PyObject* grad = PyUnicode_InternFromString("grad");
    PyObject* local = PyUnicode_InternFromString("_local_tensor");
    PyObject* spec = PyUnicode_InternFromString("_spec");
    PyObject* is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* is_conj = PyUnicode_InternFromString("is_conj");
    PyObject* params = PyUnicode_InternFromString("params");
    PyObject* amsgrad = PyUnicode_InternFromString("amsgrad");
    PyObject* hyper[HYPERS] = {PyUnicode_InternFromString("betas"), PyUnicode_InternFromString("eps"),
                               PyUnicode_InternFromString("weight_decay"),
                               PyUnicode_InternFromString("maximize"),
                               PyUnicode_InternFromString("corrected_weight_decay")};
};

inline const Names& names() {
    static const Names all;
    return all;
}

// One attribute of many objects, mostly of one type: its getter in C is called, or its slot read, without
// being looked up each time.
class Attribute {
  public:
    explicit Attribute(PyObject* name) : name_(name) {}

    // Null if it cannot be read.
    py::object operator()(PyObject* object) const {
        if (Py_TYPE(object) != type_) look_up(Py_TYPE(object));
        if (slot_ != 0) {
            return py::reinterpret_borrow<py::object>(
                *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + slot_));
        }
        PyObject* value = getter_ != nullptr ? getter_(object, closure_) : PyObject_GetAttr(object, name_);
        if (value == nullptr) PyErr_Clear();
        return py::reinterpret_steal<py::object>(value);
    }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(kept_.ptr());
        return 0;
    }

  private:
    void look_up(PyTypeObject* type) const {
        slot_ = 0;
        getter_ = nullptr;
        type_ = type;
        kept_ = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));
        if (type->tp_getattro != PyObject_GenericGetAttr) return;
        const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(kept_.ptr(), name_));
        if (!found) {
            PyErr_Clear();
        } else if (Py_IS_TYPE(found.ptr(), &PyGetSetDescr_Type)) {
            const PyGetSetDef* const getset = reinterpret_cast<PyGetSetDescrObject*>(found.ptr())->d_getset;
            getter_ = getset->get;
            closure_ = getset->closure;
        } else if (Py_IS_TYPE(found.ptr(), &PyMemberDescr_Type)) {
            const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
            if (member->type == T_OBJECT_EX) slot_ = member->offset;
        }
    }

    PyObject* name_;
    mutable PyTypeObject* type_ = nullptr;
    mutable py::object kept_;  // so that no other type can have its address
    mutable Py_ssize_t slot_ = 0;
    mutable getter getter_ = nullptr;
    mutable void* closure_ = nullptr;
};

// Borrowed; null if it is not there or this is no dictionary.
inline PyObject* item(PyObject* dict, PyObject* key) {
    if (!PyDict_Check(dict)) return nullptr;
    PyObject* value = PyDict_GetItemWithError(dict, key);
    if (value == nullptr) PyErr_Clear();
    return value;
}

// Returns what the method answers, or true if it cannot answer.
inline bool maybe(PyObject* tensor, PyObject* method) {
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, method));
    if (!answer) PyErr_Clear();
    return answer.ptr() != Py_False;
}

// Returns whether an object keeps its value as long as it lives: numbers and tuples of them cannot change.
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
