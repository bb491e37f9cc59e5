"""The control vector: one per optimizer, float64, in which the loss becomes the next learning rate on the device.

Where is the LR decided? In this vector, by a backend, at the end of each step: `csrc/core/observe.h` and `control.h`,
`backends/triton/observe.py` and `control.py`, `backends/control.py`; by a level search in `csrc/core/search.h`,
`backends/triton/search.py`, `backends/search.py`. Their specifications, in plain floats, are `schedules/loss_spec.py`
and `search_spec.py`. `slots.py` names each number of the vector, `vector.py` builds it and writes to it, `tuned.py` is
a tuner's part of it, `bounds.py` bounds the LRs, `written.py` follows those that the host writes, `pending.py` adds up
observed losses, `snapshot.py` is where the device shows its state, `numbers.py` (and `spikes.py`) converts it to plain
numbers for checkpoints and back, `curve.py` is a schedule's table.
"""

from greedylr_fused.control.bounds import Schedule
from greedylr_fused.control.curve import Curve
from greedylr_fused.control.numbers import without_trial
from greedylr_fused.control.pending import add as add_pending
from greedylr_fused.control.slots import (
    BLOCKS,
    SAVED,
    SAVED_BLOCKS,
    SAVED_SEARCH,
    SEARCH_STATE,
    SEARCH_WINDOWS,
    SLOT,
    SLOTS,
    STATE_BEGIN,
    TABLE,
    block,
    ring_begin,
    shown,
)
from greedylr_fused.control.snapshot import Snapshot, device_address
from greedylr_fused.control.spikes import RINGS
from greedylr_fused.control.spikes import named as spikes_of
from greedylr_fused.control.spikes import place as place_spikes
from greedylr_fused.control.vector import Control
