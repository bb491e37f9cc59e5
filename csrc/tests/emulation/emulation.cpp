#include "emulation.h"

#include "blocks.h"

namespace emulation {
namespace {

constexpr size_t GUARD_BYTES = 128;     // between two arrays in shared memory
constexpr unsigned char POISON = 0xa5;  // what nobody has written

Thread& lane(unsigned i) { return *running->block->threads[running->index / WARP * WARP + i]; }

// Waits until all lanes of the mask are at this place, with this mask. The last to come calls `meet` for each
// of them, and gets true.
template <typename Meet>
bool meet_lanes(At at, unsigned mask, const Meet& meet) {
    if ((mask >> running->index % WARP & 1) == 0) fail("is not in its own mask %#x", mask);
    running->at = at;
    running->mask = mask;
    for (unsigned i = WARP; i-- > 0;) {  // the last lane is mostly the last to come
        if ((mask >> i & 1) != 0 && (lane(i).at != at || lane(i).mask != mask)) {
            wait(at);
            return false;
        }
    }
    for (unsigned i = 0; i < WARP; ++i) {
        if ((mask >> i & 1) == 0) continue;
        meet(lane(i));
        if (&lane(i) != running) ready_to_run(lane(i));
    }
    running->at = At::READY;
    return true;
}

bool meet_block() {
    Block& block = *running->block;
    if (++block.arrived < blockDim.x) {
        wait(At::SYNCTHREADS);
        return false;
    }
    block.arrived = 0;
    for (unsigned i = 0; i < blockDim.x; ++i) {
        if (block.threads[i].get() != running) ready_to_run(*block.threads[i]);
    }
    return true;
}

// Lets all that any thread did before `wait_for_all` happen before all that each does after it.
template <typename Wait>
void meet_in_order(Meeting& meeting, const Wait& wait_for_all) {
    void* key = meeting.key();
    release(key);
    {
        const OnBehalfOfLauncher scheduler;
        if (wait_for_all()) ++meeting.count;
    }
    acquire(key);
}

}  // namespace

void* shared(const void* place, size_t bytes) {
    const OnBehalfOfLauncher scheduler;
    Block& block = *running->block;
    size_t end = 0;
    for (const Array& array : block.arrays) {
        if (array.place == place) return block.memory + array.begin;
        end = array.begin + array.bytes;
    }
    const size_t begin = (end + 2 * GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
    if (begin + bytes > SHARED_BYTES) fail("needs more than the %zu bytes of shared memory", SHARED_BYTES);
    block.arrays.push_back({place, begin, bytes});
    allow(block.memory + begin, bytes);
    // Not by memset, which the sanitizers take over: to them, nobody has written here.
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(block.memory + begin)[i] = POISON;
    return block.memory + begin;
}

void sync_warp(unsigned mask) {
    meet_in_order(running->block->warp_barriers[uint64_t(running->index / WARP) << 32 | mask],
                  [mask] { return meet_lanes(At::SYNCWARP, mask, [](Thread&) {}); });
}

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source) {
    const OnBehalfOfLauncher scheduler;
    if ((mask >> source & 1) == 0) fail("reads lane %u, which is not in the mask %#x", source, mask);
    running->value = value;
    running->source = source;
    meet_lanes(At::SHUFFLE, mask, [](Thread& thread) { thread.received = lane(thread.source).value; });
    return running->received;
}

unsigned atomic_add(unsigned* address, unsigned value, Order order) {
    {
        const OnBehalfOfLauncher scheduler;
        maybe_change_threads();
    }
    if (order == RELEASE || order == ACQUIRE_RELEASE) release(&running->fence);
    const unsigned old = *address;
    if (races_are_watched()) {
        watched_add(address, value, &running->fence, &running->seen);
    } else {
        *address = old + value;
    }
    if (order == ACQUIRE || order == ACQUIRE_RELEASE) acquire(&running->seen);
    return old;
}

void check_alignment(const void* address, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
    fail("accesses %zu bytes at once at %p, which is not a multiple of them", bytes, address);
}

}  // namespace emulation

void __syncthreads() { emulation::meet_in_order(emulation::running->block->barrier, emulation::meet_block); }

void __threadfence() {
    using namespace emulation;
    acquire(&running->seen);
    release(&running->fence);
    const OnBehalfOfLauncher scheduler;
    maybe_change_threads();
}
