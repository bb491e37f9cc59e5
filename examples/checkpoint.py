"""Checkpoints that are whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from config import Config
from engine import Ranks
from errors import UsageError, WriteError
from trainer import Trainer

NAME = "checkpoint.pt"
FORMAT = 2
KEYS = {"format", "config", "corpus", "random", "trainers"}


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file in one go: whoever reads it, at any time, finds the old or the new one, whole.

    Raises:
        WriteError: it cannot be written; the old one is as it was.
    """
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        if (cause := _of_the_system(error)) is None:
            raise
        before = "the one before stays" if path.exists() else "there was none before"
        raise WriteError(f"{path}: not written: {cause.strerror or cause}; {before}") from None
    finally:
        partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole. Only a process that was killed leaves it there."""
    return path.with_name(f".{path.name}.partial")


def _of_the_system(error: BaseException | None) -> OSError | None:
    """What the system said: `torch.save` may follow it up with a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def save(folder: Path, config: Config, corpus: str, trainers: Sequence[Trainer], ranks: Ranks) -> None:
    """Write the checkpoint of a run. Waits for the devices. Every rank takes part, rank 0 writes.

    Args:
        folder: the run's folder.
        config: the run's options.
        corpus: fingerprint of the text.
        trainers: one, or both of a comparison.
        ranks: the processes of the run.

    Raises:
        WriteError: it cannot be written; the one before is as it was.
    """
    content = {
        "format": FORMAT,
        "config": asdict(config),
        "corpus": corpus,
        "random": ranks.gathered(_random_state()),
        "trainers": {trainer.name: trainer.state_dict() for trainer in trainers},
    }
    ranks.first(lambda: write_atomically(folder / NAME, lambda file: torch.save(content, file)))


def load(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run, and only data from it: no code in the file is run.

    Raises:
        UsageError: none there, or not one that can be used.
    """
    path = folder / NAME
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else f"no {NAME} in it (stopped before the first one was saved?)"
        raise UsageError(f"--resume {folder}: {what}")
    try:
        with zipfile.ZipFile(path) as archive:  # what `torch.save` writes: with checksums, which `torch.load` ignores
            if part := archive.testzip():
                raise ValueError(f"wrong checksum of {part}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # one copy for all ranks
    except Exception as error:  # what reading damaged bytes raises depends on where the damage is
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise UsageError(f"{path}: damaged or not a checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS <= content.keys():
        raise UsageError(f"{path}: not a checkpoint of this program (format {FORMAT})")
    return content


def restore(content: dict[str, Any], path: Path, corpus: str, trainers: Sequence[Trainer], ranks: Ranks) -> None:
    """Put trainers and random generators where the checkpoint left them. It may be of another number of ranks; those it
    does not know keep the random generators they have.

    Raises:
        UsageError: the text or the shape of the model is another.
    """
    if content["corpus"] != corpus:
        raise UsageError(f"{path}: the text has changed since; resume with the same files, or start another run")
    try:
        for trainer in trainers:
            trainer.load_state_dict(content["trainers"][trainer.name])
        for state in content["random"][ranks.rank : ranks.rank + 1]:
            _set_random_state(state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: of another model or optimizer than its options say ({reason})") from None


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
