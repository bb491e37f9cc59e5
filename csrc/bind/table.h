// Shared by the bindings of all table backends: a table and its launches from Python's integers, checked,
// and the constants that tests compare with Python's.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "../core/backup.h"
#include "../core/control.h"
#include "../core/launch.h"

namespace greedylr {

namespace py = pybind11;

constexpr const char* DTYPE_NAMES[] = {"F32", "F64", "BF16", "F16", "I64", "BF16_R16", "BF16_R8", "Q8"};
constexpr int NAMED_DTYPES = int(sizeof DTYPE_NAMES / sizeof DTYPE_NAMES[0]);
static_assert(NAMED_DTYPES == Q8 + 1, "a name for each");

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline std::string name_of(int dtype) {
    return dtype >= 0 && dtype < NAMED_DTYPES ? DTYPE_NAMES[dtype] : "dtype code " + std::to_string(dtype);
}

inline std::string name_of(int param, int grad, int state) {
    return "(" + name_of(param) + ", " + name_of(grad) + ", " + name_of(state) + ")";
}

inline std::string supported_mixes() {
    std::string names;
    for (const Mix& m : MIXES) names += (names.empty() ? "" : ", ") + name_of(m.param, m.grad, m.state);
    return names;
}

using LaunchTuple = std::tuple<int, int, int, int64_t, int64_t>;  // param, grad, state, first chunk, chunks

inline std::vector<Launch> checked_launches(const std::vector<LaunchTuple>& tuples, int64_t n_chunks) {
    if (tuples.size() > size_t(MIX_COUNT)) {  // kernels have room for one each
        throw py::value_error("got " + std::to_string(tuples.size()) +
                              " launches; there may be one per mix, " + std::to_string(MIX_COUNT) +
                              " in all");
    }
    std::vector<Launch> launches;
    int64_t covered = 0;
    for (const auto& [param, grad, state, first, count] : tuples) {
        const int mix = find_mix(param, grad, state);
        if (mix < 0) {
            throw py::value_error("no loop for (parameter, gradient, moments) = " +
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

inline TensorTable make_table(uintptr_t ptrs, uintptr_t numel, uintptr_t group, uintptr_t hyper,
                              uintptr_t norm_weight, uintptr_t chunk_tensor, uintptr_t chunk_index,
                              int64_t n_tensors, int64_t n_chunks, int64_t chunk, uintptr_t control,
                              uintptr_t curve, bool l1, bool tuned) {
    if (chunk <= 0) throw py::value_error("chunk is " + std::to_string(chunk) + "; it must be positive");
    return {pointer<const int64_t>(ptrs),
            pointer<const int64_t>(numel),
            pointer<const int32_t>(group),
            pointer<const double>(hyper),
            pointer<const double>(norm_weight),
            pointer<const int32_t>(chunk_tensor),
            pointer<const int32_t>(chunk_index),
            n_tensors,
            n_chunks,
            chunk,
            pointer<double>(control),
            pointer<const double>(curve),
            l1,
            tuned};
}

// addresses, sizes, tensor and index of each chunk; tensors, chunks, bytes of a chunk
using BackupTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;

inline BackupTable backup_table(const BackupTuple& words) {
    const auto [addresses, sizes, chunk_tensor, chunk_index, n_tensors, n_chunks, chunk] = words;
    return {pointer<const int64_t>(addresses),
            pointer<const int64_t>(sizes),
            pointer<const int32_t>(chunk_tensor),
            pointer<const int32_t>(chunk_index),
            n_tensors,
            n_chunks,
            chunk};
}

inline void define_constants(py::module_& m) {
    py::list slots, mixes, rows;
#define GREEDYLR_SLOT_NAME(name) slots.append(#name);
    GREEDYLR_CONFIGURATION(GREEDYLR_SLOT_NAME)
    GREEDYLR_MEMORY(GREEDYLR_SLOT_NAME)
    GREEDYLR_STEP(GREEDYLR_SLOT_NAME)
#undef GREEDYLR_SLOT_NAME
#define GREEDYLR_ROW_NAME(name) rows.append(#name);
    GREEDYLR_ROWS(GREEDYLR_ROW_NAME)
#undef GREEDYLR_ROW_NAME
    for (const Mix& mix : MIXES) mixes.append(py::make_tuple(int(mix.param), int(mix.grad), int(mix.state)));
    py::dict dtypes;
    for (int d = 0; d < NAMED_DTYPES; ++d) dtypes[DTYPE_NAMES[d]] = d;
    m.attr("SLOTS") = py::tuple(slots);
    m.attr("MIXES") = py::tuple(mixes);
    m.attr("DTYPES") = dtypes;
    m.attr("ROWS") = py::tuple(rows);
}

}  // namespace greedylr
