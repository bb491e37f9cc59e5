"""The table: addresses, sizes, hyper-parameters and work list of one optimizer, in memory that does not move.

Built once; at each step `refresh()` takes over what a `Watch` found: it sends the row of gradient addresses, or the
hyper-parameters, only if they changed. Kernels see addresses, the reference backend the tensors themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from greedylr_fused.control import Control
from greedylr_fused.tensors.copies import Copies
from greedylr_fused.tensors.dtensor import alike
from greedylr_fused.tensors.entry import Entry
from greedylr_fused.tensors.formats import CORRECTED, EMPTY, STATE_ROWS, Hyper, Launch, Row, real
from greedylr_fused.tensors.watch import COUNT, HYPER, MOVED, NEEDS_COPY

#: `Backend.send`.
Send = Callable[[Tensor, Tensor], "Tensor | None"]


class TensorTable:
    """Everything a backend needs; addresses stay valid for the table's life.

    Args:
        entries: parameters in the optimizer's order.
        control: the control vector; its device is the table's.
        chunk: elements per work item.
        copies: copies to write beside the parameters; `copies_in_kernel`: whether the kernels write them.

    Attributes:
        ptrs: int64 [17, N], see `Row`. A gradient address of 0 means: no gradient at this step.
        row: int64 [N] in host memory: the gradient addresses, as a `Watch` writes them.
        numel: int64 [N], complex numbers counted twice.  group: int32 [N].
        hyper: float64 [G, 6], see `Hyper`.
        norm_weight: float64 [N], see `Ranks.norm_weight`.
        chunk_tensor, chunk_index: int32 [C]; chunk c covers `chunk` elements of its tensor from
            `chunk_index[c] * chunk` on, or those that are left.
        launches: one per mix of storage types.
        snapshot: where the kernel that closes a step writes its state for the host; None for nowhere.
        l1: whether a measurement adds up absolute values, too.
        spike_window: values in each ring of spikes, 0 for none.
        tuned: the tuner's part of the control vector.
        searches: whether the schedule is a level search.
        closes: whether this step has got as far as its control, which may ask for a backup.
        captured: whether there is a graph that reads and writes all this memory at each replay; from then on every
            step sends all its values, since a replay may have come between.
        sharded: whether a parameter is a DTensor.
        written: addresses of the storages that an update writes to, but for those of step counts and copies.
    """

    def __init__(
        self, entries: Sequence[Entry], control: Control, chunk: int, copies: Copies, copies_in_kernel: bool
    ) -> None:
        self.entries = sorted(entries, key=lambda entry: entry.mix)  # stable
        self.chunk, self._copies = chunk, copies
        self.control, self.curve, self.l1 = control.vector, control.curve.values, control.measures_l1
        self.n_groups, self.snapshot, self.spike_window = control.n_groups, control.snapshot, control.spike_window
        self.tuned, self.searches, self.closes = control.tuned, control.searches, False
        self.device = self.control.device
        rows = {row: [0] * len(self.entries) for row in Row} | copies.place(self.entries, copies_in_kernel)
        rows[Row.PARAM] = [real(e.target).data_ptr() for e in self.entries]
        for i, entry in enumerate(self.entries):
            for name in entry.stored:
                rows[STATE_ROWS[name]][i] = real(entry.memory_of(name)).data_ptr()
            if len(entry.counts) > 1:
                rows[Row.WRITTEN_AT][i] = entry.state[entry.counts[1]].data_ptr()
        rows[Row.STEP] = self._counts()
        for row in (Row.NUMBER, Row.FIRST, Row.RUN, Row.STRIDE):
            rows[row] = [getattr(entry.place, row.name.lower()) for entry in self.entries]
        self.ptrs = self._upload([rows[row] for row in Row], torch.int64)
        self.group = self._upload([e.group for e in self.entries], torch.int32)
        self.norm_weight = self._upload([e.norm_weight for e in self.entries], torch.float64)
        self.hyper = self._upload([[-1.0] * len(Hyper)] * self.n_groups, torch.float64)
        self._list_work()
        self._grads = self.ptrs[Row.GRAD]
        on_host = self.device.type == "cpu"  # the table's own memory can be written to
        self.row = self._grads if on_host else torch.zeros_like(self._grads, device="cpu")
        self._hyper = self.hyper if on_host else self.hyper.cpu()
        self.sharded = any(e.spec is not None for e in self.entries)
        stored = (t for e in self.entries for t in (e.memory, *map(e.memory_of, e.stored)))
        self.written = frozenset(t.untyped_storage().data_ptr() for t in stored)
        self._copied = [entry for entry in self.entries if entry.dense_copy is not None]
        self._staged: dict[int, Tensor] = {}
        self._params_with_grad: list[Tensor] = []
        self._due = MOVED | COUNT | HYPER  # what the kernels have not been told yet
        self.captured = False

    def _counts(self) -> list[int]:
        """Return where the step counts lie. One that several parameters share would be counted in by all at once."""
        addresses: dict[int, Entry] = {}
        for entry in self.entries:
            if entry.step.data_ptr() in addresses:
                entry.state["step"] = entry.step.clone()
            addresses[entry.step.data_ptr()] = entry
        return list(addresses)

    def _upload(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cpu").to(self.device)

    def _list_work(self) -> None:
        numel = [real(e.target).numel() for e in self.entries]
        counts = [-(-n // self.chunk) for n in numel]
        self.numel = self._upload(numel, torch.int64)
        self.chunk_tensor, self.chunk_index = (words.to(self.device) for words in chunks_of(counts))
        self.launches: list[Launch] = []
        first = 0
        for (param, grad, state), members in itertools.groupby(range(len(numel)), key=lambda i: self.entries[i].mix):
            count = sum(counts[i] for i in members)
            if count:
                self.launches.append(Launch(param, grad, state, first, count))
            first += count

    def refresh(
        self, watch: Any, flags: int, groups: Sequence[dict[str, Any]], send: Send, captures: list[Any] | None
    ) -> bool:
        """Bring gradient addresses and hyper-parameters up to date, without waiting for the device.

        Args:
            watch: a `Watch` of this table that writes to `row`.
            flags: what the last look of the watch found.
            groups: the optimizer's parameter groups.
            send: as `Backend.send`.
            captures: takes the memory to keep for a graph being captured; None outside of a capture.

        Returns:
            False if a gradient came in another dtype that kernels take as it is: build a new table.

        Raises:
            RuntimeError: a gradient is sparse, has no memory, or has another shape than its parameter.
        """
        self._staged.clear()
        self._due |= flags  # until it has arrived: what follows may fail
        if flags & NEEDS_COPY:
            for i in watch.odd():
                address = self._odd_address(watch, i)
                if address is None:
                    return False
                self._due |= watch.put(i, address)
        if self._due & COUNT:
            self._params_with_grad = watch.params_with_grad()
        if self._due & HYPER:
            self._hyper.copy_(torch.tensor([hyper_row(g) for g in groups], dtype=torch.float64, device="cpu"))
        if self.row is not self._grads:
            self._send_all(send, captures)
        self._due = 0
        for entry in self._copied:
            if entry.param.grad is not None:
                entry.dense_copy.copy_(entry.memory)  # type: ignore[union-attr]
        return True

    def remember(self, flags: int) -> None:
        """Keep what a look found that no step has followed: the next step has to send it, too."""
        self._due |= flags

    def release(self) -> None:
        """Finish the step: write dense copies back, let go of temporary gradients, tell autograd that the parameters
        have changed, since it does not see what kernels write, and write their copies if no kernel did.
        """
        self._staged.clear()
        increment_version(self._params_with_grad)
        for entry in self._copied:
            if entry.param.grad is not None:
                entry.memory.copy_(entry.dense_copy)  # type: ignore[arg-type]
        self._copies.finish()

    @property
    def memory(self) -> list[Tensor]:
        """Return the device memory that the table owns."""
        tensors = [self.ptrs, self.numel, self.group, self.hyper, self.norm_weight, self.chunk_tensor, self.chunk_index]
        return tensors + [entry.dense_copy for entry in self._copied if entry.dense_copy is not None]

    @property
    def words(self) -> tuple[Tensor, Tensor]:
        """Return what `refresh` sends, in host memory: gradient addresses and hyper-parameters."""
        return self.row, self._hyper

    @property
    def params_with_grad(self) -> list[Tensor]:
        """Return the parameters that had a gradient in the last step."""
        return self._params_with_grad

    def gradient(self, i: int) -> Tensor | None:
        """Return what updates tensor i: its gradient, or the copy in the parameter's strides; None if it has none."""
        grad = self._staged[i] if i in self._staged else self.entries[i].gradient()
        return None if grad is None else real(grad)

    def _odd_address(self, watch: Any, i: int) -> int | None:
        """Return where an odd gradient, or else a copy that kernels can read, lies; None if it needs a new table."""
        entry = self.entries[i]
        grad = entry.gradient()
        if grad is None:
            return 0
        if entry.spec is not None and alike(entry.param.grad, entry.param):
            watch.accept(i, entry.param.grad)
        elif entry.spec is not None:
            self._staged[i] = grad  # brought into the parameter's placements, by all ranks, for this step
        entry.check_shape(grad)
        if not entry.fits(grad):
            if grad.dtype != entry.grad_dtype and entry.computes(grad.dtype):
                return None
            grad = self._stage(i, grad)
        return grad.data_ptr() or self._without_address(i, grad)

    def _stage(self, i: int, grad: Tensor) -> Tensor:
        entry = self.entries[i]
        copy = torch.empty_like(entry.target, dtype=entry.grad_dtype).copy_(grad)
        self._staged[i] = copy
        return copy

    def _without_address(self, i: int, grad: Tensor) -> int:
        if grad.numel() == 0:
            return EMPTY
        if grad._is_zerotensor():  # stands for zeros that it has no memory for
            return self._stage(i, grad).data_ptr()
        if type(grad) is Tensor and grad.device.type != "meta":
            raise RuntimeError(
                "FusedAdamW: expected gradients with memory, got one whose memory is gone; run backward() again"
            )
        raise RuntimeError(
            f"FusedAdamW: expected plain dense tensors as gradients, got a {type(grad).__name__} on {grad.device} "
            "without memory of its own; convert it to one, or step its parameter with torch.optim.AdamW"
        )

    def _send_all(self, send: Send, captures: list[Any] | None) -> None:
        self.captured = self.captured or captures is not None
        for flag, target, words in ((MOVED, self._grads, self.row), (HYPER, self.hyper, self._hyper)):
            if self.captured or self._due & flag:
                staged = send(target, words)
                if captures is not None and staged is not None:
                    captures.append(staged)


def chunks_of(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the list of work, tensor by tensor: of each chunk the tensor and its index there, int32 [C].

    Args:
        counts: chunks of each tensor.
    """
    per_tensor = torch.tensor(counts, dtype=torch.int64, device="cpu")
    tensor = torch.arange(len(counts), device="cpu").repeat_interleave(per_tensor)
    before = per_tensor.cumsum(0) - per_tensor
    index = torch.arange(len(tensor), device="cpu") - before[tensor]
    return tensor.to(torch.int32), index.to(torch.int32)


def hyper_row(group: Mapping[str, Any]) -> list[float]:
    """Return the hyper-parameters of a group in the order of `Hyper`. One of the two that make the weight decay is 0:
    the slope, in AdamW; the constant where the decay is to be multiplied by LR / peak, in AdamC (arXiv 2506.02285).

    Raises:
        TypeError: something other than a peak was written to a group that is stepped already.
    """
    peak = group.get(CORRECTED, 0.0)
    if peak is True:
        raise TypeError(
            f'param_groups: expected the peak LR as "{CORRECTED}", or 0 for a plain weight decay, got True; write the '
            "number, which True stands for at construction alone"
        )
    decay = (0.0, group["weight_decay"] / peak) if peak else (group["weight_decay"], 0.0)
    return [*map(float, group["betas"]), group["eps"], decay[0], float(group["maximize"]), decay[1]]
