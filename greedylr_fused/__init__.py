"""Fused AdamW for PyTorch, with a learning rate that the loss or the step decides on the device."""

from greedylr_fused import integrations as _integrations
from greedylr_fused.backends import available_backends
from greedylr_fused.device_schedule import DeviceSchedule, Muon
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.schedules import (
    REX,
    UBA,
    WSD,
    AdaLRS,
    Climb,
    Constant,
    Cosine,
    CosineRestarts,
    GreedyLR,
    Linear,
    Mechanic,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Refined,
    SkipSpikes,
    Table,
)
from greedylr_fused.step import Metrics
from greedylr_fused.version import __version__

_integrations.register()

__all__ = ["DeviceSchedule", "FusedAdamW", "GreedyLR", "Metrics", "Muon", "__version__"]
__all__ += ["available_backends", "SkipSpikes"]
__all__ += ["Constant", "Cosine", "CosineRestarts", "Linear", "OneCycle", "Polynomial", "ReduceOnPlateau", "Refined"]
__all__ += ["AdaLRS", "Climb", "Mechanic", "REX", "Table", "UBA", "WSD"]
