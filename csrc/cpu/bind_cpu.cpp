// greedylr_fused._cpu: checks, converts and calls; no arithmetic. Tensors enter as integer addresses.
#include <string>
#include <utility>
#include <vector>

#include "../bind/table.h"
#include "loops.h"
#include "step.h"
#include "threads.h"

namespace greedylr {
namespace {

Stepper make_stepper(uintptr_t ptrs, uintptr_t numel, uintptr_t group, uintptr_t hyper, uintptr_t norm_weight,
                     uintptr_t chunk_tensor, uintptr_t chunk_index, int64_t n_tensors, int64_t n_chunks,
                     int64_t chunk, uintptr_t control, uintptr_t curve, bool l1, bool tuned,
                     const std::vector<LaunchTuple>& launches) {
    return Stepper(make_table(ptrs, numel, group, hyper, norm_weight, chunk_tensor, chunk_index, n_tensors,
                              n_chunks, chunk, control, curve, l1, tuned),
                   checked_launches(launches, n_chunks));
}

py::bytes control_trace(uintptr_t control, uintptr_t curve, const std::vector<double>& losses,
                        const std::vector<double>& weights) {
    if (weights.size() != losses.size()) {
        throw py::value_error("got " + std::to_string(losses.size()) + " losses and " +
                              std::to_string(weights.size()) + " weights; there must be one weight per loss");
    }
    double* c = pointer<double>(control);
    std::vector<double> lr(losses.size() * size_t(c[slot::n_groups]));
    run_control(c, pointer<const double>(curve), losses.data(), weights.data(), int64_t(losses.size()),
                lr.data());
    return py::bytes(reinterpret_cast<const char*>(lr.data()), lr.size() * sizeof(double));
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const Loops* const* set = available_loops(); *set != nullptr; ++set) names.push_back((*set)->isa);
    return names;
}

void set_isa(const std::string& name) {
    if (force_loops(name.c_str())) return;
    std::string names;
    for (const std::string& isa : isa_names()) names += (names.empty() ? "" : ", ") + isa;
    throw py::value_error("this processor cannot run the instruction set '" + name + "'; it can run " +
                          names);
}

template <typename From, typename To, To (*convert)(From)>
void convert_array(uintptr_t from, uintptr_t to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) pointer<To>(to)[i] = convert(pointer<const From>(from)[i]);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    m.doc() = "AdamW and GreedyLR on the CPU, over tables of addresses.";
    define_constants(m);
    py::class_<Stepper>(m, "TensorTable",
                        "One optimizer's tensors, by address; the addresses must outlive it.")
        .def(py::init(&make_stepper), py::kw_only(), py::arg("ptrs"), py::arg("numel"), py::arg("group"),
             py::arg("hyper"), py::arg("norm_weight"), py::arg("chunk_tensor"), py::arg("chunk_index"),
             py::arg("n_tensors"), py::arg("n_chunks"), py::arg("chunk"), py::arg("control"),
             py::arg("curve"), py::arg("l1"), py::arg("tuned"), py::arg("launches"))
        .def("measure", &Stepper::measure, py::arg("threads"), py::arg("then_clip"), NoGil())
        .def("clip", &Stepper::clip)
        .def(
            "update",
            [](Stepper& stepper, int threads, bool then_control, uintptr_t loss, int dtype) {
                stepper.update(threads, then_control, {int64_t(loss), dtype});
            },
            py::arg("threads"), py::arg("then_control"), py::arg("loss") = 0, py::arg("dtype") = 0, NoGil())
        .def(
            "control",
            [](const Stepper& stepper, uintptr_t loss, int dtype) {
                stepper.control({int64_t(loss), dtype});
            },
            py::arg("loss") = 0, py::arg("dtype") = 0)
        .def(
            "observe",
            [](const Stepper& stepper, uintptr_t loss, int dtype, double weight, uintptr_t weight_at,
               int weight_dtype) {
                stepper.observe({{int64_t(loss), dtype}, {int64_t(weight_at), weight_dtype}, weight});
            },
            py::arg("loss"), py::arg("dtype"), py::arg("weight"), py::arg("weight_at"),
            py::arg("weight_dtype"))
        .def(
            "backup",
            [](const Stepper& stepper, int threads, const BackupTuple& table) {
                const py::gil_scoped_release released;
                stepper.backup(backup_table(table), threads);
            },
            py::arg("threads"), py::arg("table"));
    m.def("isa", [] { return loops().isa; }, "Instruction set of the loops in use.");
    m.def("isas", &isa_names, "Instruction sets that this processor can run, best first.");
    m.def("set_isa", &set_isa, py::arg("name"), "Use the loops of one instruction set (for tests).");
    m.def("threads_backend", &threads_backend, "Whose threads run the loops.");
    m.def("run_control", &control_trace, py::arg("control"), py::arg("curve"), py::arg("losses"),
          py::arg("weights"),
          "Feed losses to a control vector; float64 bytes [n, G]: the LR of every group after each.");
    const auto arrays = [&m](const char* name, auto convert) {
        m.def(name, convert, py::arg("source"), py::arg("target"), py::arg("n"),
              "Convert n elements, by address.");
    };
    arrays("to_bf16", &convert_array<float, uint16_t, float_to_bf16>);
    arrays("from_bf16", &convert_array<uint16_t, float, bf16_to_float>);
    arrays("to_f16", &convert_array<float, uint16_t, float_to_f16>);
    arrays("from_f16", &convert_array<uint16_t, float, f16_to_float>);
}

}  // namespace greedylr
