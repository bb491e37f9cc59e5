"""What a run reads, what it left in its folder, and whether two runs are the same."""

import json
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def write_text(folder):
    path = folder / "text.txt"
    path.write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(300)))
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else None


def lines(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def assert_same_bits(a, b, where="checkpoint"):
    sequences = (list, tuple)  # torch makes a list of `betas` when it loads a full state_dict
    assert type(a) is type(b) or (isinstance(a, sequences) and isinstance(b, sequences)), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, sequences):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{index}]")
    else:
        assert a == b or (a != a and b != b), where


def assert_same_run(ours, theirs):
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (ours, theirs))
    for checkpoint in (a, b):
        checkpoint["config"] |= {"steps": 0}
    assert_same_bits(a, b)
    order = lambda row: (row["run"], row["step"], len(row))  # noqa: E731
    assert sorted(lines(ours), key=order) == sorted(lines(theirs), key=order)
