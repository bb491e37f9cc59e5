// The innermost loops, compiled once per instruction set from the same source, and the choice among them.
// Every set gives the same bits: no contraction, no reassociation, sums in a fixed lane structure.
#pragma once

#include <stdint.h>

#include "../core/adamw.h"
#include "../core/common.h"
#include "../core/mechanic.h"

namespace greedylr {

// Where elements lie in the whole parameter, for the hash that rounds them (core/eight_bit.h).
struct Place {
    int64_t start;               // of the range, in this part
    int64_t first, run, stride;  // see index_of
    int64_t number;
    float step;  // this one included

    uint64_t index_of(int64_t i) const {
        i += start;
        return uint64_t(i < run ? first + i : first + i / run * stride + i % run);
    }
};

// Elements [0, n) of one tensor's arrays, each aligned to its element size only.
struct Range {
    void* param;
    const void* grad;
    void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;  // the last is null without amsgrad
    void* remainder;                              // of a param with a master
    float *exp_avg_scale, *exp_avg_sq_scale;      // of Q8 moments, one for each GROUP
    void *copy_bf16, *copy_f16;                   // of an F32 param; null if there is none
    int64_t n;
    Place place;
    void* offset;  // with a tuner, as wide as the arithmetic
};

struct GradSum {
    double squares;     // sum of the squares, NaN or inf if an element is
    double absolute;    // sum of the absolute values, 0 if they were not asked for
    int64_t nonfinite;  // 0 if and only if no element is NaN or inf
};

// What a tuner needs of elements, not yet weighted.
struct MovedSum {
    double param_squares, grad_offset, param_offset;
};

using TunedLoop = void (*)(const Range&, const Coefficients<double>&, const Moves<double>&);
using MovedLoop = MovedSum (*)(const Range&);
using UpdateLoop = void (*)(const Range&, const Coefficients<double>&);
using MeasureLoop = GradSum (*)(const void* grad, int64_t n);

struct Loops {
    const char* isa;
    UpdateLoop update[MIX_COUNT][2];      // [index in MIXES][amsgrad]
    MeasureLoop measure[DTYPE_COUNT][2];  // [DType][with absolute values]
    // With a tuner; null where 16 bits are all there is of a parameter.
    TunedLoop tuned[MIX_COUNT][2];  // as update
    MovedLoop moved[MIX_COUNT];
};

// Defined by loops.cpp, once per instruction set.
extern const Loops loops_baseline;
#ifdef __x86_64__
extern const Loops loops_avx2;
extern const Loops loops_avx512;
#endif

// The sets that this processor can run, best first, null-terminated.
const Loops* const* available_loops();

// The set in use: the best one, unless force_loops chose another.
const Loops& loops();

// For tests. False if this processor cannot run a set of that name.
bool force_loops(const char* isa);

}  // namespace greedylr
