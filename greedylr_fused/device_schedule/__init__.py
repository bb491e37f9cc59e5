"""The schedules of this package for any optimizers of PyTorch whose learning rates are tensors.

`driver.py` has `DeviceSchedule`, with a control vector of its own; `driven.py` the optimizers and LR tensors that it
writes; `checks.py` checks them; `muon.py` is torch's Muon with an LR that stays on the device.
"""

from greedylr_fused.device_schedule.driver import DeviceSchedule
from greedylr_fused.device_schedule.muon import Muon

__all__ = ["DeviceSchedule", "Muon"]
