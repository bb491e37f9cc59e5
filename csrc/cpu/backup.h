// Taking and putting back a backup on the CPU.
#pragma once

#include "../core/backup.h"

namespace greedylr {

// Does what the control vector's slot `backup` asks for, on up to `threads` threads; nothing mostly.
void run_backup(const BackupTable& table, const double* control, int threads);

}  // namespace greedylr
