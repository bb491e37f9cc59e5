// Running one function on several threads, on the process's own OpenMP workers where there are any.
#pragma once

namespace greedylr {

// Calls work(data) on up to `threads` threads at once, the calling one among them, and returns when all are
// done. Work must share itself out (an atomic counter) and be complete whatever number of threads really
// came.
void run_on_threads(int threads, void (*work)(void*), void* data);

// "OpenMP of the process" or "std::thread".
const char* threads_backend();

}  // namespace greedylr
