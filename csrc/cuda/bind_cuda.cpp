// greedylr_fused._cuda: checks, converts and calls. Tensors enter as integer addresses, streams as integer
// handles.
#include <string>
#include <vector>

#include "../bind/table.h"
#include "step.h"

namespace greedylr {
namespace cuda {
namespace {

Stepper make_stepper(uintptr_t ptrs, uintptr_t numel, uintptr_t group, uintptr_t hyper, uintptr_t norm_weight,
                     uintptr_t chunk_tensor, uintptr_t chunk_index, int64_t n_tensors, int64_t n_chunks,
                     int64_t chunk, uintptr_t control, uintptr_t curve, bool l1, bool tuned,
                     const std::vector<LaunchTuple>& launches, uintptr_t scratch, uintptr_t snapshot,
                     int device) {
    constexpr int64_t PACK =
        16;  // elements of the narrowest type that the widest access could take, twice over
    if (chunk % PACK != 0 || chunk > INT32_MAX / 2) {
        throw py::value_error("chunk is " + std::to_string(chunk) + "; it must be a multiple of " +
                              std::to_string(PACK) + " below 2^30");
    }
    if (n_chunks > INT32_MAX / 2) {
        throw py::value_error("the table has " + std::to_string(n_chunks) +
                              " chunks; up to 2^30 are supported");
    }
    return Stepper(make_table(ptrs, numel, group, hyper, norm_weight, chunk_tensor, chunk_index, n_tensors,
                              n_chunks, chunk, control, curve, l1, tuned),
                   checked_launches(launches, n_chunks), pointer<void>(scratch), pointer<double>(snapshot),
                   device);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    m.doc() = "AdamW and GreedyLR as CUDA kernels, over tables of addresses.";
    define_constants(m);
    // Local to the module: the tests load a second one, whose kernels run on the CPU, into the same process.
    py::class_<Stepper>(m, "TensorTable",
                        "One optimizer's tensors, by address; the addresses must outlive it.",
                        py::module_local())
        .def(py::init(&make_stepper), py::kw_only(), py::arg("ptrs"), py::arg("numel"), py::arg("group"),
             py::arg("hyper"), py::arg("norm_weight"), py::arg("chunk_tensor"), py::arg("chunk_index"),
             py::arg("n_tensors"), py::arg("n_chunks"), py::arg("chunk"), py::arg("control"),
             py::arg("curve"), py::arg("l1"), py::arg("tuned"), py::arg("launches"), py::arg("scratch"),
             py::arg("snapshot"), py::arg("device"))
        .def("measure", &Stepper::measure, py::arg("stream"), py::arg("then_clip"), NoGil())
        .def("clip", &Stepper::clip, py::arg("stream"), NoGil())
        .def(
            "update",
            [](const Stepper& stepper, uintptr_t stream, bool then_control, uintptr_t loss, int dtype) {
                stepper.update(stream, then_control, {int64_t(loss), dtype});
            },
            py::arg("stream"), py::arg("then_control"), py::arg("loss") = 0, py::arg("dtype") = 0, NoGil())
        .def(
            "control",
            [](const Stepper& stepper, uintptr_t stream, uintptr_t loss, int dtype) {
                stepper.control(stream, {int64_t(loss), dtype});
            },
            py::arg("stream"), py::arg("loss") = 0, py::arg("dtype") = 0, NoGil())
        .def(
            "observe",
            [](const Stepper& stepper, uintptr_t stream, uintptr_t loss, int dtype, double weight,
               uintptr_t weight_at, int weight_dtype) {
                stepper.observe(stream, {{int64_t(loss), dtype}, {int64_t(weight_at), weight_dtype}, weight});
            },
            py::arg("stream"), py::arg("loss"), py::arg("dtype"), py::arg("weight"), py::arg("weight_at"),
            py::arg("weight_dtype"), NoGil())
        .def(
            "backup",
            [](const Stepper& stepper, uintptr_t stream, const BackupTuple& table) {
                stepper.backup(stream, backup_table(table));
            },
            py::arg("stream"), py::arg("table"), NoGil());
    m.def(
        "send",
        [](uintptr_t target, uintptr_t words, int64_t n, int device, uintptr_t stream) {
            send(pointer<void>(target), pointer<const void>(words), n, device, stream);
        },
        py::arg("target"), py::arg("words"), py::arg("n"), py::arg("device"), py::arg("stream"),
        "Copy n 8-byte words from host memory, which is free again at once, to the device.", NoGil());
    m.def("scratch_bytes", &scratch_bytes, "Bytes of device memory, zero at the start, that a table needs.");
    m.def("check_usable", &check_usable, py::arg("device"),
          "Raise RuntimeError if kernels cannot run there.");
}

}  // namespace cuda
}  // namespace greedylr
