"""The cases of `bench`: four kinds of parameters, three pieces of work, and three optimizers that do each piece."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from greedylr_fused.optimizer import FusedAdamW
from greedylr_fused.schedules import GreedyLR, LossSpec

Step = Callable[[], object]

OURS, FUSED, FOREACH = "FusedAdamW", "torch fused", "torch foreach"
CONTENDERS = (OURS, FUSED, FOREACH)

STEP, CLIP, GREEDY = "step", "clip", "clip+GreedyLR"
WORKS = (STEP, CLIP, GREEDY)

#: Parameters in the largest case, by kind of device: more tell nothing new.
MOST = {"cpu": 50_000_000, "cuda": 500_000_000}
#: Bytes per float32 parameter: itself, its gradient, two moments, and two temporaries of torch's foreach.
_BYTES_HELD = 24

_LR, _MAX_GRAD_NORM = 1e-6, 1.0
_ADAMW: dict[str, Any] = {"lr": _LR, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
_SCHEDULE = GreedyLR(patience=10, window_size=50)


@dataclass(frozen=True)
class Case:
    """The parameters that one optimizer steps.

    Attributes:
        name: what they stand for.
        sizes: of every tensor.
        dtype: of parameters, gradients and moments.
    """

    name: str
    sizes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return sum(map(math.prod, self.sizes))

    def bytes_moved(self, work: str) -> int:
        """Return the bytes per parameter that the work must move: 4 reads, 3 writes, for a norm the gradient again."""
        return self.dtype.itemsize * (7 if work == STEP else 8)


def cases(elements: int) -> list[Case]:
    """Return all cases, of at most so many parameters each, unless the fixed numbers of tensors need more."""
    side = max(1, min(64, math.isqrt(elements // 1_000)))
    width = next((w for w in (768, 512, 384, 256, 192, 128, 64) if _gpt2(w).elements <= elements), 8)
    return [
        Case("one large tensor, float32", ((elements,),), torch.float32),
        Case("one large tensor, bfloat16", ((elements,),), torch.bfloat16),
        _gpt2(width),
        Case(f"1,000 tensors of {side} x {side}, float32", ((side, side),) * 1_000, torch.float32),
    ]


def _gpt2(width: int) -> Case:
    """Return GPT-2's list of tensors (12 layers; at width 768, 50,257 tokens and 1,024 positions), all scaled."""
    sizes: list[tuple[int, ...]] = [(50_257 * width // 768, width), (1_024 * width // 768, width)]
    for _ in range(12):
        sizes += [(width,)] * 2 + [(width, 3 * width), (3 * width,), (width, width), (width,)]
        sizes += [(width,)] * 2 + [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    sizes += [(width,)] * 2
    return Case(f"the {len(sizes)} tensors of a GPT-2 of width {width}, float32", tuple(sizes), torch.float32)


def that_fit(device: torch.device) -> int:
    """Return how many parameters the device's free memory holds with all that goes with them; at least 1,000."""
    return max(1_000, _free_bytes(device) // _BYTES_HELD)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else 4 << 30


class Workload:
    """Memory that all contenders of a case share, so that none is lucky with its place.

    Args:
        case: the tensors to hold.
        device: where to hold them.

    Attributes:
        params: with gradients.
        loss: what the schedule is given, on the device.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(size: tuple[int, ...], std: float) -> Tensor:
            return torch.empty(size, dtype=case.dtype, device=device).normal_(0, std, generator=generator)

        self.params = [torch.nn.Parameter(normal(size, 0.02)) for size in case.sizes]
        self._moments = []
        for param, size in zip(self.params, case.sizes, strict=True):
            param.grad = normal(size, 0.01)
            # As these gradients would make them: no number is denormal, and steps are of the size of the LR.
            moments = {"exp_avg": torch.full_like(param, 1e-3), "exp_avg_sq": torch.full_like(param, 1e-4)}
            self._moments.append({name: moment.detach() for name, moment in moments.items()})
        self.loss = torch.tensor(2.5, device=device)

    def share_moments(self, optimizer: torch.optim.Optimizer, step_device: torch.device) -> None:
        """Give an optimizer the moments that all share."""
        for param, moments in zip(self.params, self._moments, strict=True):
            optimizer.state[param] = {"step": torch.ones((), device=step_device), **moments}


def build(contender: str, work: str, workload: Workload, backend: str) -> Step:
    """Return a function that does one step with all that the work asks for, as a user would write it."""
    return _ours(work, workload, backend) if contender == OURS else _torchs(contender, work, workload)


def _ours(work: str, workload: Workload, backend: str) -> Step:
    optimizer = FusedAdamW(
        workload.params,
        **_ADAMW,
        max_grad_norm=None if work == STEP else _MAX_GRAD_NORM,
        schedule=_SCHEDULE if work == GREEDY else None,
        backend=backend,
    )
    workload.share_moments(optimizer, workload.loss.device)
    loss = workload.loss if work == GREEDY else None
    return lambda: optimizer.step(loss=loss)


def _torchs(contender: str, work: str, workload: Workload) -> Step:
    fused = contender == FUSED
    optimizer = torch.optim.AdamW(workload.params, **_ADAMW, fused=fused, foreach=not fused)
    workload.share_moments(optimizer, workload.loss.device if fused else torch.device("cpu"))
    params, loss, spec = workload.params, workload.loss, LossSpec(_SCHEDULE, [_LR])

    def step() -> None:
        if work != STEP:
            clip_grad_norm_(params, _MAX_GRAD_NORM)
        optimizer.step()
        if work == GREEDY:  # as schedules on the host do: the read waits for the device
            optimizer.param_groups[0]["lr"] = spec.observe(loss.item())[0]

    return step
