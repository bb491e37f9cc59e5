"""The device's side of a decision: a float64 vector per optimizer, in which the loss becomes the next learning rate.

Where is the LR decided? In this vector, by a backend, at the end of each step: `csrc/core/observe.h` and `control.h`,
`backends/triton/observe.py` and `control.py`, `backends/reference.py`. What they all must compute is written in plain
floats in `schedules/loss_spec.py`. `slots.py` names each number of the vector, `vector.py` builds it and writes to it,
`pending.py` adds up observed losses, `numbers.py` makes it plain numbers for checkpoints, `curve.py` is the table of a
step schedule.
"""

from greedylr_fused.control.curve import Curve
from greedylr_fused.control.slots import BLOCKS, SAVED, SAVED_BLOCKS, SLOT, SLOTS, STATE_BEGIN, TABLE, block, ring_begin
from greedylr_fused.control.vector import Control, Schedule
