"""Training steps of the example's GPT, one class per way to write them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.example import GPT, VOCABULARY, Shape, UnfusedAdamW, parameter_groups
from benchmarks.harness import Step, captured
from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.schedules.loss_spec import LossSpec

LR, MAX_GRAD_NORM, WEIGHT_DECAY, BETAS = 3e-4, 1.0, 0.1, (0.9, 0.95)
SCHEDULE = GreedyLR(factor=0.95, patience=10, smooth=True, window_size=50)


@dataclass(frozen=True)
class Size:
    """A model and the batch that it is given."""

    name: str
    shape: Shape
    batch: int


SIZES = {
    size.name: size
    for size in (
        # Little arithmetic per parameter, as in fine-tuning with short sequences: the optimizer's share is large.
        Size("tiny", Shape(layers=4, width=128, heads=4, kv_heads=4, hidden=384, context=64), batch=4),
        Size("gpt-25m", Shape(layers=8, width=512, heads=8, kv_heads=8, hidden=1408, context=256), batch=8),
        Size("gpt-100m", Shape(layers=14, width=768, heads=12, kv_heads=12, hidden=2048, context=1024), batch=8),
    )
}


class GPTStep:
    """Forward and backward in the precision of the device (bfloat16 autocast on a GPU), then `update`.

    The tokens are random and stay in one place: what is measured is time.

    Args:
        size: of the model.
        device: where.

    Attributes:
        spans: begin and end of every update, once `spans` was set to a list; see `milliseconds`.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = GPT(size.shape).to(device)
        self.groups = parameter_groups(self.model, WEIGHT_DECAY)
        tokens = torch.randint(VOCABULARY, (size.batch, size.shape.context + 1)).to(device)
        self._tokens, self._targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.spans: list[tuple[Any, Any]] | None = None
        self.prepare()

    def prepare(self) -> None:
        """Make the optimizer."""
        raise NotImplementedError

    def update(self, loss: Tensor) -> None:
        """What follows the backward pass."""
        raise NotImplementedError

    def backward(self) -> Tensor:
        """Gradients, and the loss that they are of."""
        # Without the cache of weights in bfloat16, which a graph cannot share with what runs outside of it.
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            loss = self.model(self._tokens, self._targets)
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        """One whole step."""
        for param in self.model.parameters():
            param.grad = None
        loss = self.backward()
        begin = self._now()
        self.update(loss)
        if self.spans is not None:
            self.spans.append((begin, self._now()))

    def _now(self) -> Any:
        if self.spans is None:
            return None
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> list[float]:
        """Of every update so far, stalls of the host included. Waits for the device."""
        spans, self.spans = self.spans or [], None
        if self.device.type != "cuda":
            return [1e3 * (end - begin) for begin, end in spans]
        torch.cuda.synchronize(self.device)
        return [float(begin.elapsed_time(end)) for begin, end in spans]

    def captured(self, body: Step) -> Step:
        """`body` as a CUDA graph, whose gradients are its own.

        Raises:
            NotOffered: no CUDA device.
        """
        return captured(body, self.device, before=self.model.zero_grad)


class Fused(GPTStep):
    """FusedAdamW with clipping and GreedyLR."""

    def prepare(self) -> None:
        self.optimizer = FusedAdamW(
            self.groups, LR, BETAS, weight_decay=WEIGHT_DECAY, schedule=SCHEDULE, max_grad_norm=MAX_GRAD_NORM
        )

    def update(self, loss: Tensor) -> None:
        self.optimizer.step(loss=loss)


class Unfused(GPTStep):
    """`clip_grad_norm_`, torch's fused AdamW, GreedyLR on the host, which reads the loss."""

    def prepare(self) -> None:
        self.optimizer = UnfusedAdamW(
            self.groups, LR, BETAS, WEIGHT_DECAY, schedule=SCHEDULE, max_grad_norm=MAX_GRAD_NORM
        )

    def update(self, loss: Tensor) -> None:
        self.optimizer.observe(loss)
        self.optimizer.step()


class FusedGraph(Fused):
    """The same as `Fused`, all of it in one graph."""

    def prepare(self) -> None:
        super().prepare()
        self._replay = self.captured(lambda: self.update(self.backward()))

    def __call__(self) -> None:
        self._replay()


class UnfusedGraph(GPTStep):
    """All but GreedyLR in one graph; the host reads the loss after each replay and writes the LR to a tensor."""

    def prepare(self) -> None:
        parameters = list(self.model.parameters())
        # `capturable`, and an LR that is a tensor, are torch's conditions for a graph that sees the LR change.
        rate = torch.tensor(LR, device=self.device)
        adamw = torch.optim.AdamW(self.groups, rate, BETAS, weight_decay=WEIGHT_DECAY, fused=True, capturable=True)
        self._rates = [group["lr"] for group in adamw.param_groups]
        self._greedy = LossSpec(SCHEDULE, [LR] * len(self._rates))

        def body() -> None:
            self._loss = self.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            adamw.step()

        self._replay = self.captured(body)

    def __call__(self) -> None:
        self._replay()
        for rate, lr in zip(self._rates, self._greedy.observe(self._loss.item()), strict=True):
            rate.fill_(lr)


CONTENDERS: dict[str, type[GPTStep]] = {
    "fused": Fused,
    "unfused": Unfused,
    "fused, graph": FusedGraph,
    "unfused, graph": UnfusedGraph,
}
BASE = "unfused"
