"""What the look at all tensors before a step costs: through PyTorch's C functions, through DLPack's, and in Python."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any
from unittest import mock

from benchmarks import harness, options, report
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload
from benchmarks.harness import OnRound, Step
from benchmarks.host import dtensors
from benchmarks.host.dtensors import ELEMENTS
from benchmarks.options import Asked
from benchmarks.report import Report
from greedylr_fused import FusedAdamW
from greedylr_fused.commands.bench import Spread
from greedylr_fused.tensors import watch

#: Numbers of tensors.
COUNTS = {"plain": [300, 10_000], "dtensor": [300]}
#: What is put in place of parts of `watch` for each way; the first is what an optimizer takes.
WAYS: dict[str, dict[str, Any]] = {"direct": {}, "dlpack": {"_direct": lambda: None}, "python": {"_native": None}}


def measure(kind: str, count: int, asked: Asked, found: Report, on_round: OnRound | None = None) -> None:
    """Add a record per way for so many tensors of a kind: the look alone, and the whole step on one thread."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(harness.one_thread())
        work = Workload(Shapes(f"{count}x{ELEMENTS}", "", ((ELEMENTS,),) * count), MIXES["fp32"], asked.device)
        if kind == "dtensor":
            dtensors.shard(work, stack.enter_context(dtensors.mesh(asked.device)))
        steps: dict[str, Step] = {}
        for way, replaced in WAYS.items():
            with contextlib.ExitStack() as other:
                for name, stand_in in replaced.items():
                    other.enter_context(mock.patch.object(watch, name, stand_in))
                optimizer = FusedAdamW(work.params)
                optimizer.step()
            steps[way] = optimizer.step
            steps[f"{way}, look alone"] = functools.partial(_look, optimizer)
        clock = harness.clock_for(asked.device, cold=False, device_time=False)
        limits = {"seconds": asked.seconds, "longest": 3 * asked.seconds, "rounds": (6, 1000)}
        times = harness.compare(steps, clock, **limits, warmup=1, on_round=on_round)
    for name in times:
        host, first = ([sample.host for sample in times[which]] for which in (name, _first(name)))
        record = {"kind": kind, "tensors": count, "way": name, "us": report.spread(host, 1e6)}
        found.add(**record, ratio=Spread.of_ratios(host, first).as_dict())


def _look(optimizer: FusedAdamW) -> None:
    engine = optimizer._engine
    with engine._subclass_overrides_off():
        engine.watch.look(optimizer.param_groups, optimizer.state)


def _first(name: str) -> str:
    """The same of the way that an optimizer takes."""
    return next(iter(WAYS)) + name.removeprefix(name.split(",")[0])


def run(counts: dict[str, list[int]], asked: Asked) -> Report:
    """All of these numbers of tensors, by kind."""
    found = Report("host_looks", asked.device, asked.config | {"cases": counts})
    if reason := watch.unavailable():
        raise SystemExit(f"expected the compiled look, got {reason}; build it first")
    return options.measure(found, dtensors.cases(measure, counts, asked, found), asked)


def print_report(found: Report) -> None:
    """A row per kind and way."""
    rows = [
        [
            f"{record['tensors']:,} {record['kind']}, {record['way']}",
            report.number(record["us"]["median"]),
            f"{record['ratio']['median']:.2f}x",
        ]
        for record in found.records
    ]
    report.print_table("host microseconds per step, median", ["", "us", "times direct"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser("host.looks", "host_looks.json", __doc__ or "", seconds=3.0)
    asked = Asked.of(parser.parse_args(argv))
    options.finish(run(COUNTS, asked), asked, print_report)


if __name__ == "__main__":
    main()
