// Building a Watch: everything is read from Python once, so that a look compares numbers.
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "reading.h"
#include "watch.h"

namespace greedylr {

Watch::Watch(const py::capsule& api, const py::object& direct, const py::sequence& entries,
             const py::sequence& stateless, const py::sequence& groups, const py::object& state,
             const py::object& row)
    : api_(static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(api.ptr(), dlpack::CAPSULE_NAME))) {
    if (api_ == nullptr) throw py::error_already_set();
    if (api_->major != dlpack::MAJOR_VERSION || api_->tensor_from_py_object == nullptr) {
        throw py::value_error("PyTorch offers DLPack " + std::to_string(api_->major) + "." +
                              std::to_string(api_->minor) +
                              ", readable is version 1 with a reader of tensors");
    }
    read_direct_from(direct);
    const auto need = [](const py::handle& object, int is_that, const char* what) {
        if (!is_that) throw py::value_error(std::string(what) + " is a " + Py_TYPE(object.ptr())->tp_name);
    };
    need(state, PyDict_Check(state.ptr()), "the state");
    py::dict entry_of;
    for (const py::handle entry : entries) {
        add_entry(py::reinterpret_borrow<py::object>(entry));
        entry_of[py::int_(reinterpret_cast<uintptr_t>(entries_.back().param))] = entry;
    }
    for (const py::handle param : stateless) stateless_.push_back(keep(param));
    for (const py::handle group : groups) {
        need(group, PyDict_Check(group.ptr()), "a parameter group");
        need(group, PyList_Check(group[names().params].ptr()), "the list of parameters of a group");
        add_group(py::reinterpret_borrow<py::object>(group));
    }
    for (const auto& [param, dict] : py::reinterpret_borrow<py::dict>(state)) {
        need(dict, PyDict_Check(dict.ptr()), "the state of a parameter");
        const py::int_ id(reinterpret_cast<uintptr_t>(param.ptr()));
        add_own(py::reinterpret_borrow<py::object>(param), py::reinterpret_borrow<py::object>(dict),
                entry_of.contains(id) ? py::object(entry_of[id]) : py::none());
    }
    keep(row);
    row_ = reinterpret_cast<int64_t*>(row.attr("data_ptr")().cast<uintptr_t>());
}

PyObject* Watch::keep(const py::handle& object) {
    kept_.push_back(py::reinterpret_borrow<py::object>(object));
    return object.ptr();
}

Watch::Memory Watch::memory_of(const py::object& tensor) {
    dlpack::Tensor found;
    const bool readable = read(api_, tensor.ptr(), &found);
    if (!readable || address(found) != tensor.attr("data_ptr")().cast<uintptr_t>()) {
        throw py::value_error("DLPack cannot describe the memory of a " +
                              std::string(Py_TYPE(tensor.ptr())->tp_name));
    }
    Memory memory = {address(found), found.dtype, found.ndim, dims_.size(), nullptr, 0};
    dims_.insert(dims_.end(), found.shape, found.shape + found.ndim);
    dims_.insert(dims_.end(), found.strides, found.strides + found.ndim);
    try_direct(tensor, &memory);
    return memory;
}

void Watch::read_direct_from(const py::object& direct) {
    if (direct.is_none()) return;
    const auto found = direct.cast<std::vector<uintptr_t>>();
    if (found.size() != 6) throw py::value_error("direct takes the addresses of 5 functions, and an offset");
    direct_ = {reinterpret_cast<decltype(Direct::data)>(found[0]),
               reinterpret_cast<decltype(Direct::dim)>(found[1]),
               reinterpret_cast<decltype(Direct::sizes)>(found[2]),
               reinterpret_cast<decltype(Direct::strides)>(found[3]),
               reinterpret_cast<decltype(Direct::dtype)>(found[4]),
               Py_ssize_t(found[5])};
}

// From now on, if it says the same as DLPack.
void Watch::try_direct(const py::object& tensor, Memory* memory) {
    Direct::Reading now;
    if (direct_.data == nullptr || !direct_.read(tensor.ptr(), &now)) return;
    if (uintptr_t(now.data) != memory->address || now.ndim != memory->ndim) return;
    if (!same_dims(now.shape, now.strides, *memory)) return;
    memory->torch_dtype = now.dtype;
    memory->direct = Py_TYPE(tensor.ptr());
    keep(reinterpret_cast<PyObject*>(memory->direct));
}

void Watch::add_entry(const py::object& source) {
    Entry entry;
    entry.param = keep(source.attr("param"));
    const py::object spec = source.attr("spec");
    if (!spec.is_none()) entry.spec = spec;
    entry.memory = memory_of(source.attr("memory"));
    const auto type = source.attr("grad_code").cast<std::pair<uint8_t, uint8_t>>();
    entry.gradient = {0, {type.first, type.second, 1}, entry.memory.ndim, dims_.size(), nullptr, 0};
    int64_t numel = 1;
    for (const py::handle size : source.attr("shape")) {
        dims_.push_back(size.cast<int64_t>());
        numel *= dims_.back();
    }
    for (const py::handle stride : source.attr("strides")) dims_.push_back(stride.cast<int64_t>());
    entry.empty = numel == 0;
    entry.complex = entry.memory.dtype.code == dlpack::COMPLEX;
    entry.may_hide = numel == 1 || entry.complex;
    entry.hidden = hidden(source.attr("memory").ptr(), entry);
    entry.lines.begin = lines_.size();
    add_lines(entry.param, entry.memory);
    entry.lines.end = lines_.size();
    entry.seen[0] = entry.seen[1] = source.ptr();
    entries_.push_back(entry);
}

void Watch::add_own(const py::object& param, const py::object& dict, const py::object& entry) {
    keep(param);
    keep(dict);
    Own own = {param.ptr(), dict.ptr(), PyDict_GET_SIZE(dict.ptr()), items_.size(), 0, {lines_.size(), 0}};
    const auto* const keys =
        reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(dict.ptr())->ma_keys);
    lines_.insert(lines_.end(), {dict.ptr(), keys, keys + LINE, keys + 2 * LINE});
    if (!entry.is_none()) {
        const bool distributed = !entry.attr("spec").is_none();
        const py::object stored = entry.attr("stored"), counts = entry.attr("counts");
        for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(dict)) {
            const bool is_stored = stored.contains(key);
            const bool is_count = counts.contains(key);
            Item item = {keep(key), nullptr, distributed && is_stored, is_count, {}};
            if (is_stored || is_count) {
                item.value = value.ptr();
                item.memory = memory_of(item.distributed ? value.attr("_local_tensor")
                                                         : py::reinterpret_borrow<py::object>(value));
            }
            add_lines(value, item.memory);
            items_.push_back(item);
        }
    }
    own.items_end = items_.size();
    own.lines.end = lines_.size();
    states_.push_back(own);
}

// Of a tensor that is read in place: the Python object, PyTorch's, and what two words near the begin of that
// point to today, its storage and what autograd keeps. In another layout other places are fetched, in vain.
void Watch::add_lines(const py::handle& tensor, const Memory& memory) {
    if (Py_TYPE(tensor.ptr()) != memory.direct) return;
    const char* const inner = *static_cast<const char* const*>(direct_.tensor_in(tensor.ptr()));
    lines_.insert(lines_.end(), {tensor.ptr(), inner, inner + LINE, inner + 2 * LINE});
    for (const int word : {2, 3}) {
        const char* const part = reinterpret_cast<const char* const*>(inner)[word];
        if (part != nullptr) lines_.insert(lines_.end(), {part, part + LINE});
    }
}

void Watch::add_group(const py::object& source) {
    Group group;
    group.amsgrad = keep(source[names().amsgrad]);
    for (const py::handle param : source[names().params]) group.params.push_back(keep(param));
    for (int k = 0; k < HYPERS; ++k) {
        PyObject* const found = item(source.ptr(), names().hyper[k]);
        PyObject* const value = found == nullptr ? Py_False : found;
        if (is_fixed(value)) group.hyper[k] = py::reinterpret_borrow<py::object>(value);
    }
    groups_.push_back(group);
}

int Watch::traverse(visitproc visit, void* arg) const {
    for (const py::object& object : kept_) Py_VISIT(object.ptr());
    for (const Entry& entry : entries_) Py_VISIT(entry.spec.ptr());
    for (const Attribute* attribute : {&grad_, &local_, &spec_}) {
        if (const int stop = attribute->traverse(visit, arg)) return stop;
    }
    return 0;
}

void Watch::clear() {
    entries_.clear();
    stateless_.clear();
    groups_.clear();
    states_.clear();
    items_.clear();
    lines_.clear();
    cleared_ = true;
    std::exchange(kept_, {});  // last: it may run any code, and this object must be whole by then
}

}  // namespace greedylr
