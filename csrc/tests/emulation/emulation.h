// CUDA's names for plain C++: a kernel's own source, compiled by a host compiler, runs thread for thread.
// Every thread of a block is a fiber that runs until it must wait for others; all run on one OS thread.
//
// Stricter than hardware, to find what only works by luck. These end a launch with an error: a barrier or
// shuffle that a thread of the block or mask never comes to or has ended before, a lane read from outside the
// mask, a misaligned 16-byte access. Shared memory starts out as garbage, with guards for the address
// sanitizer. Under the thread sanitizer, whatever the schedule was,
//   - __syncthreads orders the threads of a block, __syncwarp those in its mask, a shuffle nobody;
//   - an atomic publishes what its thread did before its last __threadfence, or, with release, before itself;
//   what
//     it reads is seen after the thread's next __threadfence, or, with acquire, after itself (C++; PTX ISA,
//     memory consistency model);
//   - the end of a launch orders all that it did before all that follows, and nothing else orders anything.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// One array per block and per place in the source, as `__shared__ type name[count]`.
#define GREEDYLR_SHARED(type, name, count) \
    static const char name##_place = 0;    \
    type(&name)[count] =                   \
        *reinterpret_cast<type(*)[count]>(emulation::shared(&name##_place, sizeof(type) * (count)))

namespace emulation {

struct Index {
    unsigned x;
};

// Which of the schedules that CUDA allows. Seed 0: blocks and threads in order, each as far as it gets.
// Otherwise blocks interleaved, the next thread drawn at random, and also atomics and fences are places to
// change threads.
void set_schedule(uint64_t seed);

// Blocks of any kernel that the emulated device claims to run at once; 3 unless set.
unsigned resident_blocks();
void set_resident_blocks(unsigned blocks);

// How many operations in float the emulated device claims to do in the time of one in double; 2 unless set.
// Python calls the second by its name.
int single_to_double_ratio();
extern "C" __attribute__((visibility("default"))) void set_single_to_double_ratio(int ratio);

// Version that the emulated driver reports; 13000 unless set.
int driver_version();
void set_driver_version(int version);

// Runs body(argument) once per thread of `grid` blocks of `block` threads, and returns when all have ended.
//
// Throws std::runtime_error if the kernel did what CUDA does not define; the text says where.
void launch(unsigned grid, unsigned block, void (*body)(void*), void* argument);

template <typename Body>
void launch(unsigned grid, unsigned block, Body body) {
    launch(grid, block, [](void* argument) { (*static_cast<Body*>(argument))(); }, &body);
}

void* shared(const void* place, size_t bytes);
void sync_warp(unsigned mask);
// The value of lane `source`, from all lanes in `mask`.
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source);
enum Order { RELAXED, ACQUIRE, RELEASE, ACQUIRE_RELEASE };
unsigned atomic_add(unsigned* address, unsigned value, Order order);
void check_alignment(const void* address, size_t bytes);

template <typename T>
T shuffled(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles carry 4 or 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    word = shuffle(mask, word, source);
    memcpy(&value, &word, sizeof value);
    return value;
}

}  // namespace emulation

extern emulation::Index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
void __threadfence();
inline void __threadfence_system() { __threadfence(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::sync_warp(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return emulation::shuffled(mask, value, unsigned(lane) % 32);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
    return emulation::shuffled(mask, value, (threadIdx.x ^ unsigned(lane_mask)) % 32);
}

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace emulation {

// Hardware reads and writes up to 16 bytes at once, at a multiple of their number only.
template <typename T>
T load_global(const T* address) {
    check_alignment(address, sizeof(T));
    return *address;
}

template <typename T>
void store_global(T* address, T value) {
    check_alignment(address, sizeof(T));
    *address = value;
}

}  // namespace emulation
