"""What the contenders of a case work on: one set of parameters, gradients and moments that all of them share.

Sharing the memory leaves no luck of placement to any of them, and lets models be measured that fit only once. The
tensors lie in one buffer per stream, each aligned as PyTorch's allocator would, so that the roofline can run over the
same bytes.
"""

from __future__ import annotations

import ctypes
import gc
import math
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases.mixes import GROUP, Mix
from benchmarks.cases.shapes import Shapes
from benchmarks.harness import Step
from greedylr_fused.tensors.storage import in_groups

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
CODES, SCALES = ("exp_avg_q", "exp_avg_sq_q"), ("exp_avg_scale", "exp_avg_sq_scale")
#: What makes of each state where these gradients would have led: steps are of the size of the learning rate, no number
#: is denormal. Of 8-bit moments the codes are the largest, and the scales the values themselves.
_FILL = {"exp_avg": 1e-3, "exp_avg_sq": 1e-4, "max_exp_avg_sq": 1e-4, "remainder": 0}
_FILL |= {"exp_avg_q": 127, "exp_avg_sq_q": 255, "exp_avg_scale": 1e-3, "exp_avg_sq_scale": 1e-2}


class Workload:
    """Parameters with gradients, and moments for them.

    Args:
        shapes: of the tensors.
        mix: their types.
        device: where.

    Attributes:
        params: parameters, with `.grad` set.
        states: per parameter what the optimizer keeps but its step count, by name.
        flat: the buffers, by name: "param", "grad" and those of the state, which are for all elements but those of
            parameters whose state is of other types than the mix.
        ruled: of each parameter, whether its state is of the mix's types.
        loss: what GreedyLR is given.
    """

    def __init__(self, shapes: Shapes, mix: Mix, device: torch.device) -> None:
        self.shapes, self.mix, self.device = shapes, mix, device
        # In elements, so that streams of all types are aligned: 64 bytes as by malloc, 512 as by the CUDA allocator.
        align = (512 if device.type == "cuda" else 64) // min(2, mix.state.itemsize)
        padded = [-(-prod(size) // align) * align for size in shapes.sizes]
        *self._begins, end = accumulate(padded, initial=0)
        self.elements_with_padding = end
        generator = torch.Generator(device).manual_seed(0)

        def normal(dtype: torch.dtype, std: float) -> Tensor:
            return torch.empty(end, dtype=dtype, device=device).normal_(0, std, generator=generator)

        self.flat = {"param": normal(mix.param, 0.02), "grad": normal(mix.grad, 0.01)}
        self.ruled = [not mix.eight_bit or in_groups(torch.Size(size)) for size in shapes.sizes]
        for name, dtype in state_of(mix).items():
            count = end // GROUP if name in SCALES else end
            self.flat[name] = torch.full((count,), _FILL[name], dtype=dtype, device=device)
        self.params = [torch.nn.Parameter(tensor) for tensor in self._tensors("param")]
        for param, grad in zip(self.params, self._tensors("grad"), strict=True):
            if grad.dtype != param.dtype:
                param.grad_dtype = grad.dtype
            param.grad = grad
        columns = {name: self._tensors(name) for name in state_of(mix)}
        self.states = [
            {name: column[i] for name, column in columns.items()} if ruled else self._own_state(param)
            for i, (param, ruled) in enumerate(zip(self.params, self.ruled, strict=True))
        ]
        self.loss = torch.tensor(2.5, device=device)

    def _tensors(self, name: str) -> list[Tensor]:
        flat, tensors = self.flat[name], []
        for begin, size, ruled in zip(self._begins, self.shapes.sizes, self.ruled, strict=True):
            if name in SCALES:
                begin, size = begin // GROUP, (size[0], prod(size[1:]) // GROUP) if ruled else (0,)
            tensors.append(flat[begin : begin + prod(size)].view(size))
        return tensors

    def _own_state(self, param: Tensor) -> dict[str, Tensor]:
        types = state_of(self.mix.of_others)
        return {name: torch.full_like(param, _FILL[name], dtype=dtype) for name, dtype in types.items()}

    def bytes_per_parameter(self, clip: bool = False) -> float:
        """Moved by a step at least, the mean over all parameters."""
        elements = sum(prod(size) for size, ruled in zip(self.shapes.sizes, self.ruled, strict=True) if ruled)
        others, mix = self.shapes.elements - elements, self.mix
        moved = elements * mix.bytes_moved(clip) + others * mix.of_others.bytes_moved(clip)
        return round(moved / self.shapes.elements, 6)


def state_of(mix: Mix) -> dict[str, torch.dtype]:
    """Names and types of what an optimizer keeps of each parameter."""
    names = dict.fromkeys(MOMENTS[: mix.moments], mix.state)
    if mix.eight_bit:
        names = dict(zip((*CODES, *SCALES), (torch.int8, torch.uint8, torch.float32, torch.float32), strict=True))
    return names | ({"remainder": mix.remainder} if mix.remainder else {})


def unsupported(mix: Mix) -> str | None:
    """Why parameters and gradients of this mix cannot exist in the torch at hand, or None."""
    if mix.param != mix.grad and not hasattr(torch.Tensor, "grad_dtype"):
        return f"torch {torch.__version__} keeps every gradient in its parameter's dtype"
    return None


def without_groups(shapes: Shapes, mix: Mix) -> str | None:
    """Why this mix is no other than that of float32 moments here, or None."""
    if mix.eight_bit and not any(in_groups(torch.Size(size)) for size in shapes.sizes):
        return "no tensor of these shapes can have 8-bit moments"
    return None


def bytes_needed(shapes: Shapes, mix: Mix) -> int:
    """Memory of the workload and of what the thriftless among its contenders allocate besides.

    Those hold two temporaries as large as the moments, and gradients in the parameter's type. Beside a compressed state
    torch's steps have one of their own: of float32 parameters and gradients too, and once more in bfloat16.
    """
    copies = mix.param.itemsize if mix.param != mix.grad else 0
    if mix.compressed:
        copies += 16 + 8 if mix.param == torch.bfloat16 else 8
    return math.ceil(shapes.elements * (mix.bytes_held + 2 * mix.state.itemsize + copies))


def bytes_available(device: torch.device) -> int:
    """Free memory of the device; of the host what the system can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    found = (
        [line.split()[1] for line in info.read_text().splitlines() if line.startswith("MemAvailable")]
        if (info.exists())
        else []
    )
    return int(found[0]) << 10 if found else 8 << 30


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """How much memory a step takes on top of what is held before it; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
    except (OSError, AttributeError, TypeError):
        return None
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))
