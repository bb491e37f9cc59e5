"""What GreedyLR adds to an optimizer step: decided on the device by ours, on the host beside torch's fused AdamW."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import harness, options, report
from benchmarks.cases import peers
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.shapes import Shapes, shapes
from benchmarks.cases.unfused import ADAMW, LR, SCHEDULE
from benchmarks.cases.workload import MOMENTS, Workload
from benchmarks.harness import OnRound, Sample, Step
from benchmarks.host import syncs
from benchmarks.options import Asked
from benchmarks.report import Report
from greedylr_fused import FusedAdamW, GreedyLR, available_backends

#: Few and small: whatever is added is seen whole. And the shapes of a real model: its share of a step.
TEN = Shapes("10x64", "ten tensors of 64 elements", ((64,),) * 10)
CASES = {TEN.name: lambda: TEN, "gpt2-124m": lambda: shapes("gpt2-124m")}
SCHEDULES: dict[str, GreedyLR | None] = {
    "no schedule": None,
    "GreedyLR": replace(SCHEDULE, smooth=False),
    "GreedyLR smooth": SCHEDULE,
}


def contenders(work: Workload) -> dict[str, dict[str, Step]]:
    """Steps by family and schedule; in each family the first is without."""
    found: dict[str, dict[str, Step]] = {}
    for backend, reason in available_backends(work.device).items():
        if reason is None and backend != "reference":
            found[f"ours-{backend}"] = {name: _ours(work, backend, schedule) for name, schedule in SCHEDULES.items()}
    found["torch-fused"] = {
        "no schedule": peers.build(peers.Contender.parse("torch-fused"), work).step,
        "GreedyLR smooth": peers.build(peers.Contender.parse("torch-fused+greedy"), work).step,
    }
    return found


def _ours(work: Workload, backend: str, schedule: GreedyLR | None) -> Step:
    optimizer = FusedAdamW(work.params, lr=LR, **ADAMW, schedule=schedule, backend=backend)
    for param, moments in zip(work.params, work.states, strict=True):
        optimizer.state[param] = {"step": torch.ones((), device=work.device), **{n: moments[n] for n in MOMENTS[:2]}}
    loss = work.loss
    step = optimizer.step if schedule is None else (lambda: optimizer.step(loss=loss))
    step()
    return step


def measure(name: str, asked: Asked, found: Report, on_round: OnRound | None = None) -> None:
    """Time all families with and without schedule in the same rounds, and add a record for each."""
    which, device = CASES[name](), asked.device
    work = Workload(which, MIXES["fp32"], device)
    families = contenders(work)
    flat = {f"{family}/{name}": step for family, steps in families.items() for name, step in steps.items()}
    clock = harness.clock_for(device)
    times = harness.compare(flat, clock, seconds=asked.seconds, rounds=(6, 2000), warmup=3, on_round=on_round)
    for family, steps in families.items():
        without = times[f"{family}/no schedule"]
        for name, step in steps.items():
            samples = times[f"{family}/{name}"]
            found.add(
                shapes=which.name,
                parameters=which.elements,
                family=family,
                schedule=name,
                **_added(without, samples),
                host_us=report.spread([sample.host for sample in samples], 1e6),
                host_syncs_per_step=syncs.per_step(step, device),
            )


def _added(without: Sequence[Sample], samples: Sequence[Sample]) -> dict[str, Any]:
    """Time of the step, and how much more than without, from the same rounds; on a GPU also of the device alone."""
    found: dict[str, Any] = {}
    for key, read in (("", lambda sample: sample.step), ("device_", lambda sample: sample.device)):
        pairs = [(read(a), read(b)) for a, b in zip(without, samples, strict=True)]
        known = all(a is not None and b is not None for a, b in pairs)
        found |= {f"{key}us": None, f"{key}added_us": None, f"{key}added_percent": None}
        if known:
            found[f"{key}us"] = report.spread([b for _, b in pairs], 1e6)
        if known and samples is not without:
            found[f"{key}added_us"] = report.spread([b - a for a, b in pairs], 1e6)
            found[f"{key}added_percent"] = report.spread([(b - a) / a for a, b in pairs], 100)
    return found


def run(names: Sequence[str], asked: Asked) -> Report:
    """All of these cases."""
    found = Report("control_cost", asked.device, asked.config)
    return options.measure(found, {name: functools.partial(measure, name, asked, found) for name in names}, asked)


def print_report(found: Report) -> None:
    """One table of all records."""
    columns = ["shapes", "family", "schedule", "us", "added us", "(p20 to p80)", "added %", "host us", "syncs/step"]
    rows = []
    for record in found.records:
        key = "device_" if record["device_us"] else ""
        us, added, percent = (record[f"{key}{name}"] for name in ("us", "added_us", "added_percent"))
        rows.append(
            [
                record["shapes"],
                record["family"],
                record["schedule"],
                report.number(us["median"]),
                _signed(added["median"]) if added else "-",
                f"({_signed(added['p20'])} to {_signed(added['p80'])})" if added else "-",
                _signed(percent["median"]) if percent else "-",
                report.number(record["host_us"]["median"]),
                report.number(record["host_syncs_per_step"]),
            ]
        )
    report.print_table("what GreedyLR adds to a step", columns, rows)


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "host.control_cost",
        "control_cost.json",
        f"{__doc__}\n\nEach family is timed with and without schedule in the same rounds; what is added is the median "
        "of the\ndifferences within a round. On a GPU the table shows device time.",
        seconds=8.0,
    )
    parser.add_argument("--shapes", metavar="A,B", help=f"only these of {', '.join(CASES)}")
    arguments = parser.parse_args(argv)
    names = options.chosen(arguments.shapes, list(CASES), list(CASES), "shapes")
    asked = Asked.of(arguments)
    options.finish(run(names, asked), asked, print_report)


if __name__ == "__main__":
    main()
