"""The folder of a run: where it is, whether it may be written to, what of an earlier run is taken out of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import checkpoint
import record
from command_line import Request
from config import Config, new_config
from engine import Ranks
from errors import UsageError, WriteError
from trainer import Trainer

SUMMARY = "summary.json"
JOB = ".torchrun"  # holds the name of the job that writes here
OUTPUTS = (checkpoint.NAME, record.NAME, record.NORMS, "config.json", "curves.png", SUMMARY, JOB)


def choose(request: Request, ranks: Ranks) -> tuple[Path, bool]:
    """The run's folder, and whether to go on from the checkpoint there: if asked to, or started again by torchrun.

    Raises:
        UsageError: it holds something else.
    """
    if request.resume:
        return request.resume, True
    folder = request.out or Path("runs") / default_name(new_config(request.given))
    if ranks.restarts and _written_by(folder, ranks.job):
        return folder, (folder / checkpoint.NAME).exists()
    _check_free(folder, overwrite=request.overwrite)
    return folder, False


def default_name(config: Config) -> str:
    """What a run is called."""
    schedule = Path(config.schedule).stem.replace("+", "-")
    return f"{config.size}-{config.kind}" + (f"-{schedule}" if config.schedule != Config.schedule else "")


def _written_by(folder: Path, job: str) -> bool:
    """Whether it is this job's own. A job that was refused a folder, and started again, is still refused it."""
    mark = folder / JOB
    return bool(job) and mark.is_file() and mark.read_text() == job


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write into a folder that holds anything, unless told to."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output folder {folder}: there is a file of that name; choose another with --out")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"output folder {folder} is not empty: --resume {folder}, --overwrite, or another --out")


def check_not_finished(folder: Path, config: Config, trainers: Sequence[Trainer]) -> None:
    """Refuse to resume a run that has nothing left to do; one stopped before its summary still gets that."""
    done = max(trainer.steps for trainer in trainers)
    if done > config.steps or has_ended(folder, config, trainers):
        raise UsageError(f"--resume {folder}: already at step {done} of {config.steps}; raise --steps")


def has_ended(folder: Path, config: Config, trainers: Sequence[Trainer]) -> bool:
    """Whether there is neither a step nor the summary left to do."""
    return all(trainer.steps >= config.steps for trainer in trainers) and (folder / SUMMARY).exists()


def prepare(folder: Path, config: Config, ranks: Ranks, *, fresh: bool) -> None:
    """Create the folder, take out the files of an earlier run, or the summary of this one, and write the options.

    Raises:
        UsageError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            checkpoint.partial_of(folder / name).unlink(missing_ok=True)
            if fresh or name == SUMMARY:
                (folder / name).unlink(missing_ok=True)
        if ranks.job:  # before anything else: a job that dies here finds its own folder
            checkpoint.write_atomically(folder / JOB, lambda file: file.write(ranks.job.encode()))
        options = {
            name: value for name, value in asdict(config).items() if name != "values"
        }  # the checkpoint has those
        text = json.dumps(options, indent=2) + "\n"
        checkpoint.write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
    except (OSError, WriteError) as error:
        raise UsageError(f"output folder {folder}: {getattr(error, 'strerror', None) or error}") from None


def resume_command(folder: Path, ranks: Ranks) -> str:
    """What to type to go on."""
    here = Path.cwd()
    program = [Path(part) for part in (sys.executable, Path(__file__).with_name("pretrain.py").absolute())]
    python, script = (str(part.relative_to(here) if part.is_relative_to(here) else part) for part in program)
    if ranks.engine is None:
        return shlex.join([python, script, "--resume", str(folder)])
    launcher = ["torchrun", "--nproc-per-node", str(ranks.size)]
    return shlex.join([*launcher, script, f"--{ranks.engine}", "--resume", str(folder)])
