"""A whole training step of a GPT: forward, backward, clip, optimizer, GreedyLR; fused beside what one writes today."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import harness, options, report
from benchmarks.harness import NotOffered, OnRound
from benchmarks.host import syncs
from benchmarks.options import Asked
from benchmarks.report import Report
from benchmarks.throughput.gpt_steps import BASE, CONTENDERS, SIZES, GPTStep
from greedylr_fused.commands.bench import Spread

#: Steps per sample on a GPU, waited for at the end only: where nothing stalls it, the host runs ahead of the device.
IN_A_ROW = 4


def defaults(device: torch.device) -> list[str]:
    """Sizes that suit the device."""
    return ["tiny", "gpt-25m", "gpt-100m"] if device.type == "cuda" else ["tiny"]


def measure(name: str, asked: Asked, found: Report, on_round: OnRound | None = None) -> None:
    """Time every contender in the same rounds, and add a record for each."""
    size, device = SIZES[name], asked.device
    steps: dict[str, GPTStep] = {}
    for contender, make in CONTENDERS.items():
        try:
            steps[contender] = make(size, device)
        except NotOffered as reason:
            found.leave_out(f"{size.name} {contender}", str(reason))
    in_a_row = IN_A_ROW if device.type == "cuda" else 1
    # Forward and backward leave the caches as a training run does: nothing is evicted.
    clock = harness.clock_for(device, cold=False, device_time=False)
    calls = {contender: _repeated(step, in_a_row) for contender, step in steps.items()}
    times = harness.compare(calls, clock, seconds=asked.seconds, rounds=(6, 400), on_round=on_round)
    for contender, step in steps.items():
        own, base = ([sample.step / in_a_row for sample in times[one]] for one in (contender, BASE))
        found.add(
            model=size.name,
            parameters=sum(param.numel() for param in step.model.parameters()),
            tokens=size.batch * size.shape.context,
            contender=contender,
            ms=report.spread(own, 1e3),
            speedup=Spread.of_ratios(base, own).as_dict(),
            **_optimizer(step, own, in_a_row),
            host_syncs_per_step=syncs.per_step(step, device),
        )


def _repeated(step: GPTStep, times: int) -> harness.Step:
    def calls() -> None:
        for _ in range(times):
            step()

    return calls


def _optimizer(step: GPTStep, seconds: Sequence[float], in_a_row: int, samples: int = 5) -> dict[str, Any]:
    """The optimizer's time and share, from steps of their own; of a graph it cannot be told apart."""
    step.spans = []
    for _ in range(samples * in_a_row):
        step()
    spans = step.milliseconds()
    if not spans:
        return {"optimizer_ms": None, "optimizer_percent": None}
    found = Spread.of(spans)
    return {
        "optimizer_ms": found.as_dict(),
        "optimizer_percent": 100 * found.median / (1e3 * Spread.of(seconds).median),
    }


def run(names: Sequence[str], asked: Asked) -> Report:
    """All of these sizes."""
    found = Report("train_step", asked.device, asked.config)
    return options.measure(found, {name: functools.partial(measure, name, asked, found) for name in names}, asked)


def print_report(found: Report) -> None:
    """One table of all records."""
    columns = ["model", "step", "ms", "(p20-p80)", "x unfused", "optimizer ms", "share", "syncs/step"]
    rows, last = [], ""
    for record in found.records:
        model = f"{record['model']}, {record['parameters'] / 1e6:.1f}M"
        ms, optimizer, share = record["ms"], record["optimizer_ms"], record["optimizer_percent"]
        rows.append(
            [
                "" if model == last else model,
                record["contender"],
                report.number(ms["median"]),
                f"({report.number(ms['p20'])}-{report.number(ms['p80'])})",
                f"{record['speedup']['median']:.2f}",
                report.number(optimizer["median"]) if optimizer else "-",
                "-" if share is None else f"{share:.1f} %",
                report.number(record["host_syncs_per_step"]),
            ]
        )
        last = model
    report.print_table("a whole training step", columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "throughput.train_step",
        "train_step.json",
        f"{__doc__}\n\n"
        "fused    FusedAdamW(max_grad_norm=1, schedule=GreedyLR(...)).step(loss=loss)\n"
        "unfused  clip_grad_norm_, torch.optim.AdamW(fused=True), GreedyLR on the host, which reads the loss\n"
        "graph    forward, backward and update in one CUDA graph; of the unfused step all but GreedyLR",
        seconds=8.0,
    )
    parser.add_argument("--sizes", metavar="A,B", help=f"of {', '.join(SIZES)}; default: tiny on a CPU, all on a GPU")
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    names = options.chosen(arguments.sizes, list(SIZES), defaults(asked.device), "sizes")
    options.finish(run(names, asked), asked, print_report)


if __name__ == "__main__":
    main()
