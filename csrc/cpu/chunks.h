// Where the elements of a work item lie.
#pragma once

#include <algorithm>
#include <vector>

#include "../core/launch.h"

namespace greedylr {

struct Chunk {
    int64_t tensor, offset, n;  // elements
};

inline Chunk locate(const TensorTable& t, int64_t c) {
    const int64_t tensor = t.chunk_tensor[c];
    const int64_t offset = t.chunk_index[c] * t.chunk;
    return {tensor, offset, std::min(t.chunk, t.numel[tensor] - offset)};
}

template <typename T = char>
T* address(const TensorTable& t, Row row, int64_t tensor) {
    return reinterpret_cast<T*>(t.ptrs[row * t.n_tensors + tensor]);
}

// Where a chunk's elements of `size` bytes begin, null if the tensor has no such array.
inline char* begin_of(const TensorTable& t, const Chunk& chunk, Row row, int size) {
    char* begin = address(t, row, chunk.tensor);
    return begin == nullptr ? nullptr : begin + chunk.offset * size;
}

inline const Launch& launch_of(const std::vector<Launch>& launches, int64_t c) {
    return *std::find_if(launches.begin(), launches.end(),
                         [c](const Launch& l) { return c < l.first + l.count; });
}

}  // namespace greedylr
