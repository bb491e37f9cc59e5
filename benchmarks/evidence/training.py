"""One training run, from its description to its record."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence import searched
from benchmarks.evidence.finders import hosted, options_of, schedule_of
from benchmarks.evidence.formats import CONDITIONS, FORMATS, PLAIN, Condition
from benchmarks.evidence.hosted import HostSearch
from benchmarks.evidence.plan import TUNING_SEED, Run
from benchmarks.evidence.schedules import Context
from benchmarks.evidence.stored import Stepped, model_of, optimizer_of
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.trainees import Setting, Trainee
from greedylr_fused import FusedAdamW

NOISE = 0.5  # nats, standard deviation of what `noisy-loss` adds
PARTS = 10  # of a run, at the end of each of which it is looked at
LAST = (0.96, 0.98, 1.0)  # where in the run the losses are measured whose mean counts
START_LR = 3e-3  # of the run that a fine-tune starts from
START_LENGTH = 3  # times a standard run


class Evaluations:
    """Held-out losses and LRs over a run.

    Args:
        trainee: what is trained.
        optimizer: has the LR.
        steps: of the run.
    """

    def __init__(self, trainee: Trainee, optimizer: Stepped, steps: int) -> None:
        self._trainee, self._optimizer, self._steps = trainee, optimizer, steps
        self.last = {max(1, round(share * steps)) for share in LAST}
        self.points = self.last | {max(1, round(steps * part / PARTS)) for part in range(1, PARTS + 1)}
        self.curve = [(0, trainee.held_out(0))]
        self.lrs: list[tuple[int, float]] = []

    def after(self, step: int) -> None:
        """`step` steps have been made."""
        if step in self.points or not step % max(1, self._steps // (4 * PARTS)):
            self.lrs.append((step, float(self._optimizer.read_lr()[0])))
        if step in self.points:
            self.curve.append((step, self._trainee.held_out(step - 1)))

    def final(self) -> float:
        """The mean of the last ones."""
        return sum(loss for step, loss in self.curve if step in self.last) / len(self.last)


def execute(run: Run, device: torch.device, start: dict[str, Tensor] | None, norms: Sequence[float] | None) -> Any:
    """Train, and say how it went.

    Args:
        run: which.
        device: where.
        start: parameters, for a task that starts from those of another.
        norms: for `refined`.

    Returns:
        `final`: mean held-out loss at the end, in nats, None where it broke off; `failed`: None, or why the run counts
        as one that failed: a loss that is not finite, or one above that before the first step; `curve`: held-out loss
        by steps made; `train`: mean training loss of each tenth; `lrs`: LR by steps made; `seconds`: of the processor.
    """
    begin = time.process_time()
    trainee = TASKS[run.task].make(Setting(run.steps, run.seed, run.scenario, device, start))
    trainee.model = model_of(FORMATS[run.storage], trainee.model)
    condition_of(run).disturb(trainee.model)
    context = Context(run.steps, norms)
    optimizer = _optimizer(trainee, run, context)
    seen = Evaluations(trainee, optimizer, run.steps)
    loop = _Loop(trainee, optimizer, run, seen, _host_search(trainee, optimizer, run, context))
    losses, broken = _searched(loop, context) if run.schedule == "autolrs" else _train(loop)
    final = math.nan if broken else seen.final()
    failed = broken or (None if math.isfinite(final) else "not finite at the end")
    if failed is None and final > seen.curve[0][1]:
        failed = "worse than before the first step"
    parts = losses[: run.steps - run.steps % PARTS].view(PARTS, -1).mean(1).tolist()
    record = {
        "final": final if math.isfinite(final) else None,
        "failed": failed,
        "curve": [(step, _rounded(loss)) for step, loss in seen.curve],
        "train": [_rounded(loss) for loss in parts],
        "lrs": [(step, _rounded(lr)) for step, lr in seen.lrs],
        "seconds": round(time.process_time() - begin, 3),
    }
    if run.scenario == "norms":
        record["norms"] = [_rounded(float(norm)) for norm in loop.norms]
    return record


def condition_of(run: Run) -> Condition:
    """What its optimizer is given besides the task's own options."""
    return CONDITIONS.get(run.scenario, PLAIN)


def _optimizer(trainee: Trainee, run: Run, context: Context) -> Stepped:
    options = condition_of(run).options(trainee.betas, trainee.max_grad_norm) | options_of(run.schedule)
    options["schedule"] = None if hosted(run.schedule) else schedule_of(run.schedule, context)
    return optimizer_of(FORMATS[run.storage], trainee.groups(), run.lr, options)


def _host_search(trainee: Trainee, optimizer: Stepped, run: Run, context: Context) -> HostSearch | None:
    how = hosted(run.schedule)
    if how is None:
        return None
    assert isinstance(optimizer, FusedAdamW)
    return HostSearch(how, schedule_of(run.schedule, context), trainee, optimizer, run.lr)


class _Loop:
    """The steps of a run, one at a time.

    Attributes:
        losses: of training, NaN for steps to come.
        norms: L1 norm of the gradients of each step, where the run is to record them.
    """

    def __init__(
        self, trainee: Trainee, optimizer: Stepped, run: Run, seen: Evaluations, search: HostSearch | None = None
    ) -> None:
        self.trainee, self.optimizer, self.run, self.seen = trainee, optimizer, run, seen
        self._search = search
        self.losses = torch.full((run.steps,), math.nan, device=next(trainee.model.parameters()).device)
        self.norms: list[Tensor] = []
        self._step, self._scale = 0, condition_of(run).scale
        self._noise = torch.Generator().manual_seed(run.seed + 1)

    def one(self) -> Tensor:
        """Make the next step; returns its loss."""
        source = self.trainee if self._search is None else self._search
        loss = self.trainee.loss(*source.batch(self._step))
        (loss * self._scale).backward()
        self.losses[self._step] = observed = loss.detach()
        if self.run.scenario == "noisy-loss":
            observed = observed + NOISE * torch.randn((), generator=self._noise).item()
        if self.run.scenario == "norms":
            self.norms.append(torch.stack([p.grad.abs().sum() for p in self.trainee.model.parameters()]).sum())
        self.optimizer.step(loss=observed)
        self.optimizer.zero_grad()
        if self._search is not None:
            self._search.observe(observed)
        self._step += 1
        return loss.detach()


def _train(loop: _Loop) -> tuple[Tensor, str | None]:
    """All steps, or up to the first look at which a training loss was not finite."""
    for step in range(1, loop.run.steps + 1):
        loop.one()
        if step in loop.seen.points and not _all_finite(loop.losses[:step]):
            return loop.losses, f"a training loss was not finite by step {step}"
        loop.seen.after(step)
    return loop.losses, None


def _searched(loop: _Loop, context: Context) -> tuple[Tensor, str | None]:
    """All steps of a run of AutoLRS; a trial may have losses that are not finite."""
    made = 0

    def one() -> Tensor:
        nonlocal made
        loss, made = loop.one(), made + 1
        loop.seen.after(made)
        return loss

    run, optimizer = loop.run, loop.optimizer
    assert isinstance(optimizer, FusedAdamW)
    found = searched.search(run.lr, run.steps - context.warmup, run.seed)
    searched.train(loop.trainee.model, optimizer, found, run.lr, context.warmup, one)
    return loop.losses, None


def starting_point(task: str, folder: Path, device: torch.device) -> dict[str, Tensor] | None:
    """The parameters that a task starts from, trained once with `Linear` and kept in the folder; None: at random."""
    source = TASKS[task].start
    if source is None:
        return None
    steps = START_LENGTH * TASKS[source].steps
    path = folder / f"{source}-{steps}-{START_LR:g}.pt"
    if not path.exists():
        run = Run(source, "linear", START_LR, TUNING_SEED, "clean", steps)
        trainee = TASKS[source].make(Setting(steps, run.seed, run.scenario, device))
        optimizer = _optimizer(trainee, run, Context(steps))
        losses, _ = _train(_Loop(trainee, optimizer, run, Evaluations(trainee, optimizer, steps)))
        if not _all_finite(losses):
            raise RuntimeError(
                f"{task}: expected a starting point that trained, got losses that are not finite; lower START_LR"
            )
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(trainee.model.cpu().state_dict(), path)
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _all_finite(losses: Tensor) -> bool:
    return bool(torch.isfinite(losses).all())  # waits for the device


def _rounded(number: float) -> float | None:
    return float(f"{number:.6g}") if math.isfinite(number) else None
