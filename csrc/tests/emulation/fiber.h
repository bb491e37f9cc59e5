// Functions on stacks of their own that one OS thread switches between, and what the sanitizers must be told
// of it. Compiled without the thread sanitizer, whose view of the program is made here: each fiber is a
// thread to it, and nothing orders two fibers but acquire and release.
#pragma once

#include <stddef.h>

namespace emulation {

class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next resume() calls `entry` from its beginning.
    void start(void (*entry)(void*), void* argument);
    // From the launching stack: run until the fiber leaves. False once `entry` has returned.
    bool resume();
    // From the fiber: back to resume().
    void leave();
    // Does what release() would do in the fiber.
    void release_from_here(void* key);

  private:
    static void run();
    void switch_away(bool for_good);

    unsigned char* memory_;  // a guard page, then the stack
    void* saved_ = nullptr;  // stack pointer or context of whichever side does not run
    void* thread_;           // of the thread sanitizer, null without it
    void* fake_stack_ = nullptr;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
    bool running_ = false;
};

// While it lives, what the running fiber does counts as done by the launching thread: a scheduler's own
// memory is not part of the program that is watched.
class OnBehalfOfLauncher {
  public:
    OnBehalfOfLauncher();
    ~OnBehalfOfLauncher();
    OnBehalfOfLauncher(const OnBehalfOfLauncher&) = delete;
    OnBehalfOfLauncher& operator=(const OnBehalfOfLauncher&) = delete;

  private:
    void* thread_;
};

// The two halves of a happens-before edge through a key, any address, for the running fiber or launching
// stack.
void acquire(void* key);
void release(void* key);
// For the thread sanitizer: adds to an atomic that nobody but this orders. It publishes what was released to
// `published`, and nothing that the running fiber has done since; what it reads is released to `seen`.
unsigned watched_add(unsigned* address, unsigned value, void* published, void* seen);
// Returns whether the thread sanitizer watches.
bool races_are_watched();
// For the address sanitizer: no access is allowed there any more, or again.
void forbid(const void* begin, size_t bytes);
void allow(const void* begin, size_t bytes);

}  // namespace emulation
