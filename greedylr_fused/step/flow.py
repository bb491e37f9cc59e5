"""The device's part of a step, from the loss of this rank to the next learning rate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.backends import Backend
from greedylr_fused.control import Control
from greedylr_fused.ranks import Ranks
from greedylr_fused.tensors import DTYPES

#: Types of weights that kernels read where they lie: numbers of tokens are integers.
WEIGHTS = {*DTYPES, torch.int64}

#: Makes torch.compile end its graph before what this decorates, and begin another after it; torch's own optimizers use
#: it, too. `torch.compiler.disable` does the same, but would import the compiler with this package, for 2 s.
outside_graphs: Any = torch._disable_dynamo


def observe(loss: Any, weight: Any, backend: Backend | None, control: Control) -> None:
    """Add `weight * loss` to what is pending, as they are when the stream gets here.

    Args:
        loss: a number or a tensor of one element.
        weight: the same.
        backend: the one that steps, which does it in one call; None if there is none yet.
        control: the one to observe with, the backend's.
    """
    weighed = lies_ready(weight, control, WEIGHTS) if isinstance(weight, Tensor) else True
    if backend is None or not weighed or not lies_ready(loss, control):
        control.observe(loss, weight)
    else:
        control.observed += 1
        backend.observe(loss, weight)


def lies_ready(value: Any, control: Control, dtypes: Collection[torch.dtype] = DTYPES.keys()) -> bool:
    """Return whether kernels can read a number where it lies."""
    plain = type(value) is Tensor and value.dtype in dtypes and value.device == control.device and value.numel() == 1
    return plain and value.layout is torch.strided and not value.is_neg() and value.data_ptr() != 0


def observed_or_in_place(loss: Any, backend: Backend, control: Control, shared: Tensor | None) -> Tensor | None:
    """Return a loss that the kernel which closes the step can read where it lies; observe any other, such as an element
    of a parameter, which the update changes before, and each that may skip the update as a spike.

    Args:
        loss: of this step; None if there is none.
        backend: the one that closes the step.
        control: the one to observe with.
        shared: what ranks add up before the close, which needs the loss earlier; None for nothing.
    """
    if loss is None:
        return None
    if shared is None and control.spike_window == 0 and lies_ready(loss, control):
        if loss.untyped_storage().data_ptr() not in backend.table.written:
            return loss  # type: ignore[no-any-return]
    observe(loss, 1.0, backend, control)
    return None


def run(
    backend: Backend,
    control: Control,
    ranks: Ranks,
    loss: Any,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Run gradient norm, sums of loss and norm over ranks, update and control; the host waits for nothing.

    Args:
        backend: over the table of all tensors.
        control: with the losses pending that were observed before.
        ranks: those that decide together.
        loss: of this step and rank; None if it was observed, or there is none.
        grad_scale: the loss scale; None if GradScaler has set none for this step.
        found_inf: whether GradScaler found a non-finite gradient; None if it has not looked.
    """
    backend.table.closes = False
    scaled = control.set_amp(grad_scale, found_inf)
    reads, shared = control.reads_gradients, ranks.shared(control, scaled)
    in_place = observed_or_in_place(loss, backend, control, shared)
    if shared is None:
        spikes = control.spike_window > 0
        if reads:
            backend.measure(then_clip=not spikes)
        if spikes or (scaled and not reads):
            backend.clip()
        backend.table.closes = True
        backend.update(loss=in_place)
        return
    if reads:
        backend.measure(then_clip=False)
    sums = ranks.add_up(shared, norm=reads)
    if reads or scaled:
        sums.wait()
        backend.clip()
        backend.table.closes = True
        backend.update()
    else:  # nothing but the next learning rate depends on the sums: they travel while memory is busy
        try:
            backend.update(then_control=False)
        finally:
            sums.wait()
        backend.table.closes = True
        backend.control()
