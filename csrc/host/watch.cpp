// The looks of a Watch. Tens of nanoseconds a tensor: addresses through DLPack, nothing allocated, no
// operation of PyTorch called.
#include "watch.h"

#include "reading.h"

namespace greedylr {
namespace {

constexpr int64_t EMPTY = 1;  // address of an empty gradient, never read (formats.py)
constexpr int64_t NONE = -1;  // nothing that a kernel could read
// After a backward pass nothing of 1,000 tensors is in the caches, and each is a chain of five objects:
// looked at as they come, they take 0.5 ms, fetched so many tensors ahead 0.3 ms; in the caches 3 % longer.
constexpr size_t AHEAD = 3;

}  // namespace

// Inlined by force: GCC takes a function that only fetches for one without effect, and leaves its calls out.
__attribute__((always_inline)) inline void Watch::fetch(const Lines& lines) const {
    for (size_t i = lines.begin; i < lines.end; ++i) __builtin_prefetch(lines_[i]);
}

__attribute__((always_inline)) inline void Watch::fetch(const Entry& entry) const {
    fetch(entry.lines);
    const char* const shape = static_cast<const char*>(entry.seen[1]);
    __builtin_prefetch(entry.seen[0]);
    for (const char* line : {shape - LINE, shape, shape + LINE}) __builtin_prefetch(line);
}

int Watch::look(const py::object& groups, const py::object& state) {
    odd_.clear();
    int result = 0;
    if (cleared_ || !same_groups(groups.ptr(), &result) || !same_states(state.ptr()) || !no_newcomers()) {
        return flags::REBUILD;
    }
    for (size_t i = 0; i < entries_.size(); ++i) {
        if (i + AHEAD < entries_.size()) fetch(entries_[i + AHEAD]);
        Entry& entry = entries_[i];
        if (!same_parameter(entry)) return flags::REBUILD;
        const int64_t address = address_of(entry);
        if (address == NONE) {
            odd_.push_back(int64_t(i));
            result |= flags::NEEDS_COPY;
        } else if (address != row_[i]) {
            result |= put(int64_t(i), address);
        }
    }
    return result;
}

int Watch::put(int64_t i, int64_t address) {
    if (i < 0 || size_t(i) >= entries_.size()) throw py::index_error("no such tensor in the table");
    int64_t& slot = row_[i];
    const bool came_or_went = (slot == 0) != (address == 0);
    const int result = (slot != address ? flags::MOVED : 0) | (came_or_went ? flags::COUNT : 0);
    slot = address;
    return result;
}

void Watch::accept(int64_t i, const py::object& gradient) {
    entries_.at(size_t(i)).spec = gradient.attr(names().spec);
}

py::list Watch::odd() const {
    py::list indices;
    for (const int64_t i : odd_) indices.append(i);
    return indices;
}

py::list Watch::params_with_grad() const {
    py::list params;
    for (size_t i = 0; i < entries_.size(); ++i) {
        if (row_[i] != 0) params.append(py::handle(entries_[i].param));
    }
    return params;
}

bool Watch::same(PyObject* tensor, const Memory& memory) const {
    if (Py_TYPE(tensor) == memory.direct) {
        Direct::Reading now;
        return direct_.read(tensor, &now) && uintptr_t(now.data) == memory.address &&
               now.dtype == memory.torch_dtype && now.ndim == memory.ndim &&
               same_dims(now.shape, now.strides, memory);
    }
    dlpack::Tensor now;
    return read(api_, tensor, &now) && address(now) == memory.address && same_type(now.dtype, memory.dtype) &&
           now.ndim == memory.ndim && same_dims(now.shape, now.strides, memory);
}

bool Watch::same_address(PyObject* tensor, const Memory& memory) const {
    if (Py_TYPE(tensor) == memory.direct) {
        void* now;
        return direct_.data_of(tensor, &now) && uintptr_t(now) == memory.address;
    }
    dlpack::Tensor now;
    return read(api_, tensor, &now) && address(now) == memory.address;
}

bool Watch::same_dims(const int64_t* shape, const int64_t* strides, const Memory& memory) const {
    const int64_t* const known = dims_.data() + memory.dims;
    for (int32_t d = 0; d < memory.ndim; ++d) {  // few: a call of memcmp would take longer
        if (shape[d] != known[d] || strides[d] != known[memory.ndim + d]) return false;
    }
    return true;
}

// 1: a sign yet to be applied, 2: a conjugation. DLPack has no word for either. Views of more than one
// element that are negated so have even strides, which no dense tensor has: PyTorch makes them of the
// imaginary parts of complex numbers.
int Watch::hidden(PyObject* tensor, const Entry& entry) const {
    if (!entry.may_hide) return 0;
    return int(maybe(tensor, names().is_neg)) + (entry.complex ? 2 * int(maybe(tensor, names().is_conj)) : 0);
}

bool Watch::same_parameter(const Entry& entry) const {
    PyObject* tensor = entry.param;
    py::object local;
    if (entry.spec) {
        local = local_(tensor);
        if (!local) return false;
        tensor = local.ptr();
    }
    return same(tensor, entry.memory) && hidden(tensor, entry) == entry.hidden;
}

bool Watch::same_groups(PyObject* groups, int* found) {
    if (!PyList_Check(groups) || size_t(PyList_GET_SIZE(groups)) != groups_.size()) return false;
    for (size_t g = 0; g < groups_.size(); ++g) {
        Group& known = groups_[g];
        PyObject* const now = PyList_GET_ITEM(groups, Py_ssize_t(g));
        if (item(now, names().amsgrad) != known.amsgrad) return false;
        PyObject* const params = item(now, names().params);
        if (params == nullptr || !PyList_Check(params)) return false;
        if (size_t(PyList_GET_SIZE(params)) != known.params.size()) return false;
        for (size_t i = 0; i < known.params.size(); ++i) {
            if (PyList_GET_ITEM(params, Py_ssize_t(i)) != known.params[i]) return false;
        }
        for (int k = 0; k < HYPERS; ++k) {
            PyObject* value = item(now, names().hyper[k]);
            if (value == nullptr && k + 1 < HYPERS) return false;
            if (value == nullptr) value = Py_False;
            if (value == known.hyper[k].ptr()) continue;
            *found |= flags::HYPER;
            known.hyper[k] = is_fixed(value) ? py::reinterpret_borrow<py::object>(value) : py::object();
        }
    }
    return true;
}

bool Watch::same_states(PyObject* state) const {
    if (!PyDict_Check(state) || size_t(PyDict_GET_SIZE(state)) != states_.size()) return false;
    PyObject *param, *dict;
    Py_ssize_t position = 0;
    for (size_t i = 0; i < states_.size(); ++i) {
        const Own& own = states_[i];
        if (i + AHEAD < states_.size()) fetch(states_[i + AHEAD].lines);
        if (!PyDict_Next(state, &position, &param, &dict)) return false;
        if (param != own.param || dict != own.dict || !same_items(own)) return false;
    }
    return true;
}

bool Watch::same_items(const Own& own) const {
    if (PyDict_GET_SIZE(own.dict) != own.size) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (size_t i = own.items; i < own.items_end; ++i) {
        const Item& item = items_[i];
        if (!PyDict_Next(own.dict, &position, &key, &value) || key != item.key) return false;
        if (item.value == nullptr) continue;
        if (value != item.value) return false;
        if (item.is_count) {
            if (!same_address(value, item.memory)) return false;
        } else if (!item.distributed) {
            if (!same(value, item.memory)) return false;
        } else {
            const py::object local = local_(value);
            if (!local || !same(local.ptr(), item.memory)) return false;
        }
    }
    return true;
}

bool Watch::no_newcomers() const {
    for (PyObject* param : stateless_) {
        if (!grad_(param).is_none()) return false;
    }
    return true;
}

// Returns whether a gradient lies as the parameter does; the stride of a dimension of one element is free.
bool Watch::fits(const dlpack::Tensor& tensor, const Entry& entry) const {
    const Memory& wanted = entry.gradient;
    if (!same_type(tensor.dtype, wanted.dtype) || tensor.ndim != wanted.ndim) return false;
    const int64_t *shape = dims_.data() + wanted.dims, *strides = shape + wanted.ndim;
    for (int32_t d = 0; d < wanted.ndim; ++d) {
        if (tensor.shape[d] != shape[d]) return false;
        if (tensor.strides[d] != strides[d] && shape[d] != 1) return false;
    }
    return true;
}

int64_t Watch::address_of(Entry& entry) const {
    py::object gradient = grad_(entry.param);
    if (!gradient) return NONE;
    if (gradient.is_none()) return 0;
    if (entry.spec) {
        if (!spec_(gradient.ptr()).is(entry.spec)) return NONE;
        gradient = local_(gradient.ptr());
        if (!gradient) return NONE;
    }
    dlpack::Tensor now;
    if (!read(api_, gradient.ptr(), &now) || !fits(now, entry)) return NONE;
    entry.seen[0] = gradient.ptr();
    entry.seen[1] = now.shape;
    if (hidden(gradient.ptr(), entry) != 0) return NONE;
    if (entry.empty) return EMPTY;
    return now.data == nullptr ? NONE : int64_t(address(now));
}

}  // namespace greedylr
