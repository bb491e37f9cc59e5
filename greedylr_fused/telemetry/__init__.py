"""Every step of an optimizer, recorded without a host synchronisation.

`ring.py` is the memory on the device, a row per step; `recorder.py` asks for it, and hands steps over; `history.py`
makes steps of rows; `run_log.py` writes `run.jsonl`, `recorded_run.py` reads it, `loggers.py` feeds loggers;
`checks.py` checks a recorder's arguments.
"""

from greedylr_fused.telemetry import recorded_run
from greedylr_fused.telemetry.history import BACK, CUT, EVENTS, FREEZE, RAISE, RESET, TRY
from greedylr_fused.telemetry.loggers import tensorboard
from greedylr_fused.telemetry.recorded_run import SKIP, Run
from greedylr_fused.telemetry.recorder import Recorder

__all__ = ["Recorder", "tensorboard"]
