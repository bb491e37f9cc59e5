"""Pretrain a byte-level GPT on real text, with a learning rate that the loss decides, or a schedule of one's choice.

    python examples/pretrain.py                      train with FusedAdamW and GreedyLR
    python examples/pretrain.py --compare            the same, beside torch's AdamW with a host-side GreedyLR
    python examples/pretrain.py --optimizer muon+fused    Muon and FusedAdamW under one GreedyLR
    python examples/pretrain.py --schedule cosine    or linear, wsd, greedy+linear, autolrs, ...; see --help
    python examples/pretrain.py --data FILE_OR_DIR   on one's own text
    python examples/pretrain.py --resume DIR         go on where a run stopped
    torchrun --nproc-per-node 2 examples/pretrain.py --fsdp     in several processes (or --ddp), which share the batch

Reading order: this file, trainer.py (a step), model.py, data.py, lr_schedules.py; engine.py has all that several
processes need; unfused.py is the baseline, with the schedules of host_schedules.py; muon.py has two
optimizers under one schedule; searching.py finds the LR by trials.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch is imported, which takes seconds: no traceback

import contextlib
import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import checkpoint
import folders
import lr_schedules
import record
import report
from command_line import Request, parse
from config import Config, check_ranks, new_config, resumed_config
from data import Corpus, load_corpus
from display import Display
from engine import Ranks, joined, leave, started_again_on_several_nodes
from errors import UsageError, WriteError
from interrupt import Interrupt
from searching import SearchingTrainer
from trainer import Trainer

BLOCK = 10  # steps of one run before the other's turn, so that both are timed on the machine in the same state
BAD_STEPS = 20  # in a row, skipped or with a loss that is not finite: give up


@dataclass
class Run:
    """What a run is made of."""

    config: Config
    folder: Path
    corpus: Corpus
    trainers: list[Trainer]
    rows: record.Record
    ranks: Ranks
    remark: str | None

    @property
    def finished(self) -> bool:
        """Whether there is no step left."""
        return all(trainer.steps >= self.config.steps for trainer in self.trainers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if started_again_on_several_nodes():
        print(
            "pretrain: started again by torchrun on several nodes, which this program cannot; use --resume",
            file=sys.stderr,
        )
        return 2
    with joined() as ranks:
        try:
            request = ranks.together(lambda: parse(arguments))
            ranks.use(request.engine)
            return pretrain(request, ranks)
        except (UsageError, WriteError) as error:  # of all ranks; the others end when the first has said why
            line = f"pretrain: {' '.join(str(error).split())}"
            ranks.first(lambda: print(line, file=sys.stderr))
            return 2 if isinstance(error, UsageError) else 1
        except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
            if ranks.rank == 0:
                print("pretrain: stopped at once; what was saved before is whole", file=sys.stderr)
            return 130


def pretrain(request: Request, ranks: Ranks) -> int:
    """Prepare, train, report."""
    console = Console(quiet=ranks.rank > 0)
    run = prepare(request, ranks)
    if run is None:
        return 0
    for line in filter(None, (describe(run), run.remark)):
        console.print(line, highlight=False, soft_wrap=True)
    try:
        with (
            Interrupt(launched=ranks.engine is not None) as interrupt,
            Display(run.config, run.trainers, console) as display,
        ):
            diverged = train(run, display, interrupt)
            run.rows.close()
        if interrupt.signal and not run.finished:
            command = folders.resume_command(run.folder, ranks)
            line = f"not saved: {diverged}" if diverged else f"saved; go on with: {command}"
            console.print(line, highlight=False, soft_wrap=True)
            return 128 + interrupt.signal
        warnings = [f"warning: {trouble(trainer)}" for trainer in run.trainers if trainer.metrics.skipped]
        found = {trainer.name: report.results(run.config, trainer, run.rows) for trainer in run.trainers}
    finally:
        with contextlib.suppress(WriteError):  # whatever ends the run here says more
            run.rows.flush()
    ranks.first(lambda: report.write(run.folder, run.config, found, run.rows, diverged, console))
    if diverged:
        if ranks.rank == 0:
            kept = (run.folder / checkpoint.NAME).exists()
            saved = "the checkpoint before it stays" if kept else "no checkpoint was saved"
            print(f"pretrain: diverged: {diverged}; {saved}", file=sys.stderr)
        return 1
    for warning in warnings:
        console.print(warning, highlight=False, soft_wrap=True)
    return 0


def prepare(request: Request, ranks: Ranks) -> Run | None:
    """Check and read everything that a run needs, then open its folder: before that nothing is written.

    None if torchrun started a run again that has ended.
    """
    folder, goes_on = ranks.first(lambda: folders.choose(request, ranks))
    content = ranks.together(lambda: checkpoint.load(folder)) if goes_on else None

    def read() -> tuple[Config, Corpus]:
        config = resumed_config(content["config"], request.given) if content else new_config(request.given)
        check_ranks(config, ranks)
        return config, load_corpus(Path(config.data) if config.data else None, config.context)

    config, corpus = ranks.together(read)
    set_up_torch(config)
    trainers = ranks.together(lambda: build(config, corpus, ranks))
    if content:
        path = folder / checkpoint.NAME
        ranks.together(lambda: checkpoint.restore(content, path, corpus.fingerprint, trainers, ranks))
        if ranks.restarts and ranks.first(lambda: folders.has_ended(folder, config, trainers)):
            return None
        ranks.first(lambda: folders.check_not_finished(folder, config, trainers))
    ranks.first(lambda: folders.prepare(folder, config, ranks, fresh=content is None))
    steps = {trainer.name: trainer.steps for trainer in trainers}
    rows = ranks.together(lambda: record.Record(folder if ranks.rank == 0 else None, steps, config))
    if config.record_norms:
        rows.record_norms(trainers[0].optimizer)
    remark = lr_schedules.remark(config, Config(**content["config"]) if content else None, min(steps.values()))
    return Run(config, folder, corpus, trainers, rows, ranks, remark)


def build(config: Config, corpus: Corpus, ranks: Ranks) -> list[Trainer]:
    """One trainer per optimizer; what an optimizer does not take is the caller's mistake."""
    kind = SearchingTrainer if config.searches else Trainer
    try:
        return [kind(name, config, corpus, ranks) for name in config.optimizers]
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def train(run: Run, display: Display, interrupt: Interrupt) -> str | None:
    """Train to `config.steps`, in alternating blocks if there are two trainers; save on the way, at the end, and when
    interrupted. Stops, without saving, where a run has diverged, and returns how.
    """
    config, trainers, rows, ranks = run.config, run.trainers, run.rows, run.ranks
    done = min(trainer.steps for trainer in trainers)
    while done < config.steps and not interrupt.signal:
        periods = (BLOCK, config.save_every, config.eval_every)
        done = min(config.steps, *(period * (done // period + 1) for period in periods))
        for trainer in trainers:
            while trainer.steps < done and not interrupt.signal:
                metrics = trainer.step()
                metrics = rows.add(trainer.name, metrics, skipped=trainer.skipped_last, told=trainer.told)
                display.show(trainer, metrics)
                if agree(ranks, interrupt, trainer) >= BAD_STEPS:
                    return trouble(trainer)
            if len(trainers) > 1:
                trainer.wait()  # else the other would be timed waiting for this one's kernels
        stopped = interrupt.signal and not run.finished
        due = done % config.eval_every == 0 or done == config.steps
        evaluate = due and not stopped and not trainers[0].trying
        save = stopped or done % config.save_every == 0 or done == config.steps
        broken = None
        for trainer in trainers:
            bad_steps = agree(ranks, interrupt, trainer)
            if evaluate or (save and bad_steps):  # what cannot go on is not saved over a good checkpoint
                bits = trainer.held_out_bits()
                broken = broken or (None if math.isfinite(bits) else trouble(trainer))
                if evaluate:
                    rows.add_held_out(trainer.name, done, bits)
                    display.say(f"{trainer.name:5}  step {done:4d}/{config.steps}  held out: {bits:.4f} bits per byte")
        if broken:
            return broken
        ranks.first(rows.flush)
        agree(ranks, interrupt, trainers[0])
        if save or interrupt.signal:  # it may have come during the held-out loss
            checkpoint.save(run.folder, config, run.corpus.fingerprint, trainers, ranks)
    return None


def agree(ranks: Ranks, interrupt: Interrupt, trainer: Trainer) -> int:
    """Make an interrupt of one rank that of all; returns the steps in a row that went wrong. Acting on what came to one
    process alone, or from one device earlier than from another, the ranks would part and wait for each other.
    """
    interrupt.signal, bad_steps = ranks.largest(interrupt.received, trainer.bad_steps)
    return bad_steps


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


def set_up_torch(config: Config) -> None:
    """Threads, and on a GPU deterministic kernels: a resumed run has the bits of one that never stopped."""
    torch.set_num_threads(config.threads)
    random.seed(config.seed)  # each trainer seeds torch itself
    if config.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: deterministic workspaces
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def describe(run: Run) -> str:
    """What is about to happen, in one line."""
    config, corpus = run.config, run.corpus
    where = f"{config.device} {config.dtype}" + (f", {config.threads} threads" if config.device == "cpu" else "")
    where += f", {run.ranks}" if run.ranks.engine else ""
    text = f"{corpus.train.numel():,} bytes of text, {corpus.held_out.numel():,} held out"
    steps = f"{config.steps} steps of {config.tokens_per_step:,} bytes"
    parameters = run.trainers[0].parameters
    kind = f"{config.kind}, {lr_schedules.label(config)}"
    line = f"{config.size}: {parameters:,} parameters; {kind}; {steps}; {text}; {where}"
    done = min(trainer.steps for trainer in run.trainers)
    return f"{line}; going on from step {done} of {run.folder}" if done else line


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True)  # a log file has each line at once, and keeps it if this is killed
    leave(main())
