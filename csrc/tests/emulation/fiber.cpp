#include "fiber.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

// Null in a program without that sanitizer: one object file serves all programs, and is itself not
// instrumented.
extern "C" {
#define EMULATION_WEAK __attribute__((weak))
EMULATION_WEAK void* __tsan_get_current_fiber();
EMULATION_WEAK void* __tsan_create_fiber(unsigned flags);
EMULATION_WEAK void __tsan_destroy_fiber(void* fiber);
EMULATION_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
EMULATION_WEAK void __tsan_acquire(void* key);
EMULATION_WEAK void __tsan_release(void* key);
EMULATION_WEAK unsigned __tsan_atomic32_fetch_add(volatile unsigned* address, unsigned value, int order);
EMULATION_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
EMULATION_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
EMULATION_WEAK void __asan_poison_memory_region(const volatile void* begin, size_t bytes);
EMULATION_WEAK void __asan_unpoison_memory_region(const volatile void* begin, size_t bytes);
#undef EMULATION_WEAK
}

namespace emulation {
namespace {

constexpr unsigned NO_SYNC = 1;          // of __tsan_switch_to_fiber: a switch orders nothing
constexpr size_t STACK_BYTES = 1 << 18;  // touched pages only are paid; a sanitizer's report needs many
const size_t PAGE = size_t(sysconf(_SC_PAGESIZE));

Fiber* current = nullptr;  // on whose stack this is, null: the launching one
void* launching_thread = nullptr;
const void* launching_bottom = nullptr;  // of the launching stack, as the address sanitizer knows it
size_t launching_bytes = 0;

#ifdef __x86_64__
// Saves what a call must preserve on the old stack, its pointer in *from; restores it from the new one.
// ucontext would make two system calls of each switch, which is most of the time of an emulated kernel.
extern "C" void emulation_switch_stack(void** from, void* to);
asm(R"(
.text
.globl emulation_switch_stack
.hidden emulation_switch_stack
.type emulation_switch_stack, @function
emulation_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch_stack, .-emulation_switch_stack
)");

// Six registers, the address to return to, and above it the end of the call chain. Not at the same place in
// every stack: hundreds of them, whole pages apart, would share a few lines of the cache.
void* first_frame(unsigned char* stack, void (*entry)()) {
    const size_t offset = reinterpret_cast<uintptr_t>(stack) / STACK_BYTES % 64 * 192;
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES - offset);
    for (int i = 1; i <= 8; ++i) top[-i] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    return top - 8;
}

void exchange_stacks(void** saved) {
    void* to = *saved;
    emulation_switch_stack(saved, to);
}
#else
struct Contexts {
    ucontext_t sides[2];
    int fiber_runs;
};

void* first_frame(unsigned char* stack, void (*entry)()) {
    Contexts* both = reinterpret_cast<Contexts*>(stack);  // at the end that the stack grows towards
    both->fiber_runs = 0;
    getcontext(&both->sides[1]);
    both->sides[1].uc_stack.ss_sp = stack + sizeof(Contexts);
    both->sides[1].uc_stack.ss_size = STACK_BYTES - sizeof(Contexts);
    both->sides[1].uc_link = nullptr;
    makecontext(&both->sides[1], entry, 0);
    return both;
}

void exchange_stacks(void** saved) {
    Contexts* both = static_cast<Contexts*>(*saved);
    const int to = both->fiber_runs = !both->fiber_runs;
    swapcontext(&both->sides[!to], &both->sides[to]);
}
#endif

void switch_thread(void* to) {
    if (races_are_watched()) __tsan_switch_to_fiber(to, NO_SYNC);
}

}  // namespace

Fiber::Fiber() {
    void* memory =
        mmap(nullptr, PAGE + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE) != 0) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
    thread_ = races_are_watched() ? __tsan_create_fiber(0) : nullptr;
}

Fiber::~Fiber() {
    if (races_are_watched()) __tsan_destroy_fiber(thread_);
    munmap(memory_, PAGE + STACK_BYTES);
}

void Fiber::start(void (*entry)(void*), void* argument) {
    entry_ = entry;
    argument_ = argument;
    running_ = true;
    fake_stack_ = nullptr;
    allow(memory_ + PAGE, STACK_BYTES);  // an abandoned run may have left frames
    saved_ = first_frame(memory_ + PAGE, &Fiber::run);
}

bool Fiber::resume() {
    void* fake_stack = nullptr;
    if (races_are_watched()) launching_thread = __tsan_get_current_fiber();
    if (__sanitizer_start_switch_fiber != nullptr) {
        __sanitizer_start_switch_fiber(&fake_stack, memory_ + PAGE, STACK_BYTES);
    }
    current = this;
    switch_thread(thread_);
    exchange_stacks(&saved_);
    if (__sanitizer_finish_switch_fiber != nullptr) {
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    }
    return running_;
}

void Fiber::release_from_here(void* key) {
    const OnBehalfOfLauncher back;
    switch_thread(thread_);
    release(key);
}

void Fiber::leave() { switch_away(false); }

void Fiber::switch_away(bool for_good) {
    if (__sanitizer_start_switch_fiber != nullptr) {
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, launching_bottom, launching_bytes);
    }
    current = nullptr;
    switch_thread(launching_thread);
    exchange_stacks(&saved_);
    if (__sanitizer_finish_switch_fiber != nullptr) {
        __sanitizer_finish_switch_fiber(fake_stack_, &launching_bottom, &launching_bytes);
    }
}

void Fiber::run() {
    if (__sanitizer_finish_switch_fiber != nullptr) {
        __sanitizer_finish_switch_fiber(nullptr, &launching_bottom, &launching_bytes);
    }
    Fiber* self = current;
    self->entry_(self->argument_);
    self->running_ = false;
    self->switch_away(true);
}

OnBehalfOfLauncher::OnBehalfOfLauncher()
    : thread_(races_are_watched() ? __tsan_get_current_fiber() : nullptr) {
    switch_thread(launching_thread);
}

OnBehalfOfLauncher::~OnBehalfOfLauncher() { switch_thread(thread_); }

bool races_are_watched() { return __tsan_create_fiber != nullptr; }

void acquire(void* key) {
    if (races_are_watched()) __tsan_acquire(key);
}

void release(void* key) {
    if (races_are_watched()) __tsan_release(key);
}

// A fiber that has seen nothing but the launch makes the access and carries the keys: the sanitizer can merge
// a key into a fiber and a fiber into a key, not a key into a key.
unsigned watched_add(unsigned* address, unsigned value, void* published, void* seen) {
    constexpr int RELAXED = 0;
    const OnBehalfOfLauncher scheduler;
    void* courier = __tsan_create_fiber(0);
    switch_thread(courier);
    __tsan_acquire(address);
    const unsigned old = __tsan_atomic32_fetch_add(address, value, RELAXED);
    __tsan_release(seen);
    __tsan_acquire(published);
    __tsan_release(address);
    switch_thread(launching_thread);
    __tsan_destroy_fiber(courier);
    return old;
}

void forbid(const void* begin, size_t bytes) {
    if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(begin, bytes);
}

void allow(const void* begin, size_t bytes) {
    if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(begin, bytes);
}

}  // namespace emulation
