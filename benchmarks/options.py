"""Options that every benchmark has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import report


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """`--out` and `--device`."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks"),
        metavar="DIR",
        help=f"folder for {name}.json, made if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to measure: cpu, cuda, cuda:1 (default here: %(default)s)",
    )


def common(arguments: argparse.Namespace) -> tuple[torch.device, dict[str, Any]]:
    """The device, and the options as they go into the result file.

    Raises:
        SystemExit: a device that PyTorch does not find, or no time.
    """
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device: got {device}, and torch {torch.__version__} finds no GPU; use --device cpu")
    if getattr(arguments, "seconds", 1.0) <= 0.0:
        raise SystemExit(f"--seconds: got {arguments.seconds}, allowed are numbers above 0")
    config = {key: value for key, value in vars(arguments).items() if key not in ("out", "device")}
    return device, config | {"device": str(device)}


def chosen(given: str | None, allowed: list[str], default: list[str], what: str) -> list[str]:
    """A comma-separated list of names, or the default.

    Raises:
        SystemExit: an unknown name.
    """
    names = default if given is None else [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise SystemExit(f"--{what}: got {', '.join(unknown) or 'nothing'}, allowed are {', '.join(allowed)}")
    return names


def report_paths(*paths: Path) -> None:
    """Say where the results are."""
    for path in paths:
        print(f"wrote {path}")


def print_left_out(found: report.Report) -> None:
    """What was asked for and not measured."""
    for entry in found.left_out:
        print(f"not measured: {entry['what']}: {entry['why']}")
