"""`python -m greedylr_fused bench`: a minute of step times on this machine, FusedAdamW beside torch's AdamW.

Steps follow each other with nothing between them, which leaves to each the caches as the one before left them; a
training step takes longer, and the optimizer is one part of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from greedylr_fused.backends import NAMES, resolve
from greedylr_fused.commands import doctor, fail
from greedylr_fused.commands.bench import timing as bench_timing
from greedylr_fused.commands.bench.cases import CLIP, FUSED, MOST, OURS, STEP, cases, that_fit
from greedylr_fused.commands.bench.timing import Result
from greedylr_fused.version import __version__

_COLUMNS = ("work", "optimizer", "ms", "20-80 %", "GB/s", "speed")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table for every case, say where FusedAdamW is slower, and write JSON if asked to."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        device, threads = _device(given.device), given.threads or torch.get_num_threads()
        backend = resolve(given.backend, device).backend.name
        if (given.elements or 0) > (most := that_fit(device)):
            raise ValueError(
                f"--elements: expected up to {most:,}, as memory here holds no more, got {given.elements:,}; choose "
                "fewer"
            )
        if given.json is not None:
            given.json.write_text("")  # refused now rather than after a minute
        about = _about(device, threads, backend)
    except (OSError, RuntimeError, ValueError) as error:
        fail(parser, error)
    busy = _busy()
    print("; ".join(f"{name} {text}" for name, text in about.items()), *busy, sep="\n", flush=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, complete = _measured(device, given.seconds, threads, backend, given.elements)
    finally:
        torch.set_num_threads(before)
    if given.json is not None:
        rows = [_record(result) for result in found]
        content = {"environment": about, "complete": complete, "seconds": given.seconds, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    _print_tables(found)
    print("\n".join([*_verdict(found), *busy]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m greedylr_fused bench", description=__doc__)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: cuda where there is one")
    parser.add_argument(
        "--seconds",
        type=_positive(float),
        default=55.0,
        metavar="S",
        help="to aim at for everything, beyond two rounds; default: %(default)g",
    )
    parser.add_argument(
        "--threads", type=_positive(int), metavar="N", help="of torch on a CPU; default: its own number"
    )
    parser.add_argument(
        "--elements",
        type=_positive(int),
        metavar="N",
        help="parameters in the largest cases; default: what time and memory allow, up to "
        + ", ".join(f"{most:,} on {kind}" for kind, most in MOST.items()),
    )
    parser.add_argument("--backend", choices=NAMES, default="auto", help="of FusedAdamW; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE as well")
    return parser


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def positive(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
        return number

    return positive


def _device(name: str | None) -> torch.device:
    """Return the device that is asked for, or the best at hand.

    Raises:
        ValueError: that device cannot be measured here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in allowed:
        raise ValueError(f"--device: expected {' or '.join(allowed)}, got {name!r}; doctor tells what was found")
    return torch.device(name)


def _about(device: torch.device, threads: int, backend: str) -> dict[str, str]:
    """Return what the numbers depend on besides the code, by name."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else doctor.findings()["CPU"]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # of other programs
    return {
        "greedylr_fused": f"{__version__} (backend {backend})",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "on": f"{machine}, {threads} threads{load}",
    }


def _busy() -> list[str]:
    """Return a line of warning if other programs keep the machine busy, otherwise none."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load <= cores:
        return []
    return [f"other programs keep this machine busy (load {load:.1f} on {cores} cores): these numbers are not its own"]


def _measured(
    device: torch.device, seconds: float, threads: int, backend: str, elements: int | None
) -> tuple[list[Result], bool]:
    """Return the results of all cases, or after Ctrl-C of those complete, and whether all are there."""
    found: list[Result] = []
    end = time.perf_counter() + seconds
    try:
        chosen = cases(elements or bench_timing.affordable(device, seconds / len(cases(1)), threads))
        for index, case in enumerate(chosen):
            print(f"measuring {index + 1} of {len(chosen)}: {case.name}", file=sys.stderr, flush=True)
            left = max(0.0, end - time.perf_counter()) / (len(chosen) - index)
            found += bench_timing.measure(case, device, left, threads, backend)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the next case has tensors of other sizes
    except KeyboardInterrupt:
        print("interrupted; what follows is what was measured before", file=sys.stderr)
        return found, False
    return found, True


def _record(result: Result) -> dict[str, Any]:
    """Return a row of the JSON file, with times in milliseconds."""
    ms = None if result.seconds is None else result.seconds.scaled(1e3).as_dict()
    return {
        "case": result.case.name,
        "tensors": len(result.case.sizes),
        "elements": result.case.elements,
        "dtype": str(result.case.dtype).removeprefix("torch."),
        "work": result.work,
        "optimizer": result.contender,
        "ms": ms,
        "bytes_per_parameter": result.case.bytes_moved(result.work),
        "gb_per_s": result.gb_per_s,
        "speed": {f"over {other}": spread.as_dict() for other, spread in result.speed.items()},
        "why_not": result.why or None,
    }


def _print_tables(found: Sequence[Result]) -> None:
    """Print a table for each case."""
    for case in dict.fromkeys(result.case for result in found):
        moved = f"{case.bytes_moved(STEP)} bytes each, {case.bytes_moved(CLIP)} with clipping"
        print(f"\n{case.name}: {case.elements:,} parameters of {moved}")
        _print_table([_cells(result) for result in found if result.case == case])
    print("20-80 %: percentiles over rounds. GB/s: those bytes over the median.")
    print("speed: time of torch's fused AdamW over it, in the same round; above 1 is faster.")


def _cells(result: Result) -> tuple[str, ...]:
    if result.seconds is None:
        return (result.work, result.contender, "-", "-", "-", "-")
    ms = result.seconds.scaled(1e3)
    ratio = result.speed.get(FUSED)
    return (
        result.work,
        result.contender,
        _number(ms.median),
        f"{_number(ms.p20)}-{_number(ms.p80)}",
        _number(result.gb_per_s or 0.0),
        f"{ratio.median:.2f}" if ratio else "-",
    )


def _number(value: float) -> str:
    """Return a number as text with three significant digits and no exponent."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table, by rich if installed, otherwise in plain columns; the first two columns are text."""
    try:
        box, console, table = (importlib.import_module(f"rich.{name}") for name in ("box", "console", "table"))
    except ImportError:
        lines = [_COLUMNS, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            print("  " + "  ".join(cells))
        return
    drawn = table.Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(_COLUMNS):
        drawn.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row, style="bold" if row[1] == OURS else None)
    console.Console(width=None if sys.stdout.isatty() else 120).print(drawn)


def _verdict(found: Sequence[Result]) -> list[str]:
    """Return lines that say how often FusedAdamW is faster, where it is slower, and where no difference shows."""
    compared = [
        (spread, f"{result.case.name}, {result.work}: {spread.median:.2f} times the speed of {other}")
        for result in found
        if result.contender == OURS
        for other, spread in result.speed.items()
    ]
    slower = [text for spread, text in compared if spread.p80 < 1]
    even = [text for spread, text in compared if spread.p20 <= 1 <= spread.p80]
    lines = [f"FusedAdamW is faster in {len(compared) - len(slower) - len(even)} of {len(compared)} comparisons"]
    lines += [f"  slower: {text}" for text in slower] + [f"  no difference beyond the spread: {text}" for text in even]
    return lines + [
        f"  could not run: {result.case.name}, {result.work}, {result.contender}: {result.why}"
        for result in found
        if result.why
    ]
