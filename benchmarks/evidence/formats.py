"""How parameters and moments are stored in the runs of the preset `state`, and what their gradients suffer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

EPS = 1e-8
SMALL = 1e-4  # factor of the gradients, and of eps and the clip limit along with them
OUTLIER = 3000.0  # factor of one column of the gradient of every matrix


@dataclass(frozen=True)
class Condition:
    """What is done to a run besides how its state is stored.

    Attributes:
        about: in a line.
        beta2: of AdamW; None for that of the task.
        scale: factor of the loss, and so of the gradients; eps and the clip limit are scaled along.
        outlier: whether the first column of every matrix's gradient is `OUTLIER` times as large. AdamW's update does
            not depend on that; nothing is clipped then, since that would.
    """

    about: str
    beta2: float | None = None
    scale: float = 1.0
    outlier: bool = False

    def options(self, betas: tuple[float, float], max_grad_norm: float | None) -> dict[str, Any]:
        """Of the optimizer, from those of the task."""
        clip = None if max_grad_norm is None or self.outlier else max_grad_norm * self.scale
        both = betas if self.beta2 is None else (betas[0], self.beta2)
        return dict(betas=both, eps=EPS * self.scale, max_grad_norm=clip)

    def disturb(self, model: nn.Module) -> None:
        """Have backward multiply gradients by what is asked for."""
        for param in model.parameters() if self.outlier else ():
            if param.dim() > 1:
                factor = torch.ones_like(param)
                factor[:, 0] = OUTLIER
                param.register_hook(factor.mul)


PLAIN = Condition("as the task has it")
CONDITIONS = {
    "beta2-0.95": Condition("beta2 = 0.95, as in all that do not say 0.999", beta2=0.95),
    "beta2-0.999": Condition("beta2 = 0.999", beta2=0.999),
    "small-gradients": Condition(f"gradients x {SMALL:g}, eps and clip limit along with them", 0.95, SMALL),
    "outlier": Condition(f"one column of every matrix's gradient x {OUTLIER:g}, no clipping", 0.95, outlier=True),
    "worst": Condition("beta2 = 0.999, small gradients and the outlier together", 0.999, SMALL, outlier=True),
}


@dataclass(frozen=True)
class Format:
    """How a run stores what the optimizer keeps.

    Attributes:
        about: in a line.
        param: of the parameters; the arithmetic of the model is in float32.
        options: of FusedAdamW.
        peer: module and class of another's optimizer, which then takes its place.
    """

    about: str
    param: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    peer: tuple[str, str] | None = None


_MOMENTS_8, _MOMENTS_32 = {"state_dtype": torch.int8}, {"state_dtype": torch.float32}
_BF16 = torch.bfloat16
FORMATS: dict[str, Format] = {
    "fp32": Format("float32 parameters and moments"),
    "torch": Format("the same by torch's AdamW: what rounding alone changes", peer=("torch.optim", "AdamW")),
    "8bit": Format("float32 parameters, 8-bit moments", options=_MOMENTS_8),
    "bf16+int16": Format("bfloat16 parameters, int16 masters", _BF16, _MOMENTS_32 | {"master_weights": "int16"}),
    "bf16+int8": Format("bfloat16 parameters, int8 masters", _BF16, _MOMENTS_32 | {"master_weights": "int8"}),
    "bf16": Format("bfloat16 parameters without a master, float32 moments", _BF16, _MOMENTS_32),
    "bf16+int16+8bit": Format(
        "bfloat16 parameters, int16 masters, 8-bit moments", _BF16, _MOMENTS_8 | {"master_weights": "int16"}
    ),
    "bf16+int8+8bit": Format(
        "bfloat16 parameters, int8 masters, 8-bit moments", _BF16, _MOMENTS_8 | {"master_weights": "int8"}
    ),
    "torchao-8bit": Format("float32 parameters, torchao's AdamW8bit", peer=("torchao.optim", "AdamW8bit")),
    "bnb-8bit": Format("float32 parameters, bitsandbytes' AdamW8bit", peer=("bitsandbytes.optim", "AdamW8bit")),
}
#: Conditions whose differences vary so much more than those of others that they need more seeds, float32 and ours.
NOISY: tuple[tuple[str, str], ...] = (
    ("outlier", "fp32"),
    ("outlier", "8bit"),
    ("worst", "fp32"),
    ("worst", "bf16+int8+8bit"),
)
_PEERS = ("torchao-8bit", "bnb-8bit")
#: Which formats are compared under which condition, each with "fp32" under the same one.
STORED: tuple[tuple[str, str], ...] = (
    *(("beta2-0.95", form) for form in FORMATS),
    *((name, form) for name in ("beta2-0.999", "small-gradients", "outlier") for form in ("fp32", "8bit", *_PEERS)),
    *(("worst", form) for form in ("fp32", "bf16+int8+8bit", *_PEERS)),
)
