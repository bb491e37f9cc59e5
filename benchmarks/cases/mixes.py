"""Mixes of storage types, and the bytes that a step over them cannot avoid: the table that every share is taken of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

#: Elements that share the two float32 scales of their 8-bit moments.
GROUP = 64


@dataclass(frozen=True)
class Mix:
    """Storage types of one optimizer step.

    Attributes:
        name: as in `--mixes`.
        param, grad, state: types of parameter, gradient and moments; torch.int8 for codes with scales.
        amsgrad: whether there is a third moment.
        about: where it is used.
        remainder: type of what a bfloat16 parameter lacks of its float32 master, or None.
    """

    name: str
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    amsgrad: bool = False
    about: str = ""
    remainder: torch.dtype | None = None

    @property
    def moments(self) -> int:
        """How many moments a parameter has."""
        return 3 if self.amsgrad else 2

    @property
    def eight_bit(self) -> bool:
        """Whether moments are codes of 8 bits with scales."""
        return self.state == torch.int8

    @property
    def compressed(self) -> bool:
        """Whether the state is not what torch's AdamW has: then torch's steps have a state of their own."""
        return self.eight_bit or self.remainder is not None

    @property
    def bytes_written(self) -> float:
        """Per parameter: itself, its moments, its remainder."""
        moments = self.moments * (self.state.itemsize + (4 / GROUP if self.eight_bit else 0))
        found = self.param.itemsize + moments + (self.remainder.itemsize if self.remainder else 0)
        return found if found % 1 else int(found)

    @property
    def bytes_read(self) -> float:
        """Per parameter: the same, and its gradient."""
        return self.bytes_written + self.grad.itemsize

    def bytes_moved(self, clip: bool = False) -> float:
        """Per parameter and step, at least; clipping by the norm over all needs each gradient once more."""
        return self.bytes_read + self.bytes_written + (self.grad.itemsize if clip else 0)

    @property
    def bytes_held(self) -> float:
        """Memory per parameter: parameter, gradient, moments, remainder."""
        return self.bytes_read

    @property
    def of_others(self) -> Mix:
        """What tensors get that cannot have 8-bit moments: float32 ones, and remainders of 16 bits."""
        state = torch.float32 if self.eight_bit else self.state
        return replace(self, state=state, remainder=torch.int16 if self.remainder else None)


_F32, _BF16, _I8, _I16 = torch.float32, torch.bfloat16, torch.int8, torch.int16
MIXES = {
    mix.name: mix
    for mix in (
        Mix("fp32", _F32, _F32, _F32, about="torch's default; also autocast, whose parameters are float32"),
        Mix("bf16", _BF16, _BF16, _BF16, about="everything in bfloat16"),
        Mix("bf16-fp32states", _BF16, _BF16, _F32, about="bfloat16 model, moments kept precise"),
        Mix("fp32-amsgrad", _F32, _F32, _F32, amsgrad=True, about="amsgrad"),
        Mix("fp32-bf16states", _F32, _F32, _BF16, about="float32 model, moments in half the memory"),
        Mix("offload", _F32, _BF16, _F32, about="float32 weights and moments in host memory, bfloat16 gradients"),
        Mix("fp32-8bit", _F32, _F32, _I8, about="float32 model, moments in 8 bits"),
        Mix("bf16-int16", _BF16, _BF16, _F32, remainder=_I16, about="exact float32 masters of a bfloat16 model"),
        Mix("bf16-int16-8bit", _BF16, _BF16, _I8, remainder=_I16, about="the same, moments in 8 bits"),
        Mix("bf16-int8-8bit", _BF16, _BF16, _I8, remainder=_I8, about="masters of 24 bits, moments in 8 bits"),
        Mix(
            "bf16-8bit",
            _BF16,
            _BF16,
            _I8,
            about="moments in 8 bits, parameters rounded to bfloat16, which loses small steps",
        ),
    )
}
#: Those of 8-bit moments or masters.
COMPRESSED = [mix.name for mix in MIXES.values() if mix.compressed]
