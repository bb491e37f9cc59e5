#include "backup.h"

#include <string.h>

#include <algorithm>
#include <atomic>

#include "threads.h"

namespace greedylr {
namespace {

// Below this many chunks per thread, waking a thread costs more than it saves.
constexpr int64_t CHUNKS_PER_THREAD = 8;

struct Copying {
    const BackupTable& table;
    const bool put_back;
    std::atomic<int64_t> next{0};

    void work() {
        for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < table.n_chunks;) {
            const Piece piece = piece_of(table, c, put_back);
            memcpy(reinterpret_cast<void*>(piece.to), reinterpret_cast<const void*>(piece.from),
                   size_t(piece.count));
        }
    }
};

}  // namespace

void run_backup(const BackupTable& table, const double* control, int threads) {
    if (!asks_for_copies(control)) return;
    Copying copying{table, holds(control[slot::backup], Backup::PUT_BACK)};
    const int64_t useful = std::max<int64_t>(1, table.n_chunks / CHUNKS_PER_THREAD);
    run_on_threads(
        int(std::min<int64_t>(threads, useful)), [](void* data) { static_cast<Copying*>(data)->work(); },
        &copying);
}

}  // namespace greedylr
