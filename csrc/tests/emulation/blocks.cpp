#include "blocks.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>

#include "emulation.h"

emulation::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

Thread* running;

namespace {

constexpr unsigned MAX_THREADS = 1024;  // of a block
constexpr unsigned MAX_RESIDENT = 64;   // blocks that run at a time
constexpr const char* NAMES[AT_COUNT] = {"ready to run", "at __syncthreads", "at __syncwarp", "at a shuffle",
                                         "ended"};

alignas(128) unsigned char shared_memory[MAX_RESIDENT][SHARED_BYTES];

// The launch under way. One at a time: a second OS thread waits for its turn.
std::mutex turn;
uint64_t seed = 0, draws = 0;
unsigned claimed_blocks = 3;
int claimed_ratio = 2;
int claimed_driver = 13000;
std::vector<std::unique_ptr<Block>> slots;  // with their stacks kept for later launches
unsigned resident;                          // slots in use
unsigned next_block;
std::deque<Thread*> ready;
void (*body)(void*);
void* body_argument;
char failure[256];  // what went wrong, empty: nothing yet
char begun, ended;  // keys

// splitmix64, Steele et al. 2014
size_t draw(size_t n) {
    uint64_t z = seed + ++draws * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return size_t((z ^ (z >> 31)) % n);
}

void run_thread(void*) {
    acquire(&begun);
    body(body_argument);
}

void start_block(unsigned slot) {
    Block& block = *slots[slot];
    block.index = next_block++;
    block.arrived = block.ended = 0;
    block.arrays.clear();
    block.memory = shared_memory[slot];
    forbid(block.memory, SHARED_BYTES);
    for (unsigned i = 0; i < blockDim.x; ++i) {
        if (i == block.threads.size()) block.threads.push_back(std::make_unique<Thread>());
        Thread& thread = *block.threads[i];
        thread.block = &block;
        thread.index = i;
        thread.fiber.start(run_thread, nullptr);
        ready_to_run(thread);
    }
}

Thread& next_thread() {
    if (seed != 0) std::swap(ready.front(), ready[draw(ready.size())]);
    Thread& thread = *ready.front();
    ready.pop_front();
    return thread;
}

// Returns whether it has ended.
bool run(Thread& thread) {
    running = &thread;
    threadIdx.x = thread.index;
    blockIdx.x = thread.block->index;
    if (thread.fiber.resume()) return false;
    thread.at = At::END;
    return true;
}

std::string who_waits() {
    std::string text = "the kernel cannot go on, since not all threads come to the same barrier or shuffle";
    for (unsigned slot = 0; slot < resident; ++slot) {
        const Block& block = *slots[slot];
        if (block.ended == blockDim.x) continue;
        unsigned count[AT_COUNT] = {};
        for (unsigned i = 0; i < blockDim.x; ++i) ++count[int(block.threads[i]->at)];
        text += "; block " + std::to_string(block.index) + ":";
        for (int at = 0; at < AT_COUNT; ++at) {
            if (count[at] != 0) text += " " + std::to_string(count[at]) + " " + NAMES[at];
        }
    }
    return text;
}

// Returns what went wrong, empty: nothing.
std::string run_blocks() {
    const bool together = seed != 0 || races_are_watched();
    resident = std::min(gridDim.x, together ? MAX_RESIDENT : 1);
    while (slots.size() < resident) slots.push_back(std::make_unique<Block>());
    for (unsigned slot = 0; slot < resident; ++slot) start_block(slot);
    for (unsigned left = gridDim.x; left != 0;) {
        if (ready.empty()) return who_waits();
        Thread& thread = next_thread();
        const bool has_ended = run(thread);
        if (failure[0] != 0) return failure;
        Block& block = *thread.block;
        if (!has_ended || ++block.ended < blockDim.x) continue;
        --left;
        if (next_block < gridDim.x) start_block(unsigned(block.memory - shared_memory[0]) / SHARED_BYTES);
    }
    return {};
}

void check_size(unsigned grid, unsigned block) {
    const std::string got = "got a launch of " + std::to_string(grid) + " blocks of " +
                            std::to_string(block) + " threads; allowed are ";
    if (grid == 0) throw std::runtime_error(got + "one block and more");
    if (block == 0 || block > MAX_THREADS || block % WARP != 0) {
        throw std::runtime_error(got + "multiples of 32 threads up to " + std::to_string(MAX_THREADS));
    }
    // A second block in the same slot would come after the first, and not race with it.
    if (races_are_watched() && grid > MAX_RESIDENT) {
        throw std::runtime_error(got + std::to_string(MAX_RESIDENT) + " blocks under the thread sanitizer");
    }
}

}  // namespace

void set_schedule(uint64_t new_seed) {
    seed = new_seed;
    draws = 0;
}

unsigned resident_blocks() { return claimed_blocks; }

void set_resident_blocks(unsigned blocks) { claimed_blocks = blocks; }

int single_to_double_ratio() { return claimed_ratio; }

void set_single_to_double_ratio(int ratio) { claimed_ratio = ratio; }

int driver_version() { return claimed_driver; }

void set_driver_version(int version) { claimed_driver = version; }

void launch(unsigned grid, unsigned block, void (*new_body)(void*), void* argument) {
    const std::lock_guard<std::mutex> lock(turn);
    check_size(grid, block);
    gridDim.x = grid;
    blockDim.x = block;
    body = new_body;
    body_argument = argument;
    next_block = 0;
    ready.clear();
    failure[0] = 0;
    release(&begun);
    const std::string problem = run_blocks();
    for (unsigned slot = 0; slot < resident; ++slot) {
        for (unsigned i = 0; i < block; ++i) slots[slot]->threads[i]->fiber.release_from_here(&ended);
    }
    acquire(&ended);
    if (!problem.empty()) throw std::runtime_error(problem);
}

void wait(At at) {
    running->at = at;
    running->fiber.leave();
}

void ready_to_run(Thread& thread) {
    thread.at = At::READY;
    ready.push_back(&thread);
}

void maybe_change_threads() {
    if (seed == 0) return;
    ready_to_run(*running);
    running->fiber.leave();
}

void fail(const char* format, ...) {
    const OnBehalfOfLauncher scheduler;
    va_list arguments;
    va_start(arguments, format);
    int length =
        snprintf(failure, sizeof failure, "thread %u of block %u ", running->index, running->block->index);
    vsnprintf(failure + length, sizeof failure - size_t(length), format, arguments);
    va_end(arguments);
    running->fiber.leave();
    abort();  // launch() has thrown, and nobody resumes this
}

}  // namespace emulation
