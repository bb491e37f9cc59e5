"""Write the README's table of results from the files under `benchmarks/results/`.

python benchmarks/readme_table.py           rewrite the table
python benchmarks/readme_table.py --check   exit with 1 if it is not what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = ROOT / "benchmarks" / "results" / "pretrain-tiny" / "summary.json"
BEGIN, END = "<!-- results: written by benchmarks/readme_table.py -->", "<!-- end of results -->"


def table(summary: dict[str, Any]) -> str:
    """The Markdown between the marks."""
    fused, torch = summary["runs"]["fused"], summary["runs"]["torch"]
    machine = summary["environment"]

    def milliseconds(key: str, digits: int) -> list[str]:
        numbers = (run[key] for run in (fused, torch))
        return [f"{n['median']:.{digits}f} ms ({n['p20']:.{digits}f} to {n['p80']:.{digits}f})" for n in numbers]

    rows = [
        ("optimizer per step: median (20th to 80th percentile)", *milliseconds("optimizer_ms", 2)),
        ("whole training step: median (20th to 80th percentile)", *milliseconds("step_ms", 0)),
        (
            "host reads of device values per step",
            f"{fused['host_reads_per_step']:g}",
            f"{torch['host_reads_per_step']:g}",
        ),
        ("training loss, smoothed", *(f"{run['train_loss_bits_per_byte']:.3f}" for run in (fused, torch))),
        ("held-out loss", *(f"{run['held_out_bits_per_byte']:.3f}" for run in (fused, torch))),
    ]
    lines = [
        f"`make train` on {machine['CPU']}, torch {machine['torch']}, commit {machine['commit']}: "
        f"{fused['parameters'] / 1e6:.1f}M parameters, float32; losses in bits per byte",
        "([all numbers](benchmarks/results/pretrain-tiny/summary.json)):",
        "",
        "| | FusedAdamW + GreedyLR | torch AdamW(fused) + clip + host GreedyLR |",
        "|---|---|---|",
        *(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows),
    ]
    return "\n".join(lines)


def rewritten(readme: str, content: str) -> str:
    """The README with `content` between the marks."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main() -> int:
    """Rewrite or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if the table is out of date")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    readme = path.read_text()
    new = rewritten(readme, table(json.loads(SUMMARY.read_text())))
    if check:
        return int(new != readme)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
