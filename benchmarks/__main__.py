"""`make bench`: all benchmarks one after another in the preset of this machine, pictures, and one table at the end."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import options, plots, report
from benchmarks.host import overhead
from benchmarks.report import Record, Report
from benchmarks.throughput import optimizer_step
from benchmarks.throughput.presets import PRESETS

Line = tuple[str, str, str, str]


def throughput(device: torch.device, config: dict[str, Any], out: Path, share: float, until: float) -> Report:
    """Optimizer steps, in the preset for the device."""
    preset = PRESETS["gpu" if device.type == "cuda" else "quick"]
    return optimizer_step.run(preset.cases, preset.contenders, device, preset.seconds * share, config, out, until)


def host(device: torch.device, config: dict[str, Any], out: Path, share: float, until: float) -> Report:
    """Host time."""
    return overhead.run(overhead.COUNTS, device, 2.0 * share, config, out, until)


def control(device: torch.device, config: dict[str, Any], out: Path, share: float, until: float) -> Report:
    """What GreedyLR adds."""
    module = importlib.import_module("benchmarks.host.control_cost")
    return module.run(list(module.CASES), device, 5.0 * share, config, out, until)  # type: ignore[no-any-return]


def training(device: torch.device, config: dict[str, Any], out: Path, share: float, until: float) -> Report:
    """Whole training steps."""
    module = importlib.import_module("benchmarks.throughput.train_step")
    return module.run(module.defaults(device), device, 10.0 * share, config, out, until)  # type: ignore[no-any-return]


#: Of the minutes that all may take, the part in which each begins its last case.
LATEST = {"step_throughput": 0.55, "host_overhead": 0.7, "control_cost": 0.85, "train_step": 0.95}
BENCHMARKS: dict[str, Callable[[torch.device, dict[str, Any], Path, float, float], Report]] = {
    "step_throughput": throughput,
    "host_overhead": host,
    "control_cost": control,
    "train_step": training,
}


def summary(name: str, records: Sequence[Record]) -> list[Line]:
    """Rows of the final table: what, ours, the other, ratio. Only where ours stands beside another."""
    if name == "step_throughput":
        return [_of_step(record, records) for record in records if _beside(record)]
    if name == "host_overhead":
        return [_of_host(record, records) for record in records if _beside(record)]
    if name == "control_cost":
        return [_of_control(record) for record in records if record["added_us"]]
    return [
        (
            f"training step, {record['model']}, {record['contender']}",
            _value(record["ms"], "ms"),
            _value(other["ms"], "ms"),
            f"{record['speedup']['median']:.2f}x",
        )
        for record in records
        for other in records
        if (record["model"], "unfused") == (other["model"], other["contender"]) and record is not other
    ]


def _beside(record: Record) -> bool:
    return record["contender"].startswith("ours-") and bool(record.get("ratio"))


def _value(spread: dict[str, float], unit: str) -> str:
    return f"{report.number(spread['median'])} {unit}"


def _of_step(record: Record, records: Sequence[Record]) -> Line:
    key = "device_ms" if record["device_ms"] else "ms"
    ratio = record["ratio_device"] or record["ratio"]
    share = record["share_of_roofline"]
    case = ("shapes", "mix")
    base = next(r for r in records if r["contender"] == record["base"] and all(r[k] == record[k] for k in case))
    what = f"step, {record['shapes']} {record['mix']}, {record['contender']}"
    own = _value(record[key], "ms") + (f" ({100 * share['median']:.0f} % of roofline)" if share else "")
    return what, own, _value(base[key], "ms"), f"{ratio['median']:.2f}x"


def _of_host(record: Record, records: Sequence[Record]) -> Line:
    case = ("kind", "tensors")
    base = next(r for r in records if r["contender"] == record["base"] and all(r[k] == record[k] for k in case))
    what = f"host, {record['tensors']:,} {record['kind']} tensors, {record['contender']}"
    own, other = (_value(r["us_per_step"], "us") for r in (record, base))
    return what, own, other, f"{record['ratio']['median']:.2f}x"


def _of_control(record: Record) -> Line:
    what = f"{record['schedule']}, {record['family']}, {record['shapes']}"
    added = f"{record['added_us']['median']:+.1f} us, {record['host_syncs_per_step']:g} host syncs"
    return what, added, _value(record["us"], "us in all"), f"{record['added_percent']['median']:+.2f} %"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run every benchmark in the preset for this machine: on 2 cores in under 10 minutes and 8 GB.\n"
        "Writes a JSON file each and PNGs, and prints one table. Protocol and columns: benchmarks/README.md.",
        epilog="One at a time, with more options: python -m benchmarks.NAME --help, NAME one of\n"
        "throughput.optimizer_step, throughput.train_step, throughput.roofline, host.overhead, host.control_cost, "
        "host.ranks, plots.",
    )
    options.add_common(parser, "each benchmark's JSON")
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="X times less time per case (default: 1)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.5,
        help="on a machine with other work cases are left out so as not to take longer (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    device, config = options.common(arguments)
    names = options.chosen(arguments.only, list(BENCHMARKS), list(BENCHMARKS), "only")
    begin, lines, written = time.perf_counter(), [], []
    for name in names:
        until = time.monotonic() + 60 * arguments.minutes * LATEST[name] - (time.perf_counter() - begin)
        found = BENCHMARKS[name](device, config, arguments.out, 1 / arguments.speed, until)
        written.append(found.write(arguments.out))
        lines += summary(name, found.records)
        options.print_left_out(found)
    written += plots.draw(arguments.out)
    title = f"{report.load(written[0])['environment']['device']}, {(time.perf_counter() - begin) / 60:.1f} minutes"
    columns = ["median", "ours", "torch fused, or unfused", "ratio"]
    report.print_table(title, columns, [list(line) for line in lines])
    options.report_paths(*written)


if __name__ == "__main__":
    main()
