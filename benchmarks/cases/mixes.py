"""Mixes of storage types, and the bytes that a step over them cannot avoid: the table that every share is taken of."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mix:
    """Storage types of one optimizer step.

    Attributes:
        name: as in `--mixes`.
        param, grad, state: types of parameter, gradient and moments.
        amsgrad: whether there is a third moment.
        about: where it is used.
    """

    name: str
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    amsgrad: bool = False
    about: str = ""

    @property
    def moments(self) -> int:
        """How many moments a parameter has."""
        return 3 if self.amsgrad else 2

    @property
    def bytes_read(self) -> int:
        """Per parameter: itself, its gradient, its moments."""
        return self.param.itemsize + self.grad.itemsize + self.moments * self.state.itemsize

    @property
    def bytes_written(self) -> int:
        """Per parameter: itself and its moments."""
        return self.param.itemsize + self.moments * self.state.itemsize

    def bytes_moved(self, clip: bool = False) -> int:
        """Per parameter and step, at least; clipping by the norm over all needs each gradient once more."""
        return self.bytes_read + self.bytes_written + (self.grad.itemsize if clip else 0)

    @property
    def bytes_held(self) -> int:
        """Memory per parameter: parameter, gradient, moments."""
        return self.bytes_read


_F32, _BF16 = torch.float32, torch.bfloat16
MIXES = {
    mix.name: mix
    for mix in (
        Mix("fp32", _F32, _F32, _F32, about="torch's default; also autocast, whose parameters are float32"),
        Mix("bf16", _BF16, _BF16, _BF16, about="everything in bfloat16"),
        Mix("bf16-fp32states", _BF16, _BF16, _F32, about="bfloat16 model, moments kept precise"),
        Mix("fp32-amsgrad", _F32, _F32, _F32, amsgrad=True, about="amsgrad"),
        Mix("fp32-bf16states", _F32, _F32, _BF16, about="float32 model, moments in half the memory"),
        Mix("offload", _F32, _BF16, _F32, about="float32 weights and moments in host memory, bfloat16 gradients"),
    )
}
