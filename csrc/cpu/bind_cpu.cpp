// greedylr_fused._cpu: checks, converts and calls; no arithmetic. Tensors enter as integer addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../core/control.h"
#include "loops.h"
#include "step.h"
#include "threads.h"

namespace py = pybind11;

namespace greedylr {
namespace {

constexpr const char* DTYPE_NAMES[DTYPE_COUNT] = {"F32", "F64", "BF16", "F16"};

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

std::string name_of(int dtype) {
    return dtype >= 0 && dtype < DTYPE_COUNT ? DTYPE_NAMES[dtype] : "dtype code " + std::to_string(dtype);
}

std::string name_of(int param, int grad, int state) {
    return "(" + name_of(param) + ", " + name_of(grad) + ", " + name_of(state) + ")";
}

std::string supported_mixes() {
    std::string names;
    for (const Mix& m : MIXES) names += (names.empty() ? "" : ", ") + name_of(m.param, m.grad, m.state);
    return names;
}

using LaunchTuple = std::tuple<int, int, int, int64_t, int64_t>;  // param, grad, state, first chunk, chunks

std::vector<Launch> checked_launches(const std::vector<LaunchTuple>& tuples, int64_t n_chunks) {
    std::vector<Launch> launches;
    int64_t covered = 0;
    for (const auto& [param, grad, state, first, count] : tuples) {
        const int mix = find_mix(param, grad, state);
        if (mix < 0) {
            throw py::value_error("no CPU loop for (parameter, gradient, moments) = " +
                                  name_of(param, grad, state) + "; there are loops for " + supported_mixes());
        }
        if (first != covered || count < 0) break;
        covered += count;
        launches.push_back({mix, first, count});
    }
    if (covered != n_chunks) {
        throw py::value_error("launches cover the first " + std::to_string(covered) + " of " +
                              std::to_string(n_chunks) + " chunks; they must cover all of them in order");
    }
    return launches;
}

Stepper make_stepper(uintptr_t ptrs, uintptr_t numel, uintptr_t group, uintptr_t hyper, uintptr_t steps,
                     uintptr_t chunk_tensor, uintptr_t chunk_index, int64_t n_tensors, int64_t n_chunks,
                     int64_t chunk, uintptr_t control, const std::vector<LaunchTuple>& launches) {
    if (chunk <= 0) throw py::value_error("chunk is " + std::to_string(chunk) + "; it must be positive");
    const Table table = {pointer<const int64_t>(ptrs),
                         pointer<const int64_t>(numel),
                         pointer<const int32_t>(group),
                         pointer<const double>(hyper),
                         pointer<float>(steps),
                         pointer<const int32_t>(chunk_tensor),
                         pointer<const int32_t>(chunk_index),
                         n_tensors,
                         n_chunks,
                         chunk,
                         pointer<double>(control)};
    return Stepper(table, checked_launches(launches, n_chunks));
}

py::bytes control_trace(uintptr_t control, const std::vector<double>& losses,
                        const std::vector<double>& weights) {
    if (weights.size() != losses.size()) {
        throw py::value_error("got " + std::to_string(losses.size()) + " losses and " +
                              std::to_string(weights.size()) + " weights; there must be one weight per loss");
    }
    double* c = pointer<double>(control);
    std::vector<double> lr(losses.size() * size_t(c[slot::n_groups]));
    run_control(c, losses.data(), weights.data(), int64_t(losses.size()), lr.data());
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

void define_constants(py::module_& m) {
    py::list slots, mixes;
#define GREEDYLR_SLOT_NAME(name) slots.append(#name);
    GREEDYLR_SLOTS(GREEDYLR_SLOT_NAME)
#undef GREEDYLR_SLOT_NAME
    for (const Mix& mix : MIXES) mixes.append(py::make_tuple(int(mix.param), int(mix.grad), int(mix.state)));
    py::dict dtypes;
    for (int d = 0; d < DTYPE_COUNT; ++d) dtypes[DTYPE_NAMES[d]] = d;
    m.attr("SLOTS") = py::tuple(slots);
    m.attr("MIXES") = py::tuple(mixes);
    m.attr("DTYPES") = dtypes;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    m.doc() = "AdamW and GreedyLR on the CPU, over tables of addresses.";
    define_constants(m);
    py::class_<Stepper>(m, "Table", "One optimizer's tensors, by address; the addresses must outlive it.")
        .def(py::init(&make_stepper), py::kw_only(), py::arg("ptrs"), py::arg("numel"), py::arg("group"),
             py::arg("hyper"), py::arg("steps"), py::arg("chunk_tensor"), py::arg("chunk_index"),
             py::arg("n_tensors"), py::arg("n_chunks"), py::arg("chunk"), py::arg("control"),
             py::arg("launches"))
        .def("measure", &Stepper::measure, py::arg("threads"), NoGil())
        .def("decide", &Stepper::decide)
        .def("update", &Stepper::update, py::arg("threads"), NoGil())
        .def("commit", &Stepper::commit, NoGil());
    m.def("isa", [] { return loops().isa; }, "Instruction set of the loops in use.");
    m.def("isas", &isa_names, "Instruction sets that this processor can run, best first.");
    m.def("set_isa", &set_isa, py::arg("name"), "Use the loops of one instruction set (for tests).");
    m.def("threads_backend", &threads_backend, "Whose threads run the loops.");
    m.def("run_control", &control_trace, py::arg("control"), py::arg("losses"), py::arg("weights"),
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
