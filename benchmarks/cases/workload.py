"""What the contenders of a case work on: one set of parameters, gradients and moments that all of them share.

Sharing the memory leaves no luck of placement to any of them, and lets models be measured that fit only once. The
tensors lie in one buffer per stream, each aligned as PyTorch's allocator would, so that the roofline can run over the
same bytes.
"""

from __future__ import annotations

import ctypes
import gc
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases.mixes import Mix
from benchmarks.cases.shapes import Shapes
from benchmarks.harness import Step

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Workload:
    """Parameters with gradients, and moments for them.

    Args:
        shapes: of the tensors.
        mix: their types.
        device: where.

    Attributes:
        params: parameters, with `.grad` set.
        moments: per parameter, by torch's names.
        flat: the buffers, by name: "param", "grad" and the moments.
        loss: what GreedyLR is given.
    """

    def __init__(self, shapes: Shapes, mix: Mix, device: torch.device) -> None:
        self.shapes, self.mix, self.device = shapes, mix, device
        # In elements, so that streams of all types are aligned: 64 bytes as by malloc, 512 as by the CUDA allocator.
        align = (512 if device.type == "cuda" else 64) // 2
        padded = [-(-prod(size) // align) * align for size in shapes.sizes]
        *self._begins, end = accumulate(padded, initial=0)
        self.elements_with_padding = end
        generator = torch.Generator(device).manual_seed(0)

        def normal(dtype: torch.dtype, std: float) -> Tensor:
            return torch.empty(end, dtype=dtype, device=device).normal_(0, std, generator=generator)

        self.flat = {"param": normal(mix.param, 0.02), "grad": normal(mix.grad, 0.01)}
        for name in MOMENTS[: mix.moments]:
            # Where these gradients would have led: steps are of the size of the learning rate, no number is denormal.
            self.flat[name] = torch.full((end,), 1e-3 if name == "exp_avg" else 1e-4, dtype=mix.state, device=device)
        self.params = [torch.nn.Parameter(tensor) for tensor in self._tensors("param")]
        for param, grad in zip(self.params, self._tensors("grad"), strict=True):
            if grad.dtype != param.dtype:
                param.grad_dtype = grad.dtype
            param.grad = grad
        columns = {name: self._tensors(name) for name in MOMENTS[: mix.moments]}
        self.moments = [{name: column[i] for name, column in columns.items()} for i in range(len(self.params))]
        self.loss = torch.tensor(2.5, device=device)

    def _tensors(self, name: str) -> list[Tensor]:
        flat = self.flat[name]
        return [
            flat[begin : begin + prod(size)].view(size)
            for begin, size in zip(self._begins, self.shapes.sizes, strict=True)
        ]


def unsupported(mix: Mix) -> str | None:
    """Why parameters and gradients of this mix cannot exist in the torch at hand, or None."""
    if mix.param != mix.grad and not hasattr(torch.Tensor, "grad_dtype"):
        return f"torch {torch.__version__} keeps every gradient in its parameter's dtype"
    return None


def bytes_needed(shapes: Shapes, mix: Mix) -> int:
    """Memory of the workload and of what the thriftless among its contenders allocate besides.

    Those hold two temporaries as large as the moments, and gradients in the parameter's type.
    """
    copies = mix.param.itemsize if mix.param != mix.grad else 0
    return shapes.elements * (mix.bytes_held + 2 * mix.state.itemsize + copies)


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
