// The parts of a step over a table: measure, clip, update, control. Everything between the addresses and the
// innermost loops: which chunk, which loop, which scalars, how many threads.
#pragma once

#include <stdint.h>

#include <vector>

#include "../core/launch.h"
#include "backup.h"
#include "loops.h"

namespace greedylr {

class Stepper {
  public:
    // The addresses in the table, which is copied, must stay valid for the life of this object. The launches
    // must cover the chunks in order.
    Stepper(const TensorTable& table, std::vector<Launch> launches);

    // grad_sq_sum, grad_nonfinite and, with `l1`, grad_abs_sum over all tensors with a gradient, and with a
    // tuner the three sums behind them; then, with `then_clip`, what `clip`
    // does. The result does not depend on `threads`.
    void measure(int threads, bool then_clip);
    // Gradient multiplier and skip flag; then spikes; then, with a tuner, its scale.
    void clip() const;
    // AdamW on every tensor with a gradient, unless the step is skipped; then, with `then_control`, what
    // `control` does.
    void update(int threads, bool then_control, const Loss& loss = {});
    // The step counts, unless the step is skipped; then the learning rate.
    void control(const Loss& loss = {}) const;
    // One more loss for the next `control`.
    void observe(const Observation& seen) const;
    // What the slot `backup` asks for.
    void backup(const BackupTable& table, int threads) const { run_backup(table, table_.control, threads); }

  private:
    int useful_threads(int wanted) const;
    template <typename Body>
    void run(const Body& body, int threads);

    const TensorTable table_;
    const std::vector<Launch> launches_;
    int64_t elements_ = 0;
    std::vector<GradSum> partial_;  // [n_chunks], kept: a step allocates nothing
    std::vector<MovedSum> moved_;   // [n_chunks] with a tuner
    // Each pass starts where the last one ended, whose data is still in the cache: the update finds gradients
    // that were just measured. No result depends on the order.
    bool backwards_ = false;
};

// Feeds n weighted losses to a control vector with no tensors; writes the LR of every group after each one to
// lr_out [n, G].
void run_control(double* control, const double* curve, const double* losses, const double* weights, int64_t n,
                 double* lr_out);

}  // namespace greedylr
