"""Text as bytes: the corpus, its held-out tail, and random windows of it that can be resumed."""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from errors import UsageError

DEFAULT_CAP = 20_000_000  # bytes of the default corpus; one's own data is taken whole
HELD_OUT = 0.05
Share = Callable[[Tensor], Tensor]  # the windows of a batch that are this rank's


@dataclass(frozen=True)
class Corpus:
    """Training and held-out bytes, uint8 (n,), and what identifies them."""

    train: Tensor
    held_out: Tensor
    fingerprint: str


def load_corpus(source: Path | None, context: int) -> Corpus:
    """Read every text file in a fixed shuffled order and hold out the last 5% of the bytes.

    Args:
        source: a file or a folder; None for the Python standard library, without its tests, up to 20 MB.
        context: bytes per window; each part needs one more than that.

    Raises:
        UsageError: nothing there, not readable, or too short.
    """
    root = source or Path(sysconfig.get_paths()["stdlib"])
    if not root.exists():
        raise UsageError(f"--data {source}: no such file or folder")
    without = {"site-packages", "test", "tests"} if source is None else set()
    found = [root] if root.is_file() else sorted(root.rglob("*.py" if source is None else "*"))
    files = [path for path in found if path.is_file() and not without & {*path.relative_to(root).parts}]
    random.Random(0).shuffle(files)  # so that the held-out tail is a sample, not the end of the alphabet
    text, skipped = _read(files, DEFAULT_CAP if source is None else None)
    tail = round(len(text) * HELD_OUT)
    if tail < context + 1:
        needed = round((context + 1) / HELD_OUT)
        why = f" ({skipped} files with zero bytes in them were skipped as not text)" if skipped else ""
        raise UsageError(
            f"corpus {root}: expected at least {needed:,} bytes of text, got {len(text):,}{why}; name a larger one"
        )
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return Corpus(data[:-tail], data[-tail:], hashlib.sha256(text).hexdigest())


def _read(files: list[Path], cap: int | None) -> tuple[bytes, int]:
    parts, size, skipped = [], 0, 0
    for path in files:
        try:
            part = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        if b"\0" in part:  # a zero byte: not text
            skipped += 1
            continue
        parts.append(part)
        size += len(part)
        if cap is not None and size >= cap:
            break
    return b"".join(parts)[:cap], skipped


class Batches:
    """Random windows of the training bytes.

    Args:
        data: uint8 (n,).
        batch, context: windows per batch, bytes per window.
        seed: same seed, same windows.
        device: where the batches go.
        share: what to take of a batch. All ranks draw the same one, so that they stay at one position.
    """

    def __init__(self, data: Tensor, batch: int, context: int, seed: int, device: torch.device, share: Share) -> None:
        self._data, self._batch, self._context, self._device, self._share = data, batch, context, device, share
        self._generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Tokens and targets of this rank, int64 (batch / ranks, context)."""
        last = self._data.numel() - self._context
        starts = torch.randint(last, (self._batch,), generator=self._generator)
        return _windows(self._data, self._share(starts), self._context, self._device)

    def position(self) -> Tensor:
        """Where the sequence of windows stands, for a checkpoint."""
        return self._generator.get_state()

    def seek(self, position: Tensor) -> None:
        """Go on from a position."""
        self._generator.set_state(position)


def held_out_batches(
    data: Tensor, batch: int, context: int, limit: int, device: torch.device, share: Share
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """At most `limit` windows, evenly spaced over the held-out bytes, always the same: tokens, targets, and how many of
    their bytes count. Every rank gets as many batches, since under FSDP all run the model together; one for which no
    window is left gets one that does not count.
    """
    count = min(limit, (data.numel() - 1) // context)
    starts = torch.linspace(0, data.numel() - context - 1, count, dtype=torch.float64).long()
    for part in starts.split(batch):
        own = share(part)
        tokens, targets = _windows(data, own if len(own) else part[:1], context, device)
        yield tokens, targets, len(own) * context


def _windows(data: Tensor, starts: Tensor, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    window = data[starts[:, None] + torch.arange(context + 1)].long()
    if device.type == "cuda":
        window = window.pin_memory().to(device, non_blocking=True)
    return window[:, :-1], window[:, 1:]
