// Small kernels of the kinds that cuda/ has, right and with one mistake each: `mistakes CASE SEED` prints the
// result, or what the emulation says of it and ends with 3. A race is for the thread sanitizer to find.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <stdexcept>

#include "emulation.h"

namespace {

constexpr unsigned ALL = 0xffffffffu, BLOCKS = 5, THREADS = 64, N = 4000;

enum Mistake {
    NONE,
    FENCES,  // is none: two around a relaxed atomic
    NO_BARRIER,
    NO_RELEASE,
    NO_ACQUIRE,
    NO_FENCE_BEFORE,
    NO_FENCE_AFTER,
    MISALIGNED,
    DIVERGENT_BARRIER,
    ENDED_BEFORE_BARRIER,
    DIVERGENT_SHUFFLE,
    OUTSIDE_MASK,
    NO_SYNCWARP,
    BEYOND_SHARED,
    UNWRITTEN_SHARED,
};
constexpr const char* NAMES[] = {"none",
                                 "fences",
                                 "no-barrier",
                                 "no-release",
                                 "no-acquire",
                                 "no-fence-before",
                                 "no-fence-after",
                                 "misaligned",
                                 "divergent-barrier",
                                 "ended-before-barrier",
                                 "divergent-shuffle",
                                 "outside-mask",
                                 "no-syncwarp",
                                 "beyond-shared",
                                 "unwritten-shared"};
constexpr int COUNT = sizeof(NAMES) / sizeof(NAMES[0]);

struct Args {
    Mistake mistake;
    const unsigned* numbers;  // [N], on a multiple of 16 bytes
    unsigned* of_block;       // [BLOCKS]
    unsigned *arrived, *sum;
    unsigned* order;  // [BLOCKS], in which they arrived
};

__device__ unsigned own_numbers(const Args& args) {
    unsigned sum = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < N / 4; i += gridDim.x * blockDim.x) {
        const auto* at = reinterpret_cast<const uint4*>(args.numbers + 4 * i + (args.mistake == MISALIGNED));
        const uint4 four = emulation::load_global(at);
        sum += four.x + four.y + four.z + four.w;
    }
    return sum;
}

// Each lane writes, and reads what its neighbour wrote.
__device__ unsigned neighbours(const Args& args, unsigned value) {
    GREEDYLR_SHARED(unsigned, lanes, THREADS);
    lanes[threadIdx.x] = value;
    if (args.mistake == NO_SYNCWARP) {
        __shfl_sync(ALL, value, 0);  // waits for all lanes, but orders no memory
    } else {
        __syncwarp();
    }
    return lanes[threadIdx.x ^ 1];
}

__device__ unsigned over_warp(const Args& args, unsigned sum) {
    if (args.mistake == DIVERGENT_SHUFFLE && threadIdx.x == 7) return sum;
    const unsigned mask = args.mistake == OUTSIDE_MASK ? 0xffffu << threadIdx.x / 16 % 2 * 16 : ALL;
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(mask, sum, apart);
    return sum;
}

emulation::Order order_of(Mistake m) {
    const bool fenced = m == FENCES || m == NO_FENCE_BEFORE || m == NO_FENCE_AFTER;
    return fenced            ? emulation::RELAXED
           : m == NO_RELEASE ? emulation::ACQUIRE
           : m == NO_ACQUIRE ? emulation::RELEASE
                             : emulation::ACQUIRE_RELEASE;
}

__device__ bool is_last_block(const Args& args) {
    GREEDYLR_SHARED(unsigned, rank, 1);
    const Mistake m = args.mistake;
    if (threadIdx.x == 0) {
        if (m == FENCES || m == NO_FENCE_AFTER) __threadfence();
        rank[0] = emulation::atomic_add(args.arrived, 1, order_of(m));
        args.order[rank[0]] = blockIdx.x;
        if (m == FENCES || m == NO_FENCE_BEFORE) __threadfence();
    }
    __syncthreads();
    return rank[0] == gridDim.x - 1;
}

__global__ void sum_kernel(const Args& args) {
    GREEDYLR_SHARED(unsigned, of_warp, THREADS / 32);
    const unsigned sum = over_warp(args, neighbours(args, own_numbers(args)));
    if (threadIdx.x % 32 == 0 && args.mistake != UNWRITTEN_SHARED) of_warp[threadIdx.x / 32] = sum;
    if (args.mistake == DIVERGENT_BARRIER && threadIdx.x < 32) __syncthreads();
    if (args.mistake == ENDED_BEFORE_BARRIER && threadIdx.x == 9) return;
    if (args.mistake != NO_BARRIER) __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* from = of_warp;
        args.of_block[blockIdx.x] = from[0] + from[1 + (args.mistake == BEYOND_SHARED)];
    }
    if (!is_last_block(args)) return;
    if (threadIdx.x == 0) {
        for (unsigned b = 0; b < gridDim.x; ++b) *args.sum += args.of_block[b];
        *args.arrived = 0;
    }
}

Mistake mistake_of(const char* name) {
    for (int m = 0; m < COUNT; ++m) {
        if (strcmp(NAMES[m], name) == 0) return Mistake(m);
    }
    fprintf(stderr, "%s: no such case\n", name);
    exit(2);
}

}  // namespace

int main(int, char** arguments) {
    alignas(16) unsigned numbers[N + 1];
    for (unsigned i = 0; i <= N; ++i) numbers[i] = i;
    unsigned of_block[BLOCKS] = {}, order[BLOCKS] = {}, arrived = 0, sum = 0;
    const Args args = {mistake_of(arguments[1]), numbers, of_block, &arrived, &sum, order};
    emulation::set_schedule(strtoull(arguments[2], nullptr, 10));
    try {
        // Twice: what a launch leaves behind is seen by the next.
        for (int launch = 0; launch < 2; ++launch)
            emulation::launch(BLOCKS, THREADS, [&] { sum_kernel(args); });
    } catch (const std::runtime_error& error) {
        puts(error.what());
        return 3;
    }
    printf("sum %u, blocks in order", sum);
    for (unsigned block : order) printf(" %u", block);
    puts("");
}
