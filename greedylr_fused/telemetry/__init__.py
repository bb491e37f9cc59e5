"""Every step of an optimizer, recorded without a host synchronisation.

`recorder.py` asks and hands over; `ring.py` is the memory on the device, a row per step; `history.py` makes rows the
steps that they are; `run_log.py` writes `run.jsonl`, `recorded_run.py` reads it, `loggers.py` feeds loggers.
"""

from greedylr_fused.telemetry.loggers import tensorboard
from greedylr_fused.telemetry.recorder import Recorder

__all__ = ["Recorder", "tensorboard"]
