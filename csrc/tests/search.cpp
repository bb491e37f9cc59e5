// The level searches against traces of their specification, with losses that are not finite and steps that
// are skipped within trials.
#include "../core/control.h"

#include <math.h>

#include <vector>

#include "check.h"

using namespace greedylr;

namespace {

const double FLAT = 1.0, SKIPPED = INFINITY, LR = 0.1;

struct Row {
    double loss, multiplier;
    int backup, event;
};

std::vector<double> control(Kind kind, double start) {
    std::vector<double> c(size_t(block_begin(block::count, 1)), 0.0);
    c[slot::kind] = double(kind);
    c[slot::n_groups] = c[slot::grad_scale] = c[slot::curve_length] = c[slot::skip_nonfinite] = 1.0;
    c[slot::max_grad_norm] = c[slot::decay_start] = INFINITY;
    c[slot::window_size] = 4;
    c[slot::search_until] = 60;
    c[slot::errors] = .5;
    c[slot::search_level] = c[slot::trial_level] = c[slot::multiplier] = start;
    c[slot::kept] = c[slot::kept_var] = NAN;
    c[slot::fade] = c[slot::faded] = 1.0;
    c[slot::worst_loss] = -INFINITY;
    const LrBlocks b = lr_blocks(c.data());
    *b.initial_lr = LR;
    *b.lr = *b.level = LR * start;
    return c;
}

void check_rows(const char* name, std::vector<double> c, const std::vector<Row>& rows) {
    double steps = 0.0;
    for (size_t i = 0; i < rows.size(); ++i) {
        const Row& want = rows[i];
        const bool skips = want.loss == SKIPPED;
        c[slot::grad_nonfinite] = skips;
        run_clip(c.data());
        c[slot::loss_sum] = skips ? 1.0 : want.loss;
        c[slot::loss_weight] = 1.0;
        run_control(c.data(), &FLAT);
        steps += !skips;
        CHECK(c[slot::multiplier] == want.multiplier, "%s, step %zu: %.17g is not %.17g", name, i,
              c[slot::multiplier], want.multiplier);
        CHECK(c[slot::backup] == want.backup && c[slot::event] == want.event,
              "%s, step %zu: backup %g, event %g", name, i, c[slot::backup], c[slot::event]);
        CHECK(*lr_blocks(c.data()).lr == LR * want.multiplier, "%s, step %zu: lr", name, i);
        CHECK(c[slot::step] == steps && c[slot::loss_weight] == 0.0, "%s, step %zu: step", name, i);
    }
}

void check_climb() {
    auto c = control(Kind::CLIMB, .25);
    c[slot::anneal] = 4;
    c[slot::search_begin] = 1;
    c[slot::raise_by] = 2;
    c[slot::highest] = 9 * ROUNDED_UP;
    check_rows("climb", c,
               {{3.96, 0.5, 1, 4},    {3.9, 0.375, 0, 0},   {3.85, 0.25, 0, 0},  {3.95, 0.125, 0, 0},
                {4.05, 0.25, 2, 5},   {4.15, 0.1875, 0, 0}, {4.27, 0.125, 0, 0}, {4.35, 0.0625, 0, 0},
                {4.05, 1.0, 1, 1},    {3.75, 0.75, 0, 0},   {3.45, 0.5, 0, 0},   {3.15, 0.25, 0, 0},
                {NAN, 0.5, 2, 5},     {2.55, 0.375, 0, 0},  {2.24, 0.25, 0, 0},  {2.25, 0.125, 0, 0},
                {2.23, 1.0, 1, 4},    {2.25, 0.75, 0, 0},   {1.95, 0.5, 0, 0},   {1.65, 0.25, 0, 0},
                {SKIPPED, 0.5, 2, 5}, {1.05, 0.375, 0, 0},  {0.94, 0.25, 0, 0},  {0.87, 0.125, 0, 0},
                {0.9, 0.5, 0, 6},     {0.86, 0.5, 0, 0},    {0.84, 0.5, 0, 0},   {0.88, 0.5, 0, 0},
                {0.85, 0.5, 0, 0},    {0.83, 0.5, 0, 0},    {0.85, 0.5, 0, 0},   {0.85, 0.5, 0, 0}});
}

void check_adalrs() {
    auto c = control(Kind::ADALRS, 1.0);
    c[slot::search_begin] = 2;
    c[slot::raise_by] = 3;
    c[slot::cut_by] = 2;
    c[slot::fade] = .75;
    c[slot::lowest] = 1.0 / 16;
    c[slot::highest] = 16;
    check_rows("adalrs", c,
               {{3.95, 1.0, 0, 0},
                {3.9, 1.0, 0, 0},
                {3.85, 1.0, 0, 0},
                {3.81, 1.0, 0, 0},
                {3.72, 1.0, 0, 0},
                {3.7, 1.0, 0, 0},
                {3.65, 1.0, 0, 0},
                {NAN, 1.0, 0, 0},
                {3.02, 1.0, 0, 0},
                {2.76, 1.0, 0, 0},
                {2.46, 1.0, 0, 0},
                {2.15, 1.0, 0, 0},
                {2.07, 1.0, 0, 0},
                {1.95, 3.0, 1, 4},
                {1.83, 3.0, 0, 0},
                {SKIPPED, 0.5, 2, 2},
                {1.65, 0.5, 0, 0},
                {1.55, 0.5, 0, 0},
                {1.49, 0.5, 0, 0},
                {1.35, 0.5, 0, 0},
                {1.25, 0.5, 0, 0},
                {1.16, 0.5, 0, 0},
                {0.85, 0.5, 0, 0},
                {0.55, 0.5, 0, 0},
                {0.25, 0.5, 0, 0},
                {-0.07, 0.5, 0, 0},
                {-0.42, 0.5, 0, 0},
                {-0.65, 0.5, 0, 0},
                {-0.95, 0.5, 0, 0},
                {-1.25, 0.5, 0, 0},
                {-1.57, 0.5, 0, 0},
                {-1.8, 1.125, 1, 4},
                {-2.17, 1.125, 0, 0},
                {-2.47, 1.125, 0, 0},
                {-2.75, 1.125, 0, 0},
                {-3.06, 1.125, 0, 1},
                {-3.35, 1.125, 0, 0},
                {-3.71, 1.125, 0, 0},
                {-3.95, 1.125, 0, 0},
                {-4.24, 1.8984375, 1, 4},
                {-4.55, 1.8984375, 0, 0},
                {-4.85, 1.8984375, 0, 0},
                {-5.16, 1.8984375, 0, 0},
                {-5.45, 1.8984375, 0, 1},
                {-5.74, 1.8984375, 0, 0},
                {-6.05, 1.8984375, 0, 0},
                {-6.35, 1.8984375, 0, 0},
                {-6.46, 2.4027099609375, 1, 4},
                {-6.55, 2.4027099609375, 0, 0},
                {-6.58, 2.4027099609375, 0, 0},
                {-6.55, 2.4027099609375, 0, 0},
                {-6.54, 1.8984375, 2, 5},
                {-6.55, 1.8984375, 0, 0},
                {-6.55, 1.8984375, 0, 0},
                {-6.64, 1.8984375, 0, 0},
                {-6.79, 1.8984375, 0, 0},
                {-6.85, 1.8984375, 0, 0},
                {-6.87, 1.8984375, 0, 0},
                {-6.86, 1.8984375, 0, 0},
                {-6.75, 1.8984375, 0, 6}});
}

}  // namespace

int main() {
    check_climb();
    check_adalrs();
}
