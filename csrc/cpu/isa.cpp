// Which of the compiled loops this processor runs.
#ifdef __x86_64__
#include <cpuid.h>
#endif
#include <string.h>

#include <atomic>

#include "loops.h"

namespace greedylr {
namespace {

#ifdef __x86_64__
// Older compilers do not know "f16c" in __builtin_cpu_supports: leaf 1, bit 29 of ecx. Its registers are
// those of AVX2, so the operating system's part is checked with that.
bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1) != 0;
}
#endif

struct Available {
    const Loops* sets[4] = {};

    Available() {
        int n = 0;
#ifdef __x86_64__
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && has_f16c();
        // The AVX-512 loops are compiled for these four subsets, which every AVX-512 server processor has.
        if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            sets[n++] = &loops_avx512;
        }
        if (avx2) sets[n++] = &loops_avx2;
#endif
        sets[n] = &loops_baseline;
    }
};

const Available& available() {
    static const Available instance;
    return instance;
}

std::atomic<const Loops*>& chosen() {
    static std::atomic<const Loops*> instance{available().sets[0]};
    return instance;
}

}  // namespace

const Loops* const* available_loops() { return available().sets; }

const Loops& loops() { return *chosen().load(std::memory_order_relaxed); }

bool force_loops(const char* isa) {
    for (const Loops* const* set = available_loops(); *set != nullptr; ++set) {
        if (strcmp((*set)->isa, isa) == 0) {
            chosen().store(*set);
            return true;
        }
    }
    return false;
}

}  // namespace greedylr
