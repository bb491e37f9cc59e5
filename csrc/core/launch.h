// How a table's work is divided: consecutive chunks of one mix of storage types.
#pragma once

#include "common.h"

namespace greedylr {

struct Launch {
    int mix;  // index in MIXES
    int64_t first, count;
};

// Index of a mix in MIXES, -1 if it is not supported.
inline int find_mix(int param, int grad, int state) {
    for (int i = 0; i < MIX_COUNT; ++i) {
        if (MIXES[i].param == param && MIXES[i].grad == grad && MIXES[i].state == state) return i;
    }
    return -1;
}

HOST_DEVICE constexpr int element_size(DType d) { return d == F64 ? 8 : d == F32 ? 4 : d == Q8 ? 1 : 2; }
// Of a parameter's remainder, 0 for none.
HOST_DEVICE constexpr int remainder_size(DType d) { return d == BF16_R16 ? 2 : d == BF16_R8 ? 1 : 0; }

}  // namespace greedylr
