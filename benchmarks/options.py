"""What every benchmark is asked for, and how each begins and ends: options, cases in turn, table and file."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import OnRound
from benchmarks.report import OVER, Progress, Report


@dataclass(frozen=True)
class Asked:
    """What one run is asked for.

    Attributes:
        device: where.
        seconds: per case, besides setting up; infinite where a number of rounds decides.
        config: the options, for the result file.
        out: folder of that file; None: it is not written.
        until: after this `time.monotonic()` no case is begun.
    """

    device: torch.device
    seconds: float = math.inf
    config: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    until: float = math.inf

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Asked:
        """What the command line says.

        Raises:
            SystemExit: a device that PyTorch does not find, or a number that is not above 0.
        """
        given = vars(arguments)
        for name, value in given.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
                raise SystemExit(f"--{name}: expected a number above 0, got {value}")
        where = device(arguments.device)
        config = {name: value for name, value in given.items() if name not in ("out", "device")}
        return cls(where, given.get("seconds") or math.inf, config | {"device": str(where)}, arguments.out)


def parser(
    command: str, what: str, description: str, seconds: float | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """With `--out` and `--device`, and `--seconds` if there is a default for them.

    Args:
        command: the module, within `benchmarks`; empty for that itself.
        what: is written to the folder.
        description: above the options.
        seconds: per case.
        epilog: below the options.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{command}".rstrip("."),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=description,
        epilog=epilog,
    )
    made.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks"),
        metavar="DIR",
        help=f"folder for {what}, made if missing (default: %(default)s)",
    )
    made.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to measure: cpu, cuda, cuda:1 (default here: %(default)s)",
    )
    if seconds is not None:
        text = "per case, besides setting up (default: %(default)s)"
        made.add_argument("--seconds", type=float, default=seconds, help=text)
    return made


def device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        SystemExit: PyTorch does not find it, or it is none that is measured.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise SystemExit(f"--device: expected cpu, cuda, or cuda with a number, as in cuda:1, got {name}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count() or "no"
        raise SystemExit(
            f"--device: expected a device that torch {torch.__version__} finds, with {count} GPU, got {found}; "
            "use --device cpu"
        )
    return found


def names(given: str) -> list[str]:
    """The parts of a list with commas."""
    return [name.strip() for name in given.split(",") if name.strip()]


def chosen(given: str | None, allowed: list[str], default: list[str], what: str) -> list[str]:
    """A list of names with commas, or the default.

    Raises:
        SystemExit: an unknown name.
    """
    found = default if given is None else names(given)
    unknown = [name for name in found if name not in allowed]
    if unknown or not found:
        raise SystemExit(f"--{what}: expected {', '.join(allowed)}, got {', '.join(unknown) or 'nothing'}")
    return found


def measure(found: Report, cases: Mapping[str, Callable[[OnRound], object]], asked: Asked) -> Report:
    """All cases in turn, with a progress bar.

    The file is written after each, so that a run cut short leaves what it has. Each is given what it may tell its share
    of the work to, between 0 and 1.
    """
    with Progress(found.benchmark, len(cases)) as progress:
        for name, case in cases.items():
            progress.case(name)
            if time.monotonic() > asked.until:
                found.leave_out(name, OVER)
            else:
                case(progress.part)
            progress.end_case()
            if asked.out is not None:
                found.write(asked.out)
    return found


def finish(found: Report, asked: Asked, show: Callable[[Report], object]) -> None:
    """Show the table, what was asked for and not measured, and where the file is."""
    show(found)
    print_left_out(found)
    if asked.out is not None:
        print(f"wrote {found.write(asked.out)}")


def print_left_out(found: Report) -> None:
    """What was asked for and not measured, with the reason."""
    for entry in found.left_out:
        print(f"not measured: {entry['what']}: {entry['why']}")
