"""The schedules of this package for any optimizer of PyTorch whose learning rates are tensors.

`driver.py` has `DeviceSchedule`, with a control vector of its own; `checks.py` checks its optimizer.
"""

from greedylr_fused.device_schedule.driver import DeviceSchedule

__all__ = ["DeviceSchedule"]
