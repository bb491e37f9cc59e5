"""`make bench`: all benchmarks one after another in the preset of this machine, pictures, and one table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks import options, plots, report
from benchmarks.host import control_cost, overhead
from benchmarks.options import Asked
from benchmarks.report import Record, Report
from benchmarks.throughput import optimizer_step, train_step
from benchmarks.throughput.presets import PRESETS

#: Of the final table: what, ours, the other, ratio.
Line = tuple[str, str, str, str]


@dataclass(frozen=True)
class Benchmark:
    """One of those that run here, by the name of its file.

    Attributes:
        run: measures in the preset for the device, for so many times its usual seconds as are asked for.
        latest: of the minutes that all may take, the part in which it begins its last case.
        lines: rows of the final table, from its records.
    """

    run: Callable[[Asked], Report]
    latest: float
    lines: Callable[[Sequence[Record]], list[Line]]


def _steps(asked: Asked) -> Report:
    preset = PRESETS["gpu" if asked.device.type == "cuda" else "quick"]
    return optimizer_step.run(preset.cases, preset.contenders, _times(asked, preset.seconds))


def _times(asked: Asked, seconds: float) -> Asked:
    return replace(asked, seconds=asked.seconds * seconds)


def _of_training(records: Sequence[Record]) -> list[Line]:
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


BENCHMARKS = {
    "step_throughput": Benchmark(
        _steps, 0.55, lambda records: [_of_step(record, records) for record in records if _beside(record)]
    ),
    "host_overhead": Benchmark(
        lambda asked: overhead.run(overhead.COUNTS, _times(asked, 2.0)),
        0.7,
        lambda records: [_of_host(record, records) for record in records if _beside(record)],
    ),
    "control_cost": Benchmark(
        lambda asked: control_cost.run(list(control_cost.CASES), _times(asked, 5.0)),
        0.85,
        lambda records: [_of_control(record) for record in records if record["added_us"]],
    ),
    "train_step": Benchmark(
        lambda asked: train_step.run(train_step.defaults(asked.device), _times(asked, 10.0)), 0.95, _of_training
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "",
        "each benchmark's JSON",
        "Run every benchmark in the preset for this machine: on 2 cores in under 10 minutes and 8 GB.\n"
        "Writes a JSON file each and PNGs, and prints one table. Protocol and columns: benchmarks/README.md.",
        epilog="One at a time, with more options: python -m benchmarks.NAME --help, NAME one of\n"
        "throughput.optimizer_step, throughput.train_step, throughput.roofline, host.overhead, host.control_cost, "
        "host.ranks, plots.",
    )
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="X times less time per case (default: 1)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.5,
        help="on a machine with other work cases are left out so as not to take longer (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    asked = replace(Asked.of(arguments), seconds=1 / arguments.speed)
    names = options.chosen(arguments.only, list(BENCHMARKS), list(BENCHMARKS), "only")
    begin, lines, written = time.monotonic(), [], []
    for name in names:
        until = begin + 60 * arguments.minutes * BENCHMARKS[name].latest
        found = BENCHMARKS[name].run(replace(asked, until=until))
        written.append(found.write(arguments.out))
        lines += BENCHMARKS[name].lines(found.records)
        options.print_left_out(found)
    written += plots.draw(arguments.out)
    title = f"{report.load(written[0])['environment']['device']}, {(time.monotonic() - begin) / 60:.1f} minutes"
    report.print_table(title, ["median", "ours", "torch fused, or unfused", "ratio"], [list(line) for line in lines])
    for path in written:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
