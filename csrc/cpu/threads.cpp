#include "threads.h"

#include <dlfcn.h>

#include <cfenv>
#include <system_error>
#include <thread>
#include <vector>

namespace greedylr {
namespace {

// The entry point that GCC emits for `#pragma omp parallel`; libgomp, libomp and libiomp5 all have it.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

// A second pool beside the one of PyTorch would fight it for the cores: its idle workers spin. `import torch`
// puts its OpenMP runtime in the global symbol scope, so looking the symbol up at run time, instead of
// linking a runtime, finds the pool whose workers have just run the backward pass.
Parallel process_openmp() {
    static const Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

// Without OpenMP, threads live for one call. Starting one costs some 20 us, which the caller weighs by asking
// for several only where the work is worth it; in return nothing is left to keep alive over a fork.
void spawn_and_join(int threads, void (*work)(void*), void* data) {
    std::vector<std::thread> helpers;
    helpers.reserve(threads - 1);
    try {
        while (int(helpers.size()) < threads - 1) helpers.emplace_back(work, data);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that started, and this one, share the work.
    }
    work(data);
    for (std::thread& helper : helpers) helper.join();
}

// Rounding and the treatment of denormals (torch.set_flush_denormal) belong to a thread. Which one gets which
// chunk is chance, so all of them work in the caller's mode, or the bits would be chance too.
struct Job {
    void (*work)(void*);
    void* data;
    std::fenv_t mode;

    static void run(void* address) {
        const Job& job = *static_cast<const Job*>(address);
        std::fenv_t own;
        std::fegetenv(&own);
        std::fesetenv(&job.mode);
        job.work(job.data);
        std::fesetenv(&own);
    }
};

}  // namespace

void run_on_threads(int threads, void (*work)(void*), void* data) {
    if (threads <= 1) {
        work(data);
        return;
    }
    Job job = {work, data, {}};
    std::fegetenv(&job.mode);
    if (const Parallel parallel = process_openmp()) {
        parallel(Job::run, &job, unsigned(threads), 0);
    } else {
        spawn_and_join(threads, Job::run, &job);
    }
}

const char* threads_backend() {
    return process_openmp() != nullptr ? "OpenMP of the process" : "std::thread";
}

}  // namespace greedylr
