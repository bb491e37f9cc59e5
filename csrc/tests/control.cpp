// The control function against traces recorded from transformers.optimization.GreedyLR 5.17.0, and the rules
// that it adds: skipped steps, non-finite losses, steps without a loss, spikes.
#include "../core/control.h"

#include <math.h>

#include <vector>

#include "../core/spikes.h"
#include "check.h"

using namespace greedylr;

namespace {

const double FLAT = 1.0;  // the curve of a schedule without one
const slot::Slot LR = slot::Slot(block_begin(block::lr, 1));

struct Option {
    slot::Slot slot;
    double value;
};

std::vector<double> control(double lr, double min_lr, double max_lr, const std::vector<Option>& options,
                            int window = 0) {
    std::vector<double> c(size_t(block_begin(block::count, 1) + window), 0.0);
    c[slot::kind] = c[slot::n_groups] = c[slot::grad_scale] = c[slot::grad_multiplier] = 1.0;
    c[slot::threshold] = 1e-6;
    c[slot::eps] = 1e-8;
    c[slot::max_grad_norm] = INFINITY;
    c[slot::reset_start] = 500;
    c[slot::smooth] = window > 0;
    c[slot::window_size] = window;
    for (const Option& o : options) c[o.slot] = o.value;
    c[slot::resets_left] = c[slot::reset_start];
    c[slot::best] = worst(c.data());
    c[slot::raises] = c[slot::curve_length] = 1;
    c[slot::decay_start] = INFINITY;
    const LrBlocks b = lr_blocks(c.data());
    *b.lr = *b.initial_lr = *b.level = lr;
    *b.min_lr = min_lr;
    *b.max_lr = max_lr;
    return c;
}

void feed(std::vector<double>& c, double loss) {
    c[slot::loss_sum] += loss;
    c[slot::loss_weight] += 1.0;
    run_control(c.data(), &FLAT);
}

void check_trace(const char* name, std::vector<double> c, const std::vector<double>& losses,
                 slot::Slot watched, const std::vector<double>& want) {
    for (size_t i = 0; i < losses.size(); ++i) {
        feed(c, losses[i]);
        CHECK(c[watched] == want[i], "trace %s, call %zu: %.17g is not %.17g", name, i + 1, c[watched],
              want[i]);
    }
}

void check_golden_traces() {
    using namespace slot;
    const double inf = INFINITY;
    const auto a = control(1e-3, 1e-5, 1e-2, {{patience, 1}, {factor, .5}, {warmup, 1}, {cooldown, 1}});
    const std::vector<double> a_losses = {5, 4, 3, 3.5, 3.4, 2.9, 2.8, 2.7};
    check_trace("A", a, a_losses, LR, {.001, .002, .002, .002, .004, .004, .004, .008});
    check_trace("A best", a, a_losses, best, {5, 4, 4, 3.5, 3.4, 3.4, 2.8, 2.7});
    check_trace("A good", a, a_losses, good, {1, 0, 0, 1, 0, 0, 1, 0});
    check_trace("A warmup", a, a_losses, warmup_left, {0, 1, 0, 0, 1, 0, 0, 1});
    const double raise = double(Event::RAISE), cut = double(Event::CUT), reset = double(Event::RESET);
    check_trace("A events", a, a_losses, slot::event, {0, raise, 0, 0, raise, 0, 0, raise});
    const auto b = control(1e-3, 1e-3, 2e-3, {{patience, 0}, {factor, .8}}, 3);
    const std::vector<double> b_losses = {6, 3, 9, 3, 0, 0, 9, 9};
    const double up = .0015624999999999999;
    check_trace("B", b, b_losses, LR, {.00125, up, .00125, .001, .00125, up, .00125, .001});
    check_trace("B best", b, b_losses, best, {6, 4.5, 4.5, 4.5, 4, 1, 1, 1});
    const auto c = control(4e-4, 1e-4, 1e-2, {{patience, 0}, {factor, .5}, {reset_start, 2}});
    const std::vector<double> c_losses = {1, 2, 2, 2, 2, 2, 2};
    check_trace("C", c, c_losses, LR, {8e-4, 4e-4, 2e-4, 1e-4, 4e-4, 8e-4, 4e-4});
    check_trace("C resets", c, c_losses, resets_left, {2, 2, 2, 1, 2, 2, 2});
    check_trace("C events", c, c_losses, slot::event, {raise, cut, cut, cut, reset, raise, cut});
    check_trace("C best", c, c_losses, best, {1, 1, 1, 1, inf, 2, 2});
    const auto d =
        control(1e-3, 1e-3, 1, {{patience, 0}, {factor, .9}, {threshold, .01}, {threshold_rel, 1}});
    check_trace("D", d, {2, 1.99, 1.97, 1.95}, LR,
                {.0011111111111111111, .001, .0011111111111111111, .0012345679012345679});
}

void check_cooldown_after_reset() {
    auto c = control(.1, .05, 1,
                     {{slot::patience, 0}, {slot::factor, .5}, {slot::reset_start, 2}, {slot::cooldown, 7}});
    const struct {
        int call;
        double lr, cooldown, resets;
    } rows[] = {{1, .2, 0, 2}, {2, .1, 7, 2}, {10, .05, 7, 1}, {18, .1, 7, 2}, {26, .2, 0, 2}};
    int call = 0;
    for (const auto& row : rows) {
        while (call < row.call) feed(c, ++call == 1 ? 1.0 : 2.0);
        CHECK(c[LR] == row.lr && c[slot::cooldown_left] == row.cooldown && c[slot::resets_left] == row.resets,
              "trace R, call %d: lr %g, cooldown %g, resets %g", call, c[LR], c[slot::cooldown_left],
              c[slot::resets_left]);
    }
}

void check_nonfinite_loss() {
    for (double bad_loss : {double(NAN), double(INFINITY), -double(INFINITY)}) {
        auto c = control(1e-3, 1e-5, 1e-2, {{slot::patience, 5}, {slot::factor, .5}}, 3);
        feed(c, 2.0);
        feed(c, bad_loss);
        CHECK(c[slot::bad] == 1 && c[slot::good] == 0 && c[slot::best] == 2, "loss %g", bad_loss);
        CHECK(c[slot::window_count] == 1 && c[slot::window_sum] == 2 && c[slot::smoothed] == 2, "loss %g",
              bad_loss);
        CHECK(!is_finite(c[slot::loss]), "the last loss is recorded as it was");
    }
}

void check_skip_and_silence() {
    auto c = control(1e-3, 1e-5, 1e-2, {{slot::patience, 0}, {slot::factor, .5}});
    run_control(c.data(), &FLAT);
    CHECK(c[slot::step] == 1 && c[LR] == 1e-3, "a step without a loss only counts");
    c[slot::skip_nonfinite] = c[slot::grad_nonfinite] = 1.0;
    run_clip(c.data());
    feed(c, 1.0);
    CHECK(c[slot::step] == 1 && c[slot::skipped] == 1 && c[LR] == 1e-3,
          "a skipped step changes nothing else");
    CHECK(c[slot::loss_sum] == 0 && c[slot::loss_weight] == 0, "and drops its loss");
}

void check_clip() {
    auto c = control(1e-3, 1e-5, 1e-2,
                     {{slot::max_grad_norm, 1}, {slot::grad_scale, 4}, {slot::grad_sq_sum, 1024}});
    run_clip(c.data());
    CHECK(c[slot::grad_norm] == 8 && c[slot::grad_multiplier] == 1 / (8 + 1e-6) / 4, "%g",
          c[slot::grad_multiplier]);
    c[slot::grad_sq_sum] = NAN;
    c[slot::found_inf] = 2;
    run_clip(c.data());
    CHECK(isnan(c[slot::grad_multiplier]) && c[slot::skip] == 1, "a NaN norm stays NaN");
    c[slot::max_grad_norm] = INFINITY;
    c[slot::found_inf] = 0;
    run_clip(c.data());
    CHECK(c[slot::grad_multiplier] == .25 && c[slot::skip] == 0, "an unmeasured norm does not clip");
}

// A step with this loss and norm, and whether it is skipped.
bool skips(std::vector<double>& c, double loss, double norm) {
    c[slot::loss_sum] = loss;
    c[slot::loss_weight] = 1.0;
    c[slot::grad_sq_sum] = norm * norm;
    run_clip(c.data());
    skip_spikes(c.data());
    const bool skipped = c[slot::skip] != 0.0;
    run_control(c.data(), &FLAT);
    return skipped;
}

std::vector<double> with_rings(int size, double sigmas, const std::vector<Option>& options = {}) {
    auto c = control(1e-3, 1e-5, 1e-2, options, 3);
    c[slot::spike_window] = size;
    c[slot::spike_minimum] = 4;
    c[slot::spike_sigmas] = sigmas;
    c.resize(c.size() + size_t(2 * size));
    return c;
}

// 1 to 5 have the mean 3 and the deviation sqrt(2.5).
void check_spikes() {
    const double limit = 3.0 + 2.0 * sqrt(2.5);
    for (bool of_norm : {false, true}) {
        auto c = with_rings(6, 2.0);
        for (double x : {1.0, 2.0, 100.0, 3.0, 4.0, 5.0}) {  // 100 comes before there are enough to judge it
            CHECK(!skips(c, of_norm ? 1.0 : x, of_norm ? x : 1.0), "%g", x);
        }
        for (double x : {1.0, 2.0, 3.0}) CHECK(!skips(c, of_norm ? 1.0 : x, of_norm ? x : 1.0), "%g", x);
        auto at = c, beyond = c;
        const double six[] = {3, 4, 5, 1, 2, 3};  // what the ring holds, wrapped
        double mean = 0.0, squares = 0.0;
        for (double x : six) mean += x / 6;
        for (double x : six) squares += (x - mean) * (x - mean);
        const double edge = mean + 2.0 * sqrt(squares / 5.0);
        CHECK(!skips(at, of_norm ? 1.0 : edge - 1e-9, of_norm ? edge - 1e-9 : 1.0), "just within");
        CHECK(skips(beyond, of_norm ? 1.0 : edge + 1e-9, of_norm ? edge + 1e-9 : 1.0), "just beyond");
        CHECK(beyond[slot::spikes] == 1 && beyond[slot::skipped] == 1 && at[slot::spikes] == 0, "counted");
        CHECK(beyond[of_norm ? slot::norms_head : slot::losses_head] == 4, "and entered");
    }
    auto c = with_rings(5, 2.0);
    for (double x : {1.0, 2.0, 3.0, 4.0, 5.0}) skips(c, x, 1.0);
    const double* rings = spike_rings(c.data());
    CHECK(fabs(spike_limits(c.data()).loss - limit) < 1e-15 * 16, "%.17g", spike_limits(c.data()).loss);
    CHECK(isnan(spike_limits(c.data()).norm), "norms that are all the same have no limit");
    CHECK(rings[0] == 1 && rings[4] == 5 && rings[5] == 1 && c[slot::losses_head] == 0, "the rings");
    auto reward = with_rings(5, 2.0, {{slot::mode_max, 1}});
    for (double x : {1.0, 2.0, 3.0, 4.0, 5.0}) skips(reward, x, 1.0);
    CHECK(!skips(reward, 99.0, 1.0), "more of a reward is no spike");
    CHECK(skips(reward, -99.0, 1.0), "less is");
    CHECK(!skips(c, NAN, 1.0) && !skips(c, INFINITY, 1.0) && c[slot::spike_losses] == 5, "not finite");
    c[slot::found_inf] = 1.0;
    CHECK(skips(c, 50.0, 50.0) && c[slot::spikes] == 0, "what is skipped anyway is no spike");
}

}  // namespace

int main() {
    check_golden_traces();
    check_cooldown_after_reset();
    check_nonfinite_loss();
    check_skip_and_silence();
    check_clip();
    check_spikes();
}
