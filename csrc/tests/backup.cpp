// A backup on the CPU and on the emulated GPU: all bytes of every tensor go where the slot says, and no
// other. Meant for the sanitizers; the thread sanitizer sees the CPU's threads, and the GPU's.
#include "../cpu/backup.h"

#include <string.h>

#include <functional>
#include <vector>

#include "../core/control.h"
#include "../cuda/step.h"
#include "check.h"
#include "emulation.h"

using namespace greedylr;

namespace {

constexpr int64_t CHUNK = 256, LARGEST = 3 * CHUNK + 19;
constexpr unsigned char GUARD = 0xa5;

// One tensor and its copy, in allocations that end where they do, so many bytes behind a multiple of 16.
struct Pair {
    Pair(int64_t size, int64_t live_offset, int64_t kept_offset)
        : live(size_t(live_offset + size), GUARD),
          kept(size_t(kept_offset + size), GUARD),
          live_begin(live_offset),
          kept_begin(kept_offset) {}

    void fill(unsigned char seed) {
        for (size_t i = size_t(live_begin); i < live.size(); ++i) live[i] = seed = uint8_t(seed * 5 + 1);
    }
    bool has(const std::vector<unsigned char>& memory, int64_t begin,
             const std::vector<unsigned char>& bytes) const {
        for (int64_t i = 0; i < begin; ++i) {
            if (memory[size_t(i)] != GUARD) return false;
        }
        return std::equal(bytes.begin(), bytes.end(), memory.begin() + begin, memory.end());
    }
    std::vector<unsigned char> bytes() const { return {live.begin() + live_begin, live.end()}; }

    std::vector<unsigned char> live, kept;
    int64_t live_begin, kept_begin;
};

struct Problem {
    Problem() {
        for (int64_t size = 0; size < 40; ++size) pairs.emplace_back(size, size % 7, size * 3 % 7);
        for (int64_t apart : {0, 1, 8, 16}) {
            for (int64_t size : {CHUNK - 1, CHUNK, CHUNK + 1, 16 * CHUNK, LARGEST}) {
                pairs.emplace_back(size, size % 5, size % 5 + apart);
            }
        }
        for (const Pair& pair : pairs)
            addresses.push_back(reinterpret_cast<int64_t>(pair.live.data()) + pair.live_begin);
        for (const Pair& pair : pairs)
            addresses.push_back(reinterpret_cast<int64_t>(pair.kept.data()) + pair.kept_begin);
        for (size_t n = 0; n < pairs.size(); ++n) {
            sizes.push_back(int64_t(pairs[n].live.size()) - pairs[n].live_begin);
            for (int64_t k = 0; k * CHUNK < sizes.back(); ++k) {
                chunk_tensor.push_back(int32_t(n));
                chunk_index.push_back(int32_t(k));
            }
        }
    }

    BackupTable table() const {
        return {addresses.data(),
                sizes.data(),
                chunk_tensor.data(),
                chunk_index.data(),
                int64_t(sizes.size()),
                int64_t(chunk_tensor.size()),
                CHUNK};
    }

    std::vector<Pair> pairs;
    std::vector<int64_t> addresses, sizes;
    std::vector<int32_t> chunk_tensor, chunk_index;
    std::vector<double> control = std::vector<double>(size_t(slot::count), 0.0);
};

// Take, change, ask for nothing, put back.
void check(const char* who, const std::function<void(Problem&)>& run) {
    Problem p;
    std::vector<std::vector<unsigned char>> before, after;
    const auto ask = [&](Backup action) {
        p.control[slot::backup] = double(action);
        run(p);
    };
    for (size_t n = 0; n < p.pairs.size(); ++n) p.pairs[n].fill(uint8_t(n));
    for (const Pair& pair : p.pairs) before.push_back(pair.bytes());
    ask(Backup::TAKE);
    for (size_t n = 0; n < p.pairs.size(); ++n) p.pairs[n].fill(uint8_t(n + 100));
    for (const Pair& pair : p.pairs) after.push_back(pair.bytes());
    ask(Backup::NONE);
    for (size_t n = 0; n < p.pairs.size(); ++n) {
        const Pair& pair = p.pairs[n];
        CHECK(pair.has(pair.live, pair.live_begin, after[n]), "%s, tensor %zu: what lives", who, n);
        CHECK(pair.has(pair.kept, pair.kept_begin, before[n]), "%s, tensor %zu: what is kept", who, n);
    }
    ask(Backup::PUT_BACK);
    for (size_t n = 0; n < p.pairs.size(); ++n) {
        const Pair& pair = p.pairs[n];
        CHECK(pair.has(pair.live, pair.live_begin, before[n]), "%s, tensor %zu: what is back", who, n);
        CHECK(pair.has(pair.kept, pair.kept_begin, before[n]), "%s, tensor %zu: what stays kept", who, n);
    }
}

void on_gpu(Problem& p) {
    std::vector<unsigned char> scratch(size_t(cuda::scratch_bytes()));
    TensorTable empty = {};
    empty.control = p.control.data();
    empty.chunk = CHUNK;
    const cuda::Stepper stepper(empty, {}, scratch.data(), nullptr, 0);
    stepper.backup(0, p.table());
    BackupTable none = p.table();
    none.n_tensors = none.n_chunks = 0;
    stepper.backup(0, none);
}

}  // namespace

int main() {
    for (int threads : {1, 3, 64}) {
        check("CPU", [threads](Problem& p) { run_backup(p.table(), p.control.data(), threads); });
    }
    for (unsigned blocks : {1u, 3u, 16u}) {
        emulation::set_schedule(blocks);
        emulation::set_resident_blocks(blocks);
        check("GPU", on_gpu);
    }
}
