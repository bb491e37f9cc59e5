"""Learning-rate schedules as data: a frozen configuration here, its arithmetic or its table on the device."""

from greedylr_fused.schedules.budgeted import REX, UBA
from greedylr_fused.schedules.cosine import Cosine, CosineRestarts
from greedylr_fused.schedules.greedy import GreedyLR
from greedylr_fused.schedules.greedy_spec import GreedySpec
from greedylr_fused.schedules.one_cycle import OneCycle
from greedylr_fused.schedules.refined import Refined
from greedylr_fused.schedules.steps import Constant, Linear, Polynomial, StepSchedule
from greedylr_fused.schedules.table import Table
from greedylr_fused.schedules.wsd import WSD

__all__ = [
    "REX",
    "UBA",
    "WSD",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "GreedyLR",
    "GreedySpec",
    "Linear",
    "OneCycle",
    "Polynomial",
    "Refined",
    "StepSchedule",
    "Table",
]
