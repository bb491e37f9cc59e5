"""The portable backend: plain torch operations, no host read, one tensor at a time. The oracle and the fallback."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from greedylr_fused.backends.adamw import Scalars, adamw
from greedylr_fused.backends.base import Staging
from greedylr_fused.backends.control import Slots, run_control
from greedylr_fused.backends.measured import moved_sums, sum_of
from greedylr_fused.backends.mechanic import Moves, moved
from greedylr_fused.backends.spikes import Spikes
from greedylr_fused.backends.stored import kept, loaded
from greedylr_fused.control import shown
from greedylr_fused.schedules import Skip
from greedylr_fused.tensors import BackupTable, Entry, Hyper, Row, TensorTable, real


class ReferenceBackend:
    """The steps of one table, anywhere torch runs."""

    name: ClassVar[str] = "reference"
    chunk_size: ClassVar[int] = 1 << 16
    writes_copies: ClassVar[bool] = False

    def __init__(self, table: TensorTable) -> None:
        self.table = table
        self._staging = Staging(table)
        self.slots = Slots(table)
        self._spikes = Spikes(table.control, table.spike_window, table.tuned.begin)
        self.memory = [self.slots.zero, *self._spikes.memory]

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        return None

    def measure(self, then_clip: bool = True) -> None:
        c, weight = self.slots, self.table.norm_weight
        squares, absolute, nonfinite = [], [], []
        for i in range(len(self.table.entries)):
            grad = self.table.gradient(i)
            if grad is not None:
                wide = grad.to(torch.float64)
                squares.append(sum_of(wide.square()) * weight[i])
                if self.table.l1:
                    absolute.append(sum_of(wide.abs()) * weight[i])
                nonfinite.append((~torch.isfinite(grad)).any())

        def total(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).sum() if parts else c.zero

        c.set(grad_sq_sum=total(squares), grad_nonfinite=total(nonfinite))
        if self.table.l1:
            c.set(grad_abs_sum=total(absolute))
        if c.learners is not None:
            sums = torch.stack([torch.zeros_like(c.zero).expand(3), *moved_sums(self.table, c.learners.eps)]).sum(dim=0)
            c.set(**dict(zip(("param_sq_sum", "grad_moved_sum", "param_moved_sum"), sums.unbind(), strict=True)))
        if then_clip:
            self.clip()

    def clip(self) -> None:
        c = self.slots
        inverse = 1.0 / c["grad_scale"]  # G1
        norm = torch.sqrt(c["grad_sq_sum"]) * inverse
        limit = c["max_grad_norm"]
        clip = torch.clamp(limit / (norm + 1e-6), max=1.0)  # G2: keeps NaN
        clip = torch.where(torch.isinf(limit), 1.0, clip)
        multiplier = clip * inverse  # G3
        skip = (c["found_inf"] != 0) | ((c["skip_nonfinite"] != 0) & (c["grad_nonfinite"] > 0))  # G4
        skips = self._spikes.skip(norm, skip)
        why = torch.where(skip, float(Skip.NONFINITE), torch.where(skips, float(Skip.SPIKE), c.zero))
        c.set(grad_norm=norm, grad_multiplier=multiplier, skip=why)
        if c.learners is not None:
            norms = torch.sqrt(c["grad_sq_sum"]) * multiplier, torch.sqrt(c["param_sq_sum"])
            c.learners.observe(norms, (multiplier * c["grad_moved_sum"], c["param_moved_sum"]), ~skips)
            c.set(tuner_scale=c.learners.scale())

    def update(self, then_control: bool = True, loss: Tensor | None = None) -> None:
        c = self.slots
        keep = c["skip"] != 0
        for i, entry in enumerate(self.table.entries):
            grad = self.table.gradient(i)
            if grad is None:
                continue
            stored = [real(t) for t in (entry.target, *map(entry.memory_of, entry.stored))]
            opmath = torch.float64 if stored[0].dtype == torch.float64 else torch.float32
            step = entry.step.to(torch.float64) + 1.0
            scalars = Scalars.of(self.table.hyper[entry.group], c.lr[entry.group], c["grad_multiplier"], step, opmath)
            offset = stored.pop() if c.learners is not None else None
            p, m, v, *largest = (t.to(opmath) for t in loaded(entry, stored))
            start = p if offset is None else torch.zeros_like(p)
            new = adamw(start, grad.to(opmath), m, v, largest[0] if largest else None, scalars)
            if offset is not None:
                moves = self._moves(entry, opmath)
                p, after = moved(p, offset, new[0], moves)
                offset.copy_(torch.where(keep, offset, after))
                new = (p, *new[1:])
            for old, value in zip(stored, kept(entry, stored, new, entry.step + 1), strict=True):
                old.copy_(torch.where(keep, old, value.to(old.dtype)))
        if then_control:
            self.control(loss)

    def _moves(self, entry: Entry, opmath: torch.dtype) -> Moves:
        c = self.slots
        assert c.learners is not None
        hyper, lr = self.table.hyper[entry.group], c.lr[entry.group]
        weight_decay = hyper[Hyper.WEIGHT_DECAY] + lr * hyper[Hyper.DECAY_SLOPE]
        return Moves.of(lr, weight_decay, c["tuner_scale"], entry.written_at, c.learners.eps, opmath)

    def control(self, loss: Tensor | None = None) -> None:
        c = self.slots
        if loss is not None:
            self.observe(loss, 1.0)
        more = ((self.table.ptrs[Row.GRAD] != 0) & (c["skip"] == 0)).to(torch.float32)
        for entry, taken in zip(self.table.entries, more.unbind(), strict=True):
            entry.step.add_(taken)
            if c.learners is not None:
                entry.written_at.copy_(torch.where(taken != 0, c["tuner_scale"], entry.written_at))
        run_control(c)
        if self.table.snapshot is not None:
            number, state = (c["step"] + c["skipped"]).reshape(1), c.vector[shown(c.n_groups)]
            words = torch.cat([number, state, number])
            for part in (slice(0, 1), slice(1, -1), slice(-1, None)):  # in this order
                self.table.snapshot.memory[part].copy_(words[part], non_blocking=True)

    def observe(self, loss: Tensor, weight: float | Tensor) -> None:
        c = self.slots
        if not isinstance(weight, Tensor):
            weight = torch.full_like(c.zero, weight)
        value, weight = (tensor.detach().reshape(()).double() for tensor in (loss, weight))
        more = torch.where(weight == 0, c.zero, weight * value)  # a mean over no tokens is NaN, and weighs nothing
        c.set(loss_sum=c["loss_sum"] + more, loss_weight=c["loss_weight"] + weight)

    def backup(self, backup: BackupTable) -> None:
        action = self.slots["backup"]
        for live, copy in backup.pairs:
            before = copy.to(live.device, non_blocking=True)  # as it is, unless it lies on the host
            copy.copy_(torch.where(action == 1, live, before), non_blocking=True)
            live.copy_(torch.where(action == 2, before, live))

    def send(self, target: Tensor, words: Tensor) -> Tensor | None:
        return self._staging.send(target, words)
