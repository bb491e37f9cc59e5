"""An optimizer per parameter, stepped in backward() as each gradient arrives, beside one step after it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from benchmarks import harness, options, report
from benchmarks.cases.workload import peak_bytes
from benchmarks.example import GPT, SIZES, VOCABULARY
from benchmarks.harness import OnRound
from benchmarks.options import Asked
from benchmarks.report import Report
from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.commands.bench import Spread

BATCH, CONTEXT, LR = 1, 128, 1e-4
BASE = "one step after backward()"


class Step:
    """A whole training step of a GPT of its own: forward, backward, update.

    Args:
        name: one of the sizes of the training example.
        device: where.
        build: makes the optimizer of some parameters.
        inside: one for each parameter, which steps and frees its gradient in backward(); else one after it.
        schedule: of all of them.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        build: Callable[[list[Tensor]], Optimizer],
        *,
        inside: bool,
        schedule: GreedyLR | None = None,
    ) -> None:
        torch.manual_seed(0)
        context = min(CONTEXT, SIZES[name].shape.context)
        self.model: nn.Module = GPT(replace(SIZES[name].shape, context=context)).to(device)
        self._batch = torch.randint(VOCABULARY, (2, BATCH, context), device=device)
        params = list(self.model.parameters())
        parts = [[param] for param in params] if inside else [params]
        self._optimizers = [build(part) for part in parts]
        self._inside = inside
        if inside:
            for param, optimizer in zip(params, self._optimizers, strict=True):
                param.register_post_accumulate_grad_hook(functools.partial(_update, optimizer))
        self._schedule = DeviceSchedule(self._optimizers, schedule) if schedule else None
        self.worked: list[float] = []  # seconds of the processor, in each call

    def __call__(self) -> None:
        begin = time.process_time()
        self._step()
        self.worked.append(time.process_time() - begin)

    def _step(self) -> None:
        loss = self.model(*self._batch)
        loss.backward()
        if not self._inside:
            _update(self._optimizers[0])
        if self._schedule is not None:
            self._schedule.step(loss=loss)


def _update(optimizer: Optimizer, _: Any = None) -> None:
    optimizer.step()
    optimizer.zero_grad()


def contenders(name: str, device: torch.device) -> dict[str, Step]:
    """All steps by name, ours and torch's; the first is what the others are compared with."""

    def ours(params: list[Tensor]) -> Optimizer:
        return FusedAdamW(params, lr=torch.tensor(LR, device=device))

    def torchs(params: list[Tensor]) -> Optimizer:
        return torch.optim.AdamW(params, lr=LR, fused=True)

    make = functools.partial(Step, name, device)
    return {
        BASE: make(ours, inside=False),
        "in backward()": make(ours, inside=True),
        "in backward(), GreedyLR over all": make(ours, inside=True, schedule=GreedyLR()),
        "torch fused, after": make(torchs, inside=False),
        "torch fused, in backward()": make(torchs, inside=True),
    }


def measure(name: str, asked: Asked, found: Report, on_round: OnRound | None = None) -> None:
    """Time every contender in the same rounds, and add a record for each."""
    steps = contenders(name, asked.device)
    # Forward and backward leave the caches as a training run does: nothing is evicted.
    clock = harness.clock_for(asked.device, cold=False, device_time=False)
    times = harness.compare(steps, clock, seconds=asked.seconds, rounds=(6, 400), on_round=on_round)
    worked = {name: step.worked[-len(times[name]) :] for name, step in steps.items()}  # without the warm-up
    params = list(steps[BASE].model.parameters())
    for contender, step in steps.items():
        own, base = ([sample.step for sample in times[one]] for one in (contender, BASE))
        found.add(
            model=name,
            parameters=sum(param.numel() for param in params),
            tensors=len(params),
            gradient_bytes=sum(param.numel() * param.element_size() for param in params),
            tokens=BATCH * CONTEXT,
            contender=contender,
            ms=report.spread(own, 1e3),
            ratio=Spread.of_ratios(own, base).as_dict(),
            cpu_ms=report.spread(worked[contender], 1e3),
            added_cpu_ms=report.spread([a - b for a, b in zip(worked[contender], worked[BASE], strict=True)], 1e3),
            peak_bytes=peak_bytes(step, asked.device),
        )


def run(names: Sequence[str], asked: Asked) -> Report:
    """All of these sizes."""
    found = Report("in_backward", asked.device, asked.config)
    return options.measure(found, {name: functools.partial(measure, name, asked, found) for name in names}, asked)


def print_report(found: Report) -> None:
    """One table of all records."""
    columns = ["model", "update", "ms", "(p20-p80)", "x after", "CPU ms", "added CPU ms", "peak MB", "gradients MB"]
    rows = [
        [
            f"{record['model']}, {record['tensors']} tensors",
            record["contender"],
            report.number(record["ms"]["median"]),
            f"({report.number(record['ms']['p20'])}-{report.number(record['ms']['p80'])})",
            f"{record['ratio']['median']:.3f}",
            report.number(record["cpu_ms"]["median"]),
            f"{record['added_cpu_ms']['median']:+.2f}",
            "-" if record["peak_bytes"] is None else report.number(record["peak_bytes"] / 1e6),
            report.number(record["gradient_bytes"] / 1e6),
        ]
        for record in found.records
    ]
    report.print_table("a whole training step, updated after backward() and within it", columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "throughput.in_backward",
        "in_backward.json",
        f"{__doc__}\n\nEach contender trains a GPT of its own; peak is what a step takes beyond what is held before; "
        "CPU\nms is the time of this process on all its threads, which other work on the machine does not lengthen.",
        seconds=60.0,
    )
    parser.add_argument("--sizes", metavar="A,B", help=f"of {', '.join(SIZES)}; default: small")
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    options.finish(run(options.chosen(arguments.sizes, list(SIZES), ["small"], "sizes"), asked), asked, print_report)


if __name__ == "__main__":
    main()
