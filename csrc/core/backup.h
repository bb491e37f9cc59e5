// A backup of what a step changes: where each tensor lies, and where a copy of it is kept.
#pragma once

#include "slots.h"

namespace greedylr {

// K tensors, C chunks; chunk k of a tensor covers its bytes [k * chunk, min(size, (k + 1) * chunk)).
struct BackupTable {
    const int64_t* addresses;     // [2, K] of what lives, of what is kept; to the byte
    const int64_t* sizes;         // [K] bytes
    const int32_t* chunk_tensor;  // [C]
    const int32_t* chunk_index;   // [C]
    int64_t n_tensors, n_chunks;
    int64_t chunk;  // bytes, below 2^31
};

// A chunk as it is to be copied.
struct Piece {
    int64_t from, to;  // addresses
    int count;         // bytes
};

inline namespace GREEDYLR_ISA {

HOST_DEVICE inline bool asks_for_copies(const double* control) {
    const double action = control[slot::backup];
    return holds(action, Backup::TAKE) || holds(action, Backup::PUT_BACK);
}

HOST_DEVICE inline Piece piece_of(const BackupTable& t, int64_t c, bool put_back) {
    const int64_t tensor = t.chunk_tensor[c], begin = t.chunk_index[c] * t.chunk;
    const int64_t left = t.sizes[tensor] - begin;
    const int64_t live = t.addresses[tensor] + begin, kept = t.addresses[t.n_tensors + tensor] + begin;
    return {put_back ? kept : live, put_back ? live : kept, int(left < t.chunk ? left : t.chunk)};
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
