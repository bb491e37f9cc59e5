"""The device's part of a step, from the loss of this rank to the next learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greedylr_fused.backends import Backend
from greedylr_fused.control import Control
from greedylr_fused.ranks import Ranks
from greedylr_fused.tensors import DTYPES

#: Makes torch.compile end its graph before what this decorates, and begin another after it; torch's own optimizers use
#: it, too. `torch.compiler.disable` does the same, but would import the compiler with this package, for 2 s.
outside_graphs: Any = torch._disable_dynamo


def observed_or_in_place(loss: Any, backend: Backend, control: Control, shared: Tensor | None) -> Tensor | None:
    """Return a loss that the kernel which closes the step can read where it lies; observe any other, such as an element
    of a parameter, which the update changes before.

    Args:
        loss: of this step; None if there is none.
        backend: the one that closes the step.
        control: the one to observe with.
        shared: what ranks add up before the close, which needs the loss earlier; None for nothing.
    """
    if loss is None:
        return None
    plain = type(loss) is Tensor and loss.dtype in DTYPES and loss.device == control.device and loss.numel() == 1
    if shared is None and plain and loss.layout is torch.strided and not loss.is_neg() and loss.data_ptr():
        if loss.untyped_storage().data_ptr() not in backend.table.written:
            return loss  # type: ignore[no-any-return]
    control.observe(loss, 1.0)
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
    scaled = control.set_amp(grad_scale, found_inf)
    reads, shared = control.reads_gradients, ranks.shared(control, scaled)
    in_place = observed_or_in_place(loss, backend, control, shared)
    if shared is None:
        if reads:
            backend.measure()
        elif scaled:
            backend.clip()
        backend.update(loss=in_place)
        return
    if reads:
        backend.measure(then_clip=False)
    sums = ranks.add_up(shared, norm=reads)
    if reads or scaled:
        sums.wait()
        backend.clip()
        backend.update()
    else:  # nothing but the next learning rate depends on the sums: they travel while memory is busy
        try:
            backend.update(then_control=False)
        finally:
            sums.wait()
        backend.control()
