// The threads of a launch and who runs next. Private to the emulation: kernels see emulation.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <memory>
#include <vector>

#include "fiber.h"

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t SHARED_BYTES = 48 * 1024;  // of a block

enum class At { READY, SYNCTHREADS, SYNCWARP, SHUFFLE, END };
constexpr int AT_COUNT = 5;

// Keys that a barrier publishes, two in turn: a thread may come to the next barrier before another has left
// this one, and must not be seen by it.
struct Meeting {
    unsigned count = 0;
    char keys[2] = {};
    void* key() { return &keys[count % 2]; }
};

struct Block;

struct Thread {
    Fiber fiber;
    Block* block = nullptr;
    unsigned index = 0;
    At at = At::END;
    unsigned mask = 0;    // of the __syncwarp or shuffle that it is at
    unsigned source = 0;  // lane, of a shuffle
    uint64_t value = 0, received = 0;
    char fence = 0, seen = 0;  // keys: what the last fence published, what atomics have read
};

struct Array {
    const void* place;  // in the source
    size_t begin, bytes;
};

struct Block {
    unsigned index = 0, arrived = 0, ended = 0;
    Meeting barrier;
    std::map<uint64_t, Meeting> warp_barriers;  // by warp and mask
    std::vector<Array> arrays;
    unsigned char* memory = nullptr;  // [SHARED_BYTES]
    std::vector<std::unique_ptr<Thread>> threads;
};

// The thread that runs now.
extern Thread* running;

// The running thread waits at a place until another one calls ready_to_run for it.
void wait(At at);
void ready_to_run(Thread& thread);
// A place where the schedule may go on with another thread.
void maybe_change_threads();
// Ends the launch with this message; the running thread's stack is left as it is.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulation
