"""Learning-rate schedules as data: a frozen configuration here, its arithmetic or its table on the device."""

from greedylr_fused.schedules.budgeted import REX, UBA
from greedylr_fused.schedules.cosine import Cosine, CosineRestarts
from greedylr_fused.schedules.greedy import GreedyLR
from greedylr_fused.schedules.loss_driven import LossSchedule
from greedylr_fused.schedules.loss_spec import LossSpec
from greedylr_fused.schedules.one_cycle import OneCycle
from greedylr_fused.schedules.plateau import ReduceOnPlateau
from greedylr_fused.schedules.refined import Refined
from greedylr_fused.schedules.steps import Constant, Linear, Polynomial, StepSchedule
from greedylr_fused.schedules.table import Table
from greedylr_fused.schedules.wsd import WSD

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "GreedyLR",
    "Linear",
    "LossSchedule",
    "LossSpec",
    "OneCycle",
    "Polynomial",
    "REX",
    "ReduceOnPlateau",
    "Refined",
    "StepSchedule",
    "Table",
    "UBA",
    "WSD",
]
