// greedylr_fused._host: the Watch as a Python class that takes part in garbage collection.
#include <pybind11/pybind11.h>

#include "snapshot.h"
#include "watch.h"

namespace py = pybind11;

namespace greedylr {
namespace {

Watch* watch_in(PyObject* self) {
    return py::detail::is_holder_constructed(self) ? &py::cast<Watch&>(py::handle(self)) : nullptr;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const Watch* const watch = watch_in(self);
    return watch == nullptr ? 0 : watch->traverse(visit, arg);
}

int clear(PyObject* self) {
    Watch* const watch = watch_in(self);
    if (watch != nullptr) watch->clear();
    return 0;
}

void collect_garbage(PyHeapTypeObject* heap_type) {
    PyTypeObject* const type = &heap_type->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = traverse;
    type->tp_clear = clear;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
    m.doc() = "What must be looked at before each step, through DLPack.";
    py::class_<Watch>(m, "Watch", "As greedylr_fused.watch.Watch.", py::custom_type_setup(collect_garbage))
        .def(py::init<const py::capsule&, const py::object&, const py::sequence&, const py::sequence&,
                      const py::sequence&, const py::object&, const py::object&>(),
             py::arg("api"), py::arg("direct"), py::arg("entries"), py::arg("stateless"), py::arg("groups"),
             py::arg("state"), py::arg("row"))
        .def("look", &Watch::look, py::arg("groups"), py::arg("state"))
        .def("odd", &Watch::odd)
        .def("put", &Watch::put, py::arg("i"), py::arg("address"))
        .def("accept", &Watch::accept, py::arg("i"), py::arg("gradient"))
        .def("params_with_grad", &Watch::params_with_grad);
    m.def(
        "take_snapshot",
        [](uintptr_t source, uintptr_t target, int64_t n, double known) {
            return take_snapshot(reinterpret_cast<const double*>(source), reinterpret_cast<double*>(target),
                                 n, known);
        },
        py::arg("source"), py::arg("target"), py::arg("n"), py::arg("known"),
        "Copy what a kernel wrote last; -1 if it is known, or being written.");
}

}  // namespace greedylr
