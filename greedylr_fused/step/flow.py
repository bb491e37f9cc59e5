"""What a step does on the device, from the loss of this rank to the next learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greedylr_fused.backends import Backend
from greedylr_fused.control import Control
from greedylr_fused.ranks import Ranks

#: Where torch.compile comes to what this decorates it ends its graph, and begins another behind it. That of
#: `torch.compiler`, which torch's own optimizers take too, would import the compiler with this package, for 2 s.
outside_graphs: Any = torch._disable_dynamo


def run(backend: Backend, control: Control, ranks: Ranks, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Gradient norm, loss and norm over ranks, update, control. The host waits for nothing.

    Args:
        backend: over the table of all tensors.
        control: with the loss of this rank pending.
        ranks: those that decide together.
        grad_scale: the loss scale, if GradScaler has set one for this step.
        found_inf: whether GradScaler found a non-finite gradient, if it has looked.
    """
    scaled = control.set_amp(grad_scale, found_inf)
    reads, shared = control.reads_gradients, ranks.shared(control, scaled)
    if shared is None:
        if reads:
            backend.measure()
        elif scaled:
            backend.clip()
        backend.update()
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
