// A step over one table on one GPU, as launches into a stream. No CUDA header, so that the binding needs
// none.
#pragma once

#include <stdint.h>

#include <vector>

#include "../core/backup.h"
#include "../core/launch.h"

namespace greedylr {
namespace cuda {

// Bytes of device memory, zero at the start, that a Stepper needs for itself.
int64_t scratch_bytes();

class Stepper {
  public:
    // The addresses in the table, which is copied, `scratch` and `snapshot` (see epilogue.cuh) must stay
    // valid for the life of this object. The launches must cover the chunks in order. Nothing here waits for
    // the device; errors are exceptions.
    Stepper(const TensorTable& table, std::vector<Launch> launches, void* scratch, double* snapshot,
            int device);

    // grad_sq_sum, grad_nonfinite and, with `l1`, grad_abs_sum over all tensors with a gradient;
    // then, with `then_clip`, what `clip`
    // does, but for spikes. `stream` is a cudaStream_t.
    void measure(uintptr_t stream, bool then_clip) const;
    // Gradient multiplier and skip flag from what is known; then spikes.
    void clip(uintptr_t stream) const;
    // AdamW on every tensor with a gradient, nothing if the step is skipped; then, with `then_control`, what
    // `control` does.
    void update(uintptr_t stream, bool then_control, const Loss& loss = {}) const;
    // The step counts and the learning rate.
    void control(uintptr_t stream, const Loss& loss = {}) const;
    // One more loss for the next `control`, as it is when the stream gets here.
    void observe(uintptr_t stream, const Observation& seen) const;
    // What the slot `backup` asks for when the stream gets here.
    void backup(uintptr_t stream, const BackupTable& table) const;

  private:
    template <bool L1>
    void measure_with(uintptr_t stream, bool then_clip) const;

    const TensorTable table_;
    const std::vector<Launch> launches_;
    void* const scratch_;
    double* const snapshot_;
    const int device_;
    const bool pairs_;        // how the device adds up gradients, see measure_kernel
    std::vector<int> grids_;  // blocks of each launch
    int measure_grid_, backup_grid_;
};

// Copies `n` words from host memory, which may be overwritten as soon as this returns, to `target` on the
// device. They travel in kernel parameters: a captured graph holds its own copy of them.
void send(void* target, const void* words, int64_t n, int device, uintptr_t stream);

// Raises if this process cannot run kernels on that device: no driver, one too old, no such device.
void check_usable(int device);

}  // namespace cuda
}  // namespace greedylr
