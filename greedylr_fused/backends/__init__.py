"""The backends: each computes a step in four calls over one table, none of which reads a value back to the host.

Where does a parameter change? In `csrc/core/adamw.h`, whose loops are `csrc/cpu/loops.cpp` for `cpu.py` and
`csrc/cuda/update.cuh` for `cuda.py` (`native.py` loads what was compiled), and in `triton/adamw.py`; `adamw.py`
specifies all of them in plain torch operations, and `reference.py` (with `stored.py` for 8-bit moments and masters,
`control.py` for the control step, `spikes.py` for SkipSpikes, `search.py` for level searches, `measured.py` for sums)
is the backend made of it. A tuner moves it, by `csrc/core/mechanic.h` and `triton/tuner.py`, which `mechanic.py`
specifies. `base.py` is the protocol; `choice.py` takes the first backend that can run on a device.
"""

from greedylr_fused.backends.base import Backend
from greedylr_fused.backends.choice import BACKENDS, NAMES, Choice, available_backends, resolve

__all__ = ["BACKENDS", "Backend", "Choice", "available_backends", "resolve"]
