"""A backup of what steps change, for trials that may be undone: parameters, states, step counts and 16-bit copies.

The host gives memory and addresses; the device decides when to take the backup and when to put it back
(`Backend.backup`, by the slot "backup" of the control vector), so the host never learns of it, nor waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from greedylr_fused.capture import outside_inference
from greedylr_fused.control import device_address
from greedylr_fused.tensors.copies import Copies
from greedylr_fused.tensors.dtensor import local
from greedylr_fused.tensors.entry import Entry
from greedylr_fused.tensors.formats import real
from greedylr_fused.tensors.table import TensorTable, chunks_of

#: Bytes per work item.
CHUNK = 1 << 16
#: Bytes of the widest access of a kernel: what is kept lies a multiple of it away from what it is a copy of.
_ACCESS = 16


class BackupTable:
    """Memory that backends copy from and to, at addresses that are valid for its life: a captured graph must keep it.

    Args:
        parts: memory of tensors, each with what stands in for it if it is not flat, else None.
        kept: one for each, in its layout.
        versions: tensors that autograd is to be told of.
        table: which these are tensors of.

    Attributes:
        pairs: (live, kept), flat real tensors of the same layout.
        addresses: int64 [2, K] on the device, of the live and the kept ones.
        sizes: int64 [K] on the device, bytes.
        chunk_tensor, chunk_index: int32 [C] on the device; chunk c covers the bytes of its tensor from
            `chunk_index[c] * CHUNK` on, up to `CHUNK`.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Tensor, Tensor | None]],
        kept: Sequence[Tensor],
        versions: Sequence[Tensor],
        table: TensorTable,
    ) -> None:
        device = table.device
        self._stand_ins = [(memory, other) for memory, other in parts if other is not None]
        self._versions, self._table = versions, table
        self.pairs = [(live_of(*part), own) for part, own in zip(parts, kept, strict=True)]
        sizes = [live.nbytes for live, _ in self.pairs]
        addresses = [[live.data_ptr() for live, _ in self.pairs], [_address(own, device) for own in kept]]
        self.addresses, self.sizes = (
            torch.tensor(words, dtype=torch.int64, device="cpu").to(device) for words in (addresses, sizes)
        )
        tensor, index = chunks_of([-(-size // CHUNK) for size in sizes])
        self.chunk_tensor, self.chunk_index = tensor.to(device), index.to(device)

    def refresh(self) -> None:
        """Before `Backend.backup`, and after all else that a step writes: copy what is not flat to what stands in."""
        for memory, stand_in in self._stand_ins:
            stand_in.copy_(memory)

    def release(self) -> None:
        """After `Backend.backup`: copy it back, and tell autograd that all may have changed, as the host does not know
        better. If all parameters had a gradient, `TensorTable.release` did so.
        """
        for memory, stand_in in self._stand_ins:
            memory.copy_(stand_in)
        if len(self._table.params_with_grad) < len(self._table.entries):
            increment_version(self._versions)

    @property
    def memory(self) -> list[Tensor]:
        """Return the memory that it owns or copies to, but for what is live."""
        own = [self.addresses, self.sizes, self.chunk_tensor, self.chunk_index]
        return own + [stand_in for _, stand_in in self._stand_ins] + [kept for _, kept in self.pairs]


class Backup:
    """One copy of each tensor that the steps of an optimizer change.

    Args:
        where: "device" keeps it beside the tensors, "host" in pinned memory, which a GPU reads and writes where it is
            (over PCIe, some 20 times slower). PyTorch rounds blocks of pinned memory up to powers of two. Tensors on
            the CPU have theirs in ordinary memory either way.

    Raises:
        ValueError: another `where`.

    Attributes:
        table: the one for `Backend.backup`; None before `place` and after `drop`.
    """

    def __init__(self, where: str = "device") -> None:
        if where not in ("device", "host"):
            raise ValueError(f'backup: expected where="device" or "host", got {where!r}; choose one of them')
        self.where = where
        self.table: BackupTable | None = None
        self._kept: dict[tuple[Tensor, str], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Return the bytes that are kept, beside less than 32 for each tensor."""
        return sum(kept.nbytes for kept in self._kept.values())

    @outside_inference
    def place(self, table: TensorTable, copies: Copies) -> BackupTable:
        """Make the backup one of a table's tensors.

        What was kept of a parameter stays as long as its shape does, wherever that lies by now, and in the new type if
        both are of floating point. A tensor that is new, such as those of a parameter which gets its first gradient, is
        kept as it is now; a new copy in 16 bits as its kept parameter says.

        Args:
            table: the new one, before its first step.
            copies: those placed with it.

        Raises:
            RuntimeError: GPUs cannot reach pinned memory here.
        """
        kept: dict[tuple[Tensor, str], Tensor] = {}
        parts, versions = [], []
        for entry in table.entries:
            for name, memory, stand_in in _parts(entry, copies):
                parts.append((memory, stand_in))
                live = live_of(memory, stand_in)
                if stand_in is not None:
                    stand_in.copy_(memory)
                content = self._kept.get((entry.param, name))
                if content is None or not _is_of(content, live, exact=name == "copy"):
                    content = kept[entry.param, "param"] if name == "copy" else live
                kept[entry.param, name] = self._like(live, content)
            versions += [tensor for tensor in (entry.param, copies.of.get(entry.param)) if tensor is not None]
        new = BackupTable(parts, list(kept.values()), versions, table)
        self._let_go(kept)
        self.table, self._kept = new, kept
        return new

    def drop(self) -> None:
        """Free the memory. Steps that the device is still to do may use it."""
        self._let_go({})
        self.table, self._kept = None, {}

    def _like(self, live: Tensor, content: Tensor) -> Tensor:
        """Return memory in the layout of `live` that holds what `content` does; that itself, if it fits."""
        on_host = self.where == "host" and live.device.type != "cpu"
        device = torch.device("cpu") if on_host else live.device
        fits = content.dtype == live.dtype and content.stride() == live.stride() and content.device == device
        if content is not live and fits and (content.data_ptr() - live.data_ptr()) % _ACCESS == 0:
            return content
        size = live.nbytes
        room = torch.empty(size + _ACCESS, dtype=torch.uint8, device=device, pin_memory=on_host)
        begin = (live.data_ptr() - room.data_ptr()) % _ACCESS // live.itemsize * live.itemsize
        flat = room[begin : begin + size].view(live.dtype)
        return flat.as_strided(live.shape, live.stride()).copy_(content)

    def _let_go(self, kept: dict[tuple[Tensor, str], Tensor]) -> None:
        """Tell allocators that the current stream may still use the last table, and memory that is not `kept`."""
        if self.table is None or self.table.addresses.device.type != "cuda":
            return
        device = self.table.addresses.device
        stays = {id(tensor) for tensor in kept.values()}
        for memory in self.table.memory:
            if memory.is_cuda:
                memory.record_stream(torch.cuda.current_stream(device))
            elif id(memory) not in stays and memory.numel():  # a copy from pinned memory makes its allocator wait
                memory.as_strided((1,), (1,)).to(device, non_blocking=True)


def _is_of(content: Tensor, live: Tensor, *, exact: bool) -> bool:
    """Return whether what was kept can still be put back: after `param.data = param.data.bfloat16()` it is rounded,
    unless that is to be `exact`.
    """
    both = content.is_floating_point() and live.is_floating_point() and not exact
    return content.shape == live.shape and (both or content.dtype == live.dtype)


def live_of(memory: Tensor, stand_in: Tensor | None) -> Tensor:
    """Return the flat real tensor that is copied: the memory itself unless something stands in for it."""
    return real(memory if stand_in is None else stand_in)


def _parts(entry: Entry, copies: Copies) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield all that a step may write of a parameter: name, memory, and what stands in for it if that is not flat."""
    yield "param", entry.memory.detach(), entry.dense_copy
    for name in (*entry.stored, "step"):
        yield name, (entry.step if name == "step" else entry.memory_of(name)).detach(), None
    if entry.param in copies.of:
        copy = local(copies.of[entry.param]).detach()
        flat = copy.stride() == torch.empty_like(copy, device="meta").stride()
        yield "copy", copy, None if flat else torch.empty_like(copy)


def _address(kept: Tensor, device: torch.device) -> int:
    """Return where kernels on the device find memory of it or of the host."""
    if kept.device == device or device.type == "cpu":
        return kept.data_ptr()
    begin = kept.untyped_storage().data_ptr()
    with torch.cuda.device(device):
        address = device_address(begin)
    if address is None:
        raise RuntimeError(
            "backup on the host: expected pinned memory that kernels can reach, got a driver that maps none; choose "
            'where="device"'
        )
    return address + kept.data_ptr() - begin
