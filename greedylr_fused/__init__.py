"""Fused AdamW for PyTorch whose learning rate is decided by the loss, on the device, with no host synchronisation."""

from greedylr_fused.backends import available_backends
from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.schedules import GreedyLR
from greedylr_fused.version import __version__

__all__ = ["FusedAdamW", "GreedyLR", "__version__", "available_backends"]
