// What is added up of a chunk: its gradient and, with a tuner, also its parameter and offset.
#pragma once

#include "chunks.h"
#include "loops.h"

namespace greedylr {

struct MeasureBody {
    const TensorTable& table;
    const std::vector<Launch>& launches;
    const Loops& loops;
    GradSum* partial;
    MovedSum* moved;  // null without a tuner

    auto worker() const {
        return [this](int64_t first, int64_t count) {
            for (int64_t c = first; c < first + count; ++c) {
                partial[c] = sum(c);
                if (moved != nullptr) moved[c] = moved_sum(c);
            }
        };
    }

    GradSum sum(int64_t c) const {
        const Chunk chunk = locate(table, c);
        const char* grad = address(table, GRAD, chunk.tensor);
        if (grad == nullptr) return {0.0, 0.0, 0};
        const DType type = MIXES[launch_of(launches, c).mix].grad;
        GradSum sum = loops.measure[type][table.l1](grad + chunk.offset * element_size(type), chunk.n);
        sum.squares *= table.norm_weight[chunk.tensor];
        sum.absolute *= table.norm_weight[chunk.tensor];
        return sum;
    }

    // After `sum`: the gradient is in the cache.
    MovedSum moved_sum(int64_t c) const {
        const Chunk chunk = locate(table, c);
        if (address(table, GRAD, chunk.tensor) == nullptr) return {0.0, 0.0, 0.0};
        const int mix = launch_of(launches, c).mix;
        const Mix types = MIXES[mix];
        Range range = {};
        range.param = begin_of(table, chunk, PARAM, element_size(types.param));
        range.grad = begin_of(table, chunk, GRAD, element_size(types.grad));
        range.remainder = begin_of(table, chunk, REMAINDER, remainder_size(types.param));
        range.offset = begin_of(table, chunk, OFFSET, types.param == F64 ? 8 : 4);
        range.n = chunk.n;
        MovedSum sum = loops.moved[mix](range);
        const DirectionWeight weight = direction_weight(table, chunk.tensor);
        sum.param_squares *= table.norm_weight[chunk.tensor];
        sum.grad_offset *= weight.grad;
        sum.param_offset *= weight.param;
        return sum;
    }
};

}  // namespace greedylr
