"""Learning-rate schedules as data: a frozen configuration here, its arithmetic or its table on the device."""

from greedylr_fused.schedules.greedy import GreedyLR
from greedylr_fused.schedules.greedy_spec import GreedySpec
from greedylr_fused.schedules.refined import Refined
from greedylr_fused.schedules.steps import Constant, Linear, Polynomial, StepSchedule
from greedylr_fused.schedules.table import Table

__all__ = ["Constant", "GreedyLR", "GreedySpec", "Linear", "Polynomial", "Refined", "StepSchedule", "Table"]
