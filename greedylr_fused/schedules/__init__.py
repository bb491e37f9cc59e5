"""Learning-rate schedules as data: a frozen configuration here, its arithmetic on the device."""

from greedylr_fused.schedules.greedy import GreedyLR
from greedylr_fused.schedules.greedy_spec import GreedySpec

__all__ = ["GreedyLR", "GreedySpec"]
