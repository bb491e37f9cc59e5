"""Learning-rate schedules as data: a frozen configuration here, its arithmetic or its table on the device.

`steps.py` is the base of those that the step alone decides, each a curve over steps (`cosine.py`, `wsd.py`, ...);
`loss_driven.py` has the bases of those that the loss decides, `greedy.py` and `plateau.py`, and `loss_spec.py`
specifies their decisions in plain floats. `search.py` is the base of those that try other levels and put parameters
back, `climb.py` and `adalrs.py`, specified by `search_spec.py`. `refinement.py` makes a curve (`refined.py`) of the
gradient norms of a run. `mechanic.py` configures and specifies what scales all updates, beside any schedule,
`spikes.py` which are skipped.
"""

from greedylr_fused.schedules import refinement
from greedylr_fused.schedules.adalrs import AdaLRS
from greedylr_fused.schedules.budgeted import REX, UBA
from greedylr_fused.schedules.checks import MAX_STEPS
from greedylr_fused.schedules.climb import Climb
from greedylr_fused.schedules.cosine import Cosine, CosineRestarts
from greedylr_fused.schedules.greedy import DEFAULT_MAX_RATIO, GreedyLR
from greedylr_fused.schedules.loss_driven import CompareWith, Event, Kind, LossSchedule
from greedylr_fused.schedules.loss_spec import LossSpec
from greedylr_fused.schedules.mechanic import LOW_LR, Mechanic
from greedylr_fused.schedules.one_cycle import OneCycle
from greedylr_fused.schedules.plateau import ReduceOnPlateau
from greedylr_fused.schedules.refined import Refined
from greedylr_fused.schedules.search import HUGE_LOSS, ROUNDING, SEARCHES, Backup, LevelSearch, Phase
from greedylr_fused.schedules.search_spec import SearchSpec
from greedylr_fused.schedules.spikes import LANES, Skip, SkipSpikes, SpikeSpec
from greedylr_fused.schedules.steps import Constant, Linear, Polynomial, StepSchedule
from greedylr_fused.schedules.table import Table
from greedylr_fused.schedules.wsd import WSD

__all__ = [
    "AdaLRS",
    "Climb",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "GreedyLR",
    "Linear",
    "Mechanic",
    "OneCycle",
    "Polynomial",
    "REX",
    "ReduceOnPlateau",
    "Refined",
    "Table",
    "UBA",
    "WSD",
]
