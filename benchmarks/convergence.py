"""What is each schedule worth, and what does the loss add to it: training runs on real data, and a report on them.

    python -m benchmarks.convergence --preset standard --out FOLDER      run what is missing there; go on after a cut
    python -m benchmarks.convergence --preset standard --out FOLDER --list    count what is missing, run nothing
    python -m benchmarks.convergence --report --out FOLDER               REPORT.md and pictures from what there is
    python -m benchmarks.convergence --preset state --out FOLDER         formats of moments and masters, not schedules
    python -m benchmarks.convergence --preset find --out FOLDER          what a wrong LR costs, and who recovers it
    python -m benchmarks.convergence --tasks gpt2-124m --device cuda --out FOLDER      a large model on a GPU

Each schedule's peak LR is tuned over the same grid on seeds of its own; then schedules are compared on other seeds, at
that LR, and away from it, with noise, and with data that change. Every run is one thread of one process.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, options
from benchmarks.evidence import find_report, runner, state_report
from benchmarks.evidence.comparison import Evidence
from benchmarks.evidence.document import write_report
from benchmarks.evidence.formats import FORMATS
from benchmarks.evidence.plan import Plan
from benchmarks.evidence.presets import PRESETS, Preset
from benchmarks.evidence.results import Results
from benchmarks.evidence.tasks import TASKS

STARTS = Path("runs") / "convergence-starts"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, list or report; returns the exit code."""
    arguments = _parsed(argv)
    device = options.device(arguments.device)
    preset = _chosen(arguments.preset, arguments.tasks, device)
    path = arguments.out / "results.jsonl"
    if arguments.report:
        if not path.exists():
            raise SystemExit(
                f"--report: expected a folder with {path.name} in it, got {arguments.out}; give the folder of a run, "
                "or run"
            )
        plan = Plan(preset, Results(path))
        for written in write_report(arguments.out, plan):
            print(f"wrote {written}")
        for document in arguments.into:
            document.write_text(_into(document.read_text(), plan, Results(path)))
            print(f"wrote {document}")
        return 0
    results = Results(path, environment.commit(), arguments.mix_commits)
    plan = Plan(preset, results)
    if arguments.list:
        counts = collections.Counter((run.task, run.scenario) for run in plan.missing())
        for (task, scenario), count in counts.items():
            print(f"{task:12} {scenario:12} {count:5d}")
        print(f"{counts.total()} runs can begin; {len(results.records)} are done; more follow from what is tuned")
        return 0
    asked = {"preset": arguments.preset, "tasks": arguments.tasks, "processes": arguments.processes}
    _note_environment(arguments.out, device, asked)
    limits: dict[str, Any] = dict(processes=arguments.processes, minutes=arguments.budget_minutes, say=_say)
    done = runner.run_all(plan, results, device=device, folder=arguments.starts, **limits)
    left = sum(1 for _ in plan.missing())
    print(f"{done} runs done, {left} can begin" + ("; go on with the same command" if left else ""), file=sys.stderr)
    return 0


def _into(document: str, plan: Plan, results: Results) -> str:
    if plan.preset.finds:
        return find_report.into(document, Evidence(plan, results))
    return state_report.into(document, plan, results)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _chosen(name: str, tasks: str | None, device: torch.device) -> Preset:
    preset = PRESETS[name]
    if tasks is None:
        return preset
    names = tuple(options.chosen(tasks, list(TASKS), [], "tasks"))
    if device.type != "cuda" and (large := [task for task in names if TASKS[task].gpu]):
        raise SystemExit(f"--tasks {', '.join(large)}: needs a GPU; add --device cuda on a machine that has one")
    return preset.only(names)


def _note_environment(folder: Path, device: torch.device, asked: dict[str, Any]) -> None:
    """One more entry in `environment.json`, for each time that runs were begun."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "environment.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    peers = {form.peer[0].split(".")[0] for form in FORMATS.values() if form.peer} - {"torch"}
    versions = {name: importlib.metadata.version(name) for name in sorted(peers) if importlib.util.find_spec(name)}
    entry = environment.stamp(device) | {"peers": versions, "options": asked}
    path.write_text(json.dumps([*entries, entry], indent=1) + "\n")


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="\n".join(f"{task.name:12} {task.about}" for task in TASKS.values()),
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="standard",
        help="how much: seconds, two hours of one core, or days (default: %(default)s)",
    )
    parser.add_argument("--tasks", metavar="NAMES", help="with commas, of those below; default: those of the preset")
    parser.add_argument("--out", type=Path, default=Path("runs") / "convergence", help="folder (default: %(default)s)")
    parser.add_argument(
        "--starts", type=Path, default=STARTS, help="where the networks that fine-tuning starts from are kept"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="at a time (default: %(default)s)")
    parser.add_argument("--budget-minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--mix-commits", action="store_true", help="take runs of other commits for done")
    parser.add_argument("--list", action="store_true", help="count what can begin, and run nothing")
    parser.add_argument("--report", action="store_true", help="write REPORT.md and pictures, and run nothing")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="with --report of the preset state or find: a document that has its table between marks; repeatable",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
