#include "step.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backup.cuh"
#include "measure.cuh"
#include "runtime.h"
#include "send.cuh"
#include "tuned_update.cuh"

namespace greedylr {
namespace cuda {
namespace {

using UpdateKernel = void (*)(UpdateArgs);

#define GREEDYLR_KERNEL(P, G, S) update_kernel<P, G, S>,
const UpdateKernel UPDATE_KERNELS[] = {GREEDYLR_MIXES(GREEDYLR_KERNEL)};
#undef GREEDYLR_KERNEL

template <DType P, DType G, DType S>
constexpr UpdateKernel tune_kernel_of() {
    if constexpr (is_tunable(P)) {
        return tune_kernel<P, G, S>;
    } else {
        return nullptr;
    }
}

#define GREEDYLR_KERNEL(P, G, S) tune_kernel_of<P, G, S>(),
const UpdateKernel TUNE_KERNELS[] = {GREEDYLR_MIXES(GREEDYLR_KERNEL)};
#undef GREEDYLR_KERNEL

UpdateKernel kernel_of(const TensorTable& table, int mix) {
    return table.tuned ? TUNE_KERNELS[mix] : UPDATE_KERNELS[mix];
}

struct Scratch {
    unsigned arrived_measure, arrived_update;
    union {
        GradSum<false> lots[LOTS];
        GradSum<true> lots_l1[LOTS];
    };
    MovedSum moved[LOTS];
};

Scratch* scratch_at(void* address) { return static_cast<Scratch*>(address); }

template <bool L1>
GradSum<L1>* lots_of(Scratch* scratch) {
    if constexpr (L1)
        return scratch->lots_l1;
    else
        return scratch->lots;
}

// Ratio from which on gradients are added up in pairs of floats. A100, H100, H200 and B200 say 2; B300 and
// consumer parts 32 or 64.
constexpr int SLOW_DOUBLE = 8;

template <bool L1>
auto measure_kernel_for(bool pairs) {
    return pairs ? measure_kernel<L1, true> : measure_kernel<L1, false>;
}

template <bool L1>
auto measure_tuned_kernel_for(bool pairs) {
    return pairs ? measure_tuned_kernel<L1, true> : measure_tuned_kernel<L1, false>;
}

template <bool L1>
int resident_measures(bool pairs, bool tuned) {
    return tuned ? resident_blocks(measure_tuned_kernel_for<L1>(pairs), MEASURE_THREADS)
                 : resident_blocks(measure_kernel_for<L1>(pairs), MEASURE_THREADS);
}

Stream stream_of(uintptr_t handle) { return reinterpret_cast<Stream>(handle); }

// No more blocks than have work, no more than run at once, and one to close the step if there is no work at
// all.
int grid_for(int64_t items, int threads, int resident) {
    const int64_t wanted = (items * WARP + threads - 1) / threads;
    return int(std::max<int64_t>(1, std::min<int64_t>(wanted, resident)));
}

}  // namespace

int64_t scratch_bytes() { return sizeof(Scratch); }

Stepper::Stepper(const TensorTable& table, std::vector<Launch> launches, void* scratch, double* snapshot,
                 int device)
    : table_(table),
      launches_(std::move(launches)),
      scratch_(scratch),
      snapshot_(snapshot),
      device_(device),
      pairs_(single_to_double_ratio(device) >= SLOW_DOUBLE) {
    const DeviceGuard guard(device_);
    for (const Launch& l : launches_) {
        grids_.push_back(grid_for(l.count, THREADS, resident_blocks(kernel_of(table_, l.mix), THREADS)));
    }
    const int resident = table_.l1 ? resident_measures<true>(pairs_, table_.tuned)
                                   : resident_measures<false>(pairs_, table_.tuned);
    measure_grid_ = grid_for(std::min(table_.n_chunks, LOTS), MEASURE_THREADS, resident);
    backup_grid_ = resident_blocks(backup_kernel, BACKUP_THREADS);
}

void Stepper::measure(uintptr_t stream, bool then_clip) const {
    table_.l1 ? measure_with<true>(stream, then_clip) : measure_with<false>(stream, then_clip);
}

template <bool L1>
void Stepper::measure_with(uintptr_t stream, bool then_clip) const {
    const DeviceGuard guard(device_);
    Scratch* scratch = scratch_at(scratch_);
    MeasureArgs<L1> args = {table_, lots_of<L1>(scratch), &scratch->arrived_measure, then_clip, {}};
    for (size_t i = 0; i < launches_.size(); ++i) {
        args.launches[i] = {MIXES[launches_[i].mix].grad, launches_[i].first + launches_[i].count};
    }
    if (!table_.tuned) {
        launch(measure_kernel_for<L1>(pairs_), measure_grid_, MEASURE_THREADS, stream_of(stream), args);
        return;
    }
    TunedMeasureArgs<L1> tuned = {args, scratch->moved, {}};
    for (size_t i = 0; i < launches_.size(); ++i) tuned.params[i] = MIXES[launches_[i].mix].param;
    launch(measure_tuned_kernel_for<L1>(pairs_), measure_grid_, MEASURE_THREADS, stream_of(stream), tuned);
}

void Stepper::clip(uintptr_t stream) const {
    const DeviceGuard guard(device_);
    launch(table_.tuned ? clip_tuned_kernel : clip_kernel, 1, WARP, stream_of(stream), table_);
}

void Stepper::update(uintptr_t stream, bool then_control, const Loss& loss) const {
    const DeviceGuard guard(device_);
    for (size_t i = 0; i < launches_.size(); ++i) {
        const Launch& l = launches_[i];
        const bool closes = then_control && i + 1 == launches_.size();
        unsigned* arrived = closes ? &scratch_at(scratch_)->arrived_update : nullptr;
        launch(kernel_of(table_, l.mix), grids_[i], THREADS, stream_of(stream),
               UpdateArgs{table_, l.first, int(l.count), arrived, {loss, snapshot_}});
    }
    if (then_control && launches_.empty()) control(stream, loss);
}

void Stepper::control(uintptr_t stream, const Loss& loss) const {
    const DeviceGuard guard(device_);
    launch(table_.tuned ? control_tuned_kernel : control_kernel, 1, THREADS, stream_of(stream),
           ControlArgs{table_, {loss, snapshot_}});
}

void Stepper::observe(uintptr_t stream, const Observation& seen) const {
    const DeviceGuard guard(device_);
    launch(observe_kernel, 1, WARP, stream_of(stream), ObserveArgs{table_.control, seen});
}

void Stepper::backup(uintptr_t stream, const BackupTable& table) const {
    if (table.n_chunks == 0) return;
    const DeviceGuard guard(device_);
    const int blocks = int(std::min<int64_t>(table.n_chunks, backup_grid_));
    launch(backup_kernel, blocks, BACKUP_THREADS, stream_of(stream), BackupArgs{table, table_.control});
}

void check_usable(int device) {
    check_device(device);
    const DeviceGuard guard(device);
    resident_blocks(clip_kernel, WARP);
}

void send(void* target, const void* words, int64_t n, int device, uintptr_t stream) {
    const DeviceGuard guard(device);
    const auto* from = static_cast<const int64_t*>(words);
    auto* to = static_cast<int64_t*>(target);
    const auto part = [&](auto& args, int64_t count) {
        args.target = to;
        args.count = int(count);
        std::memcpy(args.words, from, size_t(count) * sizeof(int64_t));
        launch(send_kernel<std::decay_t<decltype(args)>>, 1, SEND_THREADS, stream_of(stream), args);
        from += count;
        to += count;
        n -= count;
    };
    const bool large = driver_version() >= LARGE_PARAMETERS;
    while (n > 0) {
        if (large && n > FEW_WORDS) {
            SendArgs<MANY_WORDS> args;
            part(args, std::min<int64_t>(n, MANY_WORDS));
        } else {
            SendArgs<FEW_WORDS> args;
            part(args, std::min<int64_t>(n, FEW_WORDS));
        }
    }
}

}  // namespace cuda
}  // namespace greedylr
