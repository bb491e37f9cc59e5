// Taking and putting back a backup: copies that the control vector asks for, or a launch that ends at once.
#pragma once

#include "../core/backup.h"
#include "access.cuh"

namespace greedylr {
namespace cuda {

constexpr int BACKUP_THREADS = 256;
// Accesses of a thread under way: 64 KB on a multiprocessor with 1024 threads.
constexpr int BACKUP_ACCESSES = 4;

struct BackupArgs {
    BackupTable table;
    const double* control;
};

// By all threads of a block: 16 bytes at a time where source and target lie alike, and else by bytes.
__device__ __forceinline__ void copy(const Piece& piece) {
    const auto* from = reinterpret_cast<const uint8_t*>(piece.from);
    auto* to = reinterpret_cast<uint8_t*>(piece.to);
    const bool alike = on_access(piece.from ^ piece.to, ACCESS);
    const int before = int(-piece.from & (ACCESS - 1));
    const int head = alike && before < piece.count ? before : piece.count;
    const int packs = (piece.count - head) / ACCESS;
    const int thread = int(threadIdx.x), body = packs * ACCESS;
    for (int i = thread; i < piece.count - body; i += BACKUP_THREADS) {
        const int at = i < head ? i : i + body;
        store_global(to + at, load_global(from + at));
    }
    const auto* source = reinterpret_cast<const uint4*>(from + head);
    auto* target = reinterpret_cast<uint4*>(to + head);
    int i = thread;
    for (; i < packs - (BACKUP_ACCESSES - 1) * BACKUP_THREADS; i += BACKUP_ACCESSES * BACKUP_THREADS) {
        uint4 words[BACKUP_ACCESSES];
#pragma unroll
        for (int k = 0; k < BACKUP_ACCESSES; ++k) words[k] = load_global(source + i + k * BACKUP_THREADS);
#pragma unroll
        for (int k = 0; k < BACKUP_ACCESSES; ++k) store_global(target + i + k * BACKUP_THREADS, words[k]);
    }
    for (; i < packs; i += BACKUP_THREADS) store_global(target + i, load_global(source + i));
}

__global__ void __launch_bounds__(BACKUP_THREADS) backup_kernel(const __grid_constant__ BackupArgs args) {
    if (!asks_for_copies(args.control)) return;
    const bool put_back = holds(args.control[slot::backup], Backup::PUT_BACK);
    for (int64_t c = blockIdx.x; c < args.table.n_chunks; c += gridDim.x)
        copy(piece_of(args.table, c, put_back));
}

}  // namespace cuda
}  // namespace greedylr
