"""A whole training step of a GPT: forward, backward, clip, optimizer, GreedyLR; fused beside what one writes today."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, options, report
from benchmarks.host import syncs
from benchmarks.throughput.gpt_steps import BASE, CONTENDERS, SIZES, GPTStep, NotHere, Size
from greedylr_fused.commands.bench import Spread

#: Steps per sample on a GPU, waited for at the end only: where nothing stalls it, the host runs ahead of the device.
IN_A_ROW = 4


def defaults(device: torch.device) -> list[str]:
    """Sizes that suit the device."""
    return ["tiny", "gpt-25m", "gpt-100m"] if device.type == "cuda" else ["tiny"]


def measure(
    size: Size,
    device: torch.device,
    seconds: float,
    found: report.Report,
    on_round: Callable[[float], object] | None = None,
) -> None:
    """Time every contender in the same rounds, and add a record for each."""
    steps: dict[str, GPTStep] = {}
    for name, make in CONTENDERS.items():
        try:
            steps[name] = make(size, device)
        except NotHere as reason:
            found.leave_out(f"{size.name} {name}", str(reason))
    in_a_row = IN_A_ROW if device.type == "cuda" else 1
    # Forward and backward leave the caches as a training run does: nothing is evicted.
    clock = (
        harness.CudaClock(device, cold=False, device_time=False)
        if device.type == "cuda"
        else harness.CpuClock(cold=False)
    )
    calls = {name: _repeated(step, in_a_row) for name, step in steps.items()}
    times = harness.compare(calls, clock, seconds=seconds, rounds=(6, 400), on_round=on_round)
    for name, step in steps.items():
        own, base = ([sample.step / in_a_row for sample in times[one]] for one in (name, BASE))
        found.add(
            model=size.name,
            parameters=sum(param.numel() for param in step.model.parameters()),
            tokens=size.batch * size.shape.context,
            contender=name,
            ms=Spread.of(own).scaled(1e3).as_dict(),
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


def run(
    names: Sequence[str],
    device: torch.device,
    seconds: float,
    config: dict[str, Any],
    out: Path | None = None,
    until: float = math.inf,
) -> report.Report:
    """All sizes, with a progress bar; `seconds` per size; written to `out` after each; none is begun after
    `until`, as of `time.monotonic()`.
    """
    found = report.Report("train_step", device, config)
    with report.Progress(found.benchmark, len(names)) as progress:
        for name in names:
            progress.case(name)
            if time.monotonic() > until:
                found.leave_out(name, report.OVER)
            else:
                measure(SIZES[name], device, seconds, found, progress.part)
            progress.end_case()
            if out is not None:
                found.write(out)
    return found


def print_report(records: list[report.Record], title: str = "a whole training step") -> None:
    """One table of all records."""
    columns = ["model", "step", "ms", "(p20-p80)", "x unfused", "optimizer ms", "share", "syncs/step"]
    rows, last = [], ""
    for record in records:
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
    report.print_table(title, columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput.train_step",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\n"
        "fused    FusedAdamW(max_grad_norm=1, schedule=GreedyLR(...)).step(loss=loss)\n"
        "unfused  clip_grad_norm_, torch.optim.AdamW(fused=True), GreedyLR on the host, which reads the loss\n"
        "graph    forward, backward and update in one CUDA graph; of the unfused step all but GreedyLR",
    )
    options.add_common(parser, "train_step")
    parser.add_argument("--sizes", metavar="A,B", help=f"of {', '.join(SIZES)}; default: tiny on a CPU, all on a GPU")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="per size, besides setting up (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    device, config = options.common(chosen)
    names = options.chosen(chosen.sizes, list(SIZES), defaults(device), "sizes")
    found = run(names, device, chosen.seconds, config, chosen.out)
    print_report(found.records)
    options.print_left_out(found)
    options.report_paths(found.write(chosen.out))


if __name__ == "__main__":
    main()
