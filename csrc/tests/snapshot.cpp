// One thread writes snapshots as the closing kernel does while another takes them: none is of two steps.
#include "../host/snapshot.h"

#include <atomic>
#include <thread>

#include "check.h"

namespace greedylr {
namespace {

constexpr int64_t N = 64;
constexpr int ARRIVALS = 10;  // each of another step, while the writer goes on
std::atomic<bool> done{false};
double words[N + 2] = {-1.0};

void put(double* word, double value) { __atomic_store(word, &value, __ATOMIC_RELAXED); }

void write_all() {
    for (double number = 1.0; !done; ++number) {
        put(words, number);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        for (int64_t i = 0; i < N; ++i) put(words + 1 + i, number);
        __atomic_store(words + N + 1, &number, __ATOMIC_RELEASE);
    }
}

void check_beside_a_writer() {
    words[N + 1] = -1.0;
    std::thread writer(write_all);
    double taken[N], known = -1.0;
    for (int arrived = 0; arrived < ARRIVALS;) {
        const double number = take_snapshot(words, taken, N, known);
        if (number < 0.0) continue;
        CHECK(number > known, "%g after %g", number, known);
        for (int64_t i = 0; i < N; ++i)
            CHECK(taken[i] == number, "slot %d of step %g is %g", int(i), number, taken[i]);
        known = number;
        ++arrived;
    }
    done = true;
    writer.join();
}

void check_one_thread() {
    double own[] = {2.0, 5.0, 2.0}, taken = 0.0;
    CHECK(take_snapshot(own, &taken, 1, -1.0) == 2.0 && taken == 5.0, "a whole one");
    CHECK(take_snapshot(own, &taken, 1, 2.0) == -1.0, "known");
    own[0] = 3.0;
    CHECK(take_snapshot(own, &taken, 1, 1.0) == -1.0, "being written");
    own[0] = own[2] = -1.0;
    CHECK(take_snapshot(own, &taken, 1, 2.0) == -1.0, "none yet");
}

}  // namespace
}  // namespace greedylr

int main() {
    greedylr::check_one_thread();
    greedylr::check_beside_a_writer();
}
