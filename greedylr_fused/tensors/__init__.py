"""Addresses, sizes and the list of work of an optimizer's tensors, in memory that does not move.

A step begins with a look (`watch.py`; compiled: `csrc/host/watch.cpp`): groups and states hold what they held, where it
lay, and where do gradients lie? A backend is given `table.py`, of which `entry.py` is one parameter, in the terms of
`formats.py`. `storage.py` says how a state is stored: `eight_bit.py` moments in 8 bits, `masters.py` what a bfloat16
parameter lacks of a float32 one, `tuning.py` what a tuner keeps; `conversion.py` from one to another, `memory.py` what
all take. `copies.py`: 16-bit copies of parameters; `backup.py`: a copy of all, to go back to; `dtensor.py`: the part of
a distributed tensor here; `direct.py`: where a pointer lies.
"""

from greedylr_fused.tensors import conversion, eight_bit, masters, storage, tuning, watch
from greedylr_fused.tensors.backup import CHUNK, Backup, BackupTable
from greedylr_fused.tensors.copies import Copies
from greedylr_fused.tensors.dtensor import Place, alike, is_flattened, layout, local, sharded_dims, spec_of
from greedylr_fused.tensors.eight_bit import square_root
from greedylr_fused.tensors.entry import Entry, check_memory, has_memory
from greedylr_fused.tensors.formats import (
    CORRECTED,
    DTYPES,
    EIGHT_BIT,
    MIXES,
    MOMENTS,
    STATE_DTYPES,
    STATE_ROWS,
    DType,
    Hyper,
    Row,
    real,
)
from greedylr_fused.tensors.memory import Memory, backup_bytes, memory_of
from greedylr_fused.tensors.storage import Storage, storage_of
from greedylr_fused.tensors.table import TensorTable
from greedylr_fused.tensors.tuning import TUNED
from greedylr_fused.tensors.watch import NEEDS_COPY, REBUILD, watching
