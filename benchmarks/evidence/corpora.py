"""Real data that is on every machine with Python: the standard library, pydoc's topics, scikit-learn's digits."""

from __future__ import annotations

import functools
import importlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.example import DEFAULT_CAP, HELD_OUT

NEEDS_SKLEARN = "this task needs scikit-learn, which has the digits: pip install scikit-learn, or pip install .[bench]"
DIGITS_TEST = 497  # of 1,797 images; 1,300 are left to train on


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits (UCI "Optical Recognition of Handwritten Digits"), divided once and for all.

    Attributes:
        train_images, test_images: float32 (n, 64), 8x8 pixels, each divided by 16, then centred at 0.
        train_labels, test_labels: int64 (n,), 0 to 9.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@functools.cache
def digits() -> Digits:
    """The same division for every seed, with as many of each class in both parts.

    Raises:
        RuntimeError: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
        selection = importlib.import_module("sklearn.model_selection")
    except ImportError:
        raise RuntimeError(NEEDS_SKLEARN) from None
    images, labels = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(images, labels, test_size=DIGITS_TEST, random_state=0, stratify=labels)
    train, test = (torch.tensor(part, dtype=torch.float32) / 8 - 1 for part in parts[:2])
    return Digits(train, torch.tensor(parts[2]).long(), test, torch.tensor(parts[3]).long())


@dataclass(frozen=True)
class Text:
    """Bytes to train on and bytes held out, uint8 (n,)."""

    train: Tensor
    held_out: Tensor


@functools.cache
def stdlib() -> Text:
    """Python's standard library without its tests, as in `examples/data.py`, and without pydoc's topics.

    Those are left out so that a model trained on this has not seen what it is then fine-tuned on.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    without = {"site-packages", "test", "tests", "pydoc_data"}
    files = [path for path in sorted(root.rglob("*.py")) if not without & {*path.relative_to(root).parts}]
    random.Random(0).shuffle(files)  # so that the held-out tail is a sample, not the end of the alphabet
    parts = (path.read_bytes() for path in files)
    return _divided(b"".join(part for part in parts if b"\0" not in part)[:DEFAULT_CAP])


@functools.cache
def topics() -> Text:
    """The language reference as `help()` prints it: half a megabyte of English about Python.

    Raises:
        RuntimeError: a Python without pydoc's topics, as some Linux distributions package it.
    """
    try:
        found = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise RuntimeError(
            "this task needs pydoc_data.topics of the standard library: use CPython as released"
        ) from None
    names = sorted(found)
    random.Random(0).shuffle(names)
    return _divided("\n\n".join(found[name] for name in names).encode())


def _divided(text: bytes) -> Text:
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    tail = round(len(text) * HELD_OUT)
    return Text(data[:-tail], data[-tail:])
