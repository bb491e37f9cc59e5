// The look before each step: has anything that the table of addresses was built for changed,
// and where do the gradients lie? `greedylr_fused/tensors/watch.py` is the specification of this class, and
// its stand-in.
#pragma once

#include <pybind11/pybind11.h>
#include <stdint.h>

#include <vector>

#include "direct.h"
#include "dlpack.h"
#include "reading.h"

namespace greedylr {

// Findings of a look: any of them together, but REBUILD alone.
namespace flags {
constexpr int MOVED = 1;       // an address in the row changed
constexpr int COUNT = 2;       // a gradient came or went
constexpr int HYPER = 4;       // hyper-parameters may have changed
constexpr int NEEDS_COPY = 8;  // a gradient cannot be read as it is
constexpr int REBUILD = 16;
}  // namespace flags

class Watch {
  public:
    // Takes arguments as watch.py does; in `direct` what direct.py found, or None. Throws py::value_error if
    // a tensor cannot be watched through DLPack.
    Watch(const py::capsule& api, const py::object& direct, const py::sequence& entries,
          const py::sequence& stateless, const py::sequence& groups, const py::object& state,
          const py::object& row);

    int look(const py::object& groups, const py::object& state);
    py::list odd() const;
    // Writes an address that Python found; what that changed.
    int put(int64_t i, int64_t address);
    // Takes gradients distributed like this one, which Python compared, for right from now on.
    void accept(int64_t i, const py::object& gradient);
    // Parameters with a gradient, in the table's order.
    py::list params_with_grad() const;

    // For Python's garbage collector: the parameters' hooks may lead back here.
    int traverse(visitproc visit, void* arg) const;
    void clear();

  private:
    // Memory as DLPack describes it. Its shape and then its strides begin in dims_ at `dims`.
    struct Memory {
        uintptr_t address;
        dlpack::DataType dtype;
        int32_t ndim;
        size_t dims;
        PyTypeObject* direct;  // null unless objects of this type can be read in place
        int32_t torch_dtype;   // its number in PyTorch, if so
    };
    // A part of lines_: what a look reads at one tensor or dictionary.
    struct Lines {
        size_t begin, end;
    };
    struct Entry {
        PyObject* param;
        py::object spec;  // null unless it is distributed
        Memory memory, gradient;
        bool empty, complex;
        bool may_hide;  // a sign or conjugation yet to be applied that need not show in its strides
        int hidden;     // what the parameter hides, see hidden()
        Lines lines;
        const void* seen[2];  // the last gradient: its object, and where its shape is kept
    };
    // One item of a parameter's state dictionary, in order. Nothing keeps its tensor alive: it is compared by
    // identity before it is read, and then by where its memory lies.
    struct Item {
        PyObject *key, *value;  // value is null if kernels do not read it
        bool distributed, is_count;
        Memory memory;  // of a step count the address is all that is compared
    };
    struct Own {
        PyObject *param, *dict;
        Py_ssize_t size;
        size_t items, items_end;  // in items_
        Lines lines;
    };
    struct Group {
        PyObject* amsgrad;
        std::vector<PyObject*> params;
        py::object hyper[HYPERS];  // null if it may change where it is
    };

    PyObject* keep(const py::handle& object);
    void read_direct_from(const py::object& direct);
    void try_direct(const py::object& tensor, Memory* memory);
    Memory memory_of(const py::object& tensor);
    void add_entry(const py::object& source);
    void add_own(const py::object& param, const py::object& dict, const py::object& entry);
    void add_group(const py::object& source);
    void add_lines(const py::handle& tensor, const Memory& memory);

    void fetch(const Lines& lines) const;
    void fetch(const Entry& entry) const;
    int hidden(PyObject* tensor, const Entry& entry) const;
    bool same(PyObject* tensor, const Memory& memory) const;
    bool same_address(PyObject* tensor, const Memory& memory) const;
    bool same_dims(const int64_t* shape, const int64_t* strides, const Memory& memory) const;
    bool same_parameter(const Entry& entry) const;
    bool same_groups(PyObject* groups, int* found);
    bool same_states(PyObject* state) const;
    bool same_items(const Own& own) const;
    bool no_newcomers() const;
    bool fits(const dlpack::Tensor& tensor, const Entry& entry) const;
    int64_t address_of(Entry& entry) const;

    const dlpack::ExchangeApi* api_;
    Direct direct_;
    std::vector<py::object> kept_;
    std::vector<int64_t> dims_;
    std::vector<Entry> entries_;
    std::vector<PyObject*> stateless_;
    std::vector<Group> groups_;
    std::vector<Own> states_;
    std::vector<Item> items_;
    // Addresses within what was found when this was built, a cache line each. They are fetched ahead of a
    // look, never read: where a tensor is gone or lies elsewhere, that costs time alone.
    std::vector<const void*> lines_;
    int64_t* row_;
    bool cleared_ = false;  // by the garbage collector
    std::vector<int64_t> odd_;
    Attribute grad_{names().grad}, local_{names().local}, spec_{names().spec};
};

}  // namespace greedylr
