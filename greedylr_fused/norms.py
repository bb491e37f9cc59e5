"""The norms of the gradients, one row per step: recorded on the device, read after the run to refine a schedule.

A learning rate schedule can be refined by the gradient norms of a finished run (Defazio et al., arXiv 2310.07831): its
weights come from the L2 norm for SGD, from the L1 norm for Adam and its like.
"""

from __future__ import annotations

import array
import base64
import binascii
import ctypes
import math
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from greedylr_fused.schedules.checks import MAX_STEPS

if TYPE_CHECKING:
    from greedylr_fused.optimizer import FusedAdamW

#: Bytes of a row: two float32.
_ROW = 8


def check_steps(steps: int | None) -> None:
    """Check for how many steps norms are to be recorded.

    Raises:
        TypeError, ValueError: not a number of steps.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int)):
        raise TypeError(
            f"record_grad_norms: got {steps!r}, allowed is None or an integer; pass the number of steps of the run"
        )
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise ValueError(
            f"record_grad_norms: got {steps}, allowed is None (nothing is recorded) or 1 to {MAX_STEPS} steps; pass "
            "the number of steps of the run"
        )


def empty(steps: int, device: torch.device) -> Tensor:
    """A buffer of so many rows, none of which was recorded: float32 [steps, 2] of NaN."""
    return torch.full((steps, 2), math.nan, dtype=torch.float32, device=device)


def to_text(rows: Tensor) -> str:
    """The bytes of float32 rows, the lowest of each number first, as base64; "" of no rows. Waits for the device."""
    rows = rows.cpu().contiguous()
    words = array.array("I", ctypes.string_at(rows.data_ptr(), rows.numel() * rows.element_size()))
    return base64.b64encode(_lowest_first(words)).decode("ascii")


def from_text(text: str) -> Tensor:
    """The rows of such a text, float32 [rows, 2] on the CPU.

    Raises:
        ValueError: it is not one, or not of whole rows.
    """
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"it is no base64 ({error})") from None
    if len(data) % _ROW:
        raise ValueError(f"{len(data)} bytes are not rows of {_ROW}")
    if not data:
        return torch.empty(0, 2, dtype=torch.float32, device="cpu")
    return torch.frombuffer(_lowest_first(array.array("I", data)), dtype=torch.float32).view(-1, 2).clone()


def _lowest_first(words: array.array[int]) -> array.array[int]:
    """The same numbers from or to the order of bytes of this machine."""
    if sys.byteorder == "big":
        words.byteswap()
    return words


@torch.no_grad()
def grad_norms(self: FusedAdamW) -> Tensor:
    """The norms of all gradients together, before clipping and after unscaling, of every step so far that
    `record_grad_norms` has room for. Waits for the device.

    Row t, column 0: L2 norm at step t, counted from 0; column 1: L1 norm. A skipped step has no row. A step before the
    recording began (a checkpoint of a run that did not record) is NaN; norms that were not finite are as they were.

    Returns:
        float32 [min(steps, N), 2] on the CPU, a copy.

    Raises:
        RuntimeError: nothing is recorded.

    Reference: what the norms are for, Defazio et al., arXiv 2310.07831: the L1 norms for Adam, the L2 norms for SGD.
    """
    if not self._control.norms.numel():
        raise RuntimeError(
            "FusedAdamW.grad_norms(): no norms are recorded, allowed is after construction with record_grad_norms=N; "
            "pass the number of steps of the run as N"
        )
    self._take_written()
    return self._control.recorded().cpu().clone()
