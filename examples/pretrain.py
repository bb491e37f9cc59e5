"""Pretrain a byte-level GPT on real text, with a learning rate that the loss decides.

    python examples/pretrain.py                      train with FusedAdamW and GreedyLR
    python examples/pretrain.py --compare            the same, beside torch's AdamW with a host-side GreedyLR
    python examples/pretrain.py --data FILE_OR_DIR   on one's own text
    python examples/pretrain.py --resume DIR         go on where a run stopped

Reading order: this file, trainer.py (a step), model.py, data.py; unfused.py is the baseline.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch is imported, which takes seconds: no traceback

import json
import math
import os
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

import checkpoint
import record
import report
from config import Config, Request, new_config, parse, resumed_config
from data import Corpus, load_corpus
from display import Display
from errors import UsageError
from trainer import Trainer

BLOCK = 10  # steps of one run before the other's turn, so that both are timed on the machine in the same state
BAD_STEPS = 20  # in a row, skipped or with a loss that is not finite: give up
OUTPUTS = (checkpoint.NAME, record.NAME, "config.json", "curves.png", "summary.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        request = parse(arguments)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("this example trains in one process; start it without torchrun")
        return pretrain(request)
    except UsageError as error:
        print(f"pretrain: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print("pretrain: stopped at once; what was saved before is whole", file=sys.stderr)
        return 130


def pretrain(request: Request) -> int:
    """Prepare, train, report. Nothing is written before everything that can be wrong was checked."""
    content = checkpoint.load(request.resume) if request.resume else None
    config = resumed_config(content["config"], request.given) if content else new_config(request.given)
    folder = request.resume or request.out or Path("runs") / f"{config.size}-{_kind(config)}"
    if content is None:
        check_folder(folder, overwrite=request.overwrite)
    set_up_torch(config)
    corpus = load_corpus(Path(config.data) if config.data else None, config.context)
    trainers = build(config, corpus)
    if content is not None:
        checkpoint.restore(content, folder / checkpoint.NAME, corpus.fingerprint, trainers)
        check_not_finished(folder, config, trainers)
    prepare_folder(folder, config, fresh=content is None)

    rows = record.Record(folder, {trainer.name: trainer.steps for trainer in trainers})
    console = Console()
    console.print(describe(config, corpus, trainers[0]), highlight=False, soft_wrap=True)
    try:
        with Interrupt() as interrupt, Display(config, trainers, console) as display:
            diverged = train(config, corpus, trainers, rows, folder, display, interrupt)
        if interrupt.signal is not None and not finished(config, trainers):
            line = f"not saved: {diverged}" if diverged else f"saved; go on with: {resume_command(folder)}"
            console.print(line, highlight=False, soft_wrap=True)
            return 128 + interrupt.signal
        warnings = [f"warning: {trouble(trainer)}" for trainer in trainers if trainer.metrics.skipped]
        found = {trainer.name: report.results(config, trainer, rows) for trainer in trainers}
    finally:
        rows.close()
    summary = report.write_summary(folder, found, rows, diverged)
    report.draw(folder / "curves.png", config, rows, summary)
    report.print_summary(console, summary, folder)
    if diverged:
        saved = "the checkpoint before it stays" if (folder / checkpoint.NAME).exists() else "no checkpoint was saved"
        print(f"pretrain: diverged: {diverged}; {saved}", file=sys.stderr)
        return 1
    for warning in warnings:
        console.print(warning, highlight=False, soft_wrap=True)
    return 0


def build(config: Config, corpus: Corpus) -> list[Trainer]:
    """One trainer per optimizer; what an optimizer does not take is the caller's mistake."""
    try:
        return [Trainer(name, config, corpus) for name in config.optimizers]
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def train(
    config: Config,
    corpus: Corpus,
    trainers: Sequence[Trainer],
    rows: record.Record,
    folder: Path,
    display: Display,
    interrupt: Interrupt,
) -> str | None:
    """Train to `config.steps`, in alternating blocks if there are two trainers; save on the way, at the end, and when
    interrupted. Stops, without saving, where a run has diverged, and returns how.
    """
    done = min(trainer.steps for trainer in trainers)
    while done < config.steps and interrupt.signal is None:
        periods = (BLOCK, config.save_every, config.eval_every)
        done = min(config.steps, *(period * (done // period + 1) for period in periods))
        for trainer in trainers:
            while trainer.steps < done and interrupt.signal is None:
                metrics = trainer.step()
                rows.add(trainer.name, metrics, skipped=trainer.skipped_last)
                display.show(trainer, metrics)
                if trainer.bad_steps >= BAD_STEPS:
                    return trouble(trainer)
            if len(trainers) > 1:
                trainer.wait()  # else the other would be timed waiting for this one's kernels
        stopped = interrupt.signal is not None and not finished(config, trainers)
        evaluate = not stopped and (done % config.eval_every == 0 or done == config.steps)
        save = stopped or done % config.save_every == 0 or done == config.steps
        broken = None
        for trainer in trainers:
            if evaluate or (save and trainer.bad_steps):  # what cannot go on is not saved over a good checkpoint
                bits = trainer.held_out_bits()
                broken = broken or (None if math.isfinite(bits) else trouble(trainer))
                if evaluate:
                    rows.add_held_out(trainer.name, done, bits)
                    display.say(f"{trainer.name:5}  step {done:4d}/{config.steps}  held out: {bits:.4f} bits per byte")
        if broken:
            return broken
        if save or interrupt.signal is not None:  # it may have come during the held-out loss
            rows.flush()
            checkpoint.save(folder, config, corpus.fingerprint, trainers)
    return None


def finished(config: Config, trainers: Sequence[Trainer]) -> bool:
    """Whether there is no step left."""
    return all(trainer.steps >= config.steps for trainer in trainers)


def trouble(trainer: Trainer) -> str:
    """What is wrong with a run, and what to do."""
    if skipped := trainer.metrics.skipped:
        were = "step was" if trainer.steps == 1 else "steps were"
        what = f"{skipped} of {trainer.steps} {were} skipped for non-finite gradients"
    elif trainer.bad_steps:
        what = f"the loss is not finite since step {trainer.steps - trainer.bad_steps + 1}"
    else:
        what = f"the held-out loss at step {trainer.steps} is not finite"
    return f"{trainer.name}: {what}; try a lower --lr"


def resume_command(folder: Path) -> str:
    """What to type to go on."""
    here = Path.cwd()
    program = [Path(part) for part in (sys.executable, Path(__file__).absolute())]
    shown = [str(part.relative_to(here) if part.is_relative_to(here) else part) for part in program]
    return shlex.join([*shown, "--resume", str(folder)])


class Interrupt:
    """Remembers SIGINT or SIGTERM, so that a step is finished and saved; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self.__exit__()


def set_up_torch(config: Config) -> None:
    """Threads, and on a GPU deterministic kernels: a resumed run has the bits of one that never stopped."""
    torch.set_num_threads(config.threads)
    random.seed(config.seed)  # each trainer seeds torch itself
    if config.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: deterministic workspaces
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write into a folder that holds anything, unless told to."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output folder {folder}: there is a file of that name; choose another with --out")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"output folder {folder} is not empty: --resume {folder}, --overwrite, or another --out")


def check_not_finished(folder: Path, config: Config, trainers: Sequence[Trainer]) -> None:
    """Refuse to resume a run that has nothing left to do; one stopped before its summary still gets that."""
    done = max(trainer.steps for trainer in trainers)
    if done > config.steps or (finished(config, trainers) and (folder / "summary.json").exists()):
        raise UsageError(f"--resume {folder}: already at step {done} of {config.steps}; raise --steps")


def prepare_folder(folder: Path, config: Config, *, fresh: bool) -> None:
    """Create the folder, take an earlier run's files out of a fresh one, and write the options."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS if fresh else ():
            (folder / name).unlink(missing_ok=True)
        text = json.dumps(asdict(config), indent=2) + "\n"
        checkpoint.write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise UsageError(f"output folder {folder}: {error.strerror}") from None


def describe(config: Config, corpus: Corpus, trainer: Trainer) -> str:
    """What is about to happen, in one line."""
    where = f"{config.device} {config.dtype}" + (f", {config.threads} threads" if config.device == "cpu" else "")
    text = f"{corpus.train.numel():,} bytes of text, {corpus.held_out.numel():,} held out"
    steps = f"{config.steps} steps of {config.tokens_per_step:,} bytes"
    return f"{config.size}: {trainer.parameters:,} parameters; {_kind(config)}; {steps}; {text}; {where}"


def _kind(config: Config) -> str:
    return "compare" if config.compare else config.optimizer


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
