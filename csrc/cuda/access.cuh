// How kernels touch memory: 16 bytes at a time wherever addresses allow, in storage types of any width.
// Without nvcc this file, like every kernel, is plain C++ over emulation.h (csrc/tests).
#pragma once

#include "../core/common.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define GREEDYLR_SHARED(type, name, count) __shared__ type name[count]
#else
#include "emulation.h"
#endif

namespace greedylr {
namespace cuda {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int ACCESS = 16;  // bytes, the widest access of a thread

// Addresses come out of a table, so the compiler has to be told that they are global ones.
#ifdef __CUDACC__
template <typename T>
__device__ __forceinline__ T load_global(const T* at) {
    __builtin_assume(__isGlobal(at));
    return *at;
}
template <typename T>
__device__ __forceinline__ void store_global(T* at, T value) {
    __builtin_assume(__isGlobal(at));
    *at = value;
}
#else
using emulation::load_global;
using emulation::store_global;
#endif

// What lies in shared memory, fetched anew at each use, whatever the compiler thinks of it.
template <typename T>
__device__ __forceinline__ T fetched(const T& number) {
    return *static_cast<const volatile T*>(&number);
}

// Keeps the compiler from following a number through a loop: it would hold each address in two registers and
// add to all of them in every turn.
__device__ __forceinline__ int untracked(int number) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(number));
#endif
    return number;
}

// Adds 1 to a counter in global memory and returns what it was, with acquire and release: what this thread
// has done or seen is done for all that count after it. One fence each way, where __threadfence on both sides
// of an atomicAdd is two that also order all threads' fences among themselves (PTX ISA, memory consistency
// model).
__device__ __forceinline__ unsigned count_up(unsigned* counter) {
#ifdef __CUDACC__
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    return before;
#else
    return emulation::atomic_add(counter, 1, emulation::ACQUIRE_RELEASE);
#endif
}

// The GPU converts in hardware. The bits are those of common.h but for the payload of a NaN.
template <DType D>
__device__ __forceinline__ typename Format<D>::Math widened(typename Format<D>::Stored x) {
#ifdef __CUDACC__
    if constexpr (D == F16) return __half2float(__ushort_as_half(x));
#endif
    return Format<D>::load(x);
}

template <DType D>
__device__ __forceinline__ typename Format<D>::Stored narrowed(typename Format<D>::Math x) {
#ifdef __CUDACC__
    if constexpr (D == F16) return __half_as_ushort(__float2half_rn(x));
    if constexpr (D == BF16) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#endif
    return Format<D>::store(x);
}

// Memory is moved in words of this type.
template <int BYTES>
struct WordOf;
template <>
struct WordOf<1> {
    using Type = uint8_t;
};
template <>
struct WordOf<2> {
    using Type = uint16_t;
};
template <>
struct WordOf<4> {
    using Type = uint32_t;
};
template <>
struct WordOf<8> {
    using Type = uint2;
};
template <>
struct WordOf<16> {
    using Type = uint4;
};

// V neighbouring elements in registers, which are one access. Neighbouring lanes have neighbouring ones, so
// that each access of a warp covers whole sectors of 32 bytes.
template <typename T, int V>
struct Words {
    using Stored = T;
    static constexpr int BYTES = V * int(sizeof(Stored));
    using Word = typename WordOf<BYTES>::Type;

    union {
        Word word;
        uint32_t quads[(BYTES + 3) / 4];  // four bytes in each
        Stored elements[V];
    };

    // `wide`: the address is a multiple of the access; the same for all lanes.
    __device__ __forceinline__ void load(const Stored* at, bool wide) {
        if (wide) {
            word = load_global(reinterpret_cast<const Word*>(at));
        } else {
#pragma unroll
            for (int j = 0; j < V; ++j) elements[j] = load_global(at + j);
        }
    }

    __device__ __forceinline__ void store(Stored* at, bool wide) const {
        if (wide) {
            store_global(reinterpret_cast<Word*>(at), word);
        } else {
#pragma unroll
            for (int j = 0; j < V; ++j) store_global(at + j, elements[j]);
        }
    }
};

// The same of a storage type.
template <DType D, int V>
struct Pack : Words<typename Format<D>::Stored, V> {
    using Math = typename Format<D>::Math;

    // Element j for arithmetic. Of two bfloat16 in a register each is one instruction away.
    __device__ __forceinline__ Math get(int j) const {
        if constexpr ((D == BF16 || has_master(D)) && V > 1) {
            const uint32_t both = this->quads[j / 2];
            return float_of(j % 2 == 0 ? both << 16 : both & 0xffff0000u);
        } else {
            return widened<D>(this->elements[j]);
        }
    }
};

// Returns whether an access of so many bytes, a power of two, may begin at `address`.
__device__ __forceinline__ bool on_access(int64_t address, int bytes) { return (address & (bytes - 1)) == 0; }

// Chunk `index` of a tensor: its elements [begin, end). The table's chunks, moved up by `head` elements so
// that all but the first begin where accesses do; the first also has the elements before. Can be empty.
struct Span {
    int64_t begin;
    int count;
};

__device__ __forceinline__ Span span_of(const TensorTable& t, int64_t tensor, int64_t index, int head) {
    const int64_t numel = t.numel[tensor];
    const int64_t begin = index == 0 ? 0 : index * t.chunk + head;
    const int64_t end = (index + 1) * t.chunk + head;
    const int64_t count = (end < numel ? end : numel) - begin;
    return {begin, count > 0 ? int(count) : 0};
}

__device__ __forceinline__ int64_t address_of(const TensorTable& t, Row row, int64_t tensor) {
    return t.ptrs[row * t.n_tensors + tensor];
}

}  // namespace cuda
}  // namespace greedylr
