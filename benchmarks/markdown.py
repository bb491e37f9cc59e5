"""A Markdown table of a step_throughput result, written between marks in a document.

python -m benchmarks.markdown RESULT.json                          print it
python -m benchmarks.markdown RESULT.json --into README.md         rewrite it there
python -m benchmarks.markdown RESULT.json --into README.md --check exit with 1 if it is not what the file says

The marks in the document, NAME being that of --name:

<!-- NAME: written by benchmarks/markdown.py -->
<!-- end of NAME -->
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases.mixes import COMPRESSED
from benchmarks.report import Record, number


def table(content: dict[str, Any], source: str) -> str:
    """A row for every step of ours with torch fused beside it, and of others over compressed states; slower ones, too.

    Args:
        content: of the result file.
        source: link to it, relative to the document.
    """
    machine, records = content["environment"], content["records"]
    versions = f"torch {machine['torch']}" + (f", CUDA {machine['cuda']}" if "cuda" in machine else "")
    head = [
        f"One optimizer step on {machine['device']}, {versions}, commit {machine['commit']}; "
        f"median (20th to 80th percentile) ([all numbers]({source})):",
        "",
        "| shapes, types | step | ms | GB/s | of the roofline | torch fused, ms | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [_row(record, records) for record in records if record.get("ratio") and _is_shown(record)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def _is_shown(record: Record) -> bool:
    other = record["mix"] in COMPRESSED and record["contender"] != record["base"]
    return bool(record["contender"].startswith("ours") or other)


def _row(record: Record, records: Sequence[Record]) -> list[str]:
    case = (record["shapes"], record["mix"], record["base"])
    base = next(other for other in records if (other["shapes"], other["mix"], other["contender"]) == case)
    share, rate = record["share_of_roofline"], record["gb_per_s"]
    # With graphs the host's time is what is saved; else, on a GPU, the device's own time is what can be compared.
    graph = "+graph" in record["contender"]
    key, ratio = ("ms", "ratio") if graph or not record["device_ms"] else ("device_ms", "ratio_device")
    return [
        f"{record['shapes']}, {record['mix']}",
        record["contender"].removeprefix("ours-"),
        _spread(record[key]),
        number(rate["median"]) if rate else "",
        f"{share['median']:.2f}" if share else "",
        _spread(base[key]),
        f"{record[ratio]['median']:.2f} ({record[ratio]['p20']:.2f} to {record[ratio]['p80']:.2f})",
    ]


def _spread(value: dict[str, float]) -> str:
    return f"{number(value['median'])} ({number(value['p20'])} to {number(value['p80'])})"


def rewritten(document: str, name: str, content: str) -> str:
    """The document with `content` between the marks of that name.

    Raises:
        ValueError: it does not have each mark once, in their order.
    """
    begin, end = f"<!-- {name}: written by benchmarks/markdown.py -->", f"<!-- end of {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"document: expected one {begin} before one {end}, got other marks of {name!r}")
    before, rest = document.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print, rewrite or check; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.markdown",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("result", type=Path, help="step_throughput.json")
    parser.add_argument("--into", type=Path, metavar="FILE", help="document to rewrite; default: print the table")
    parser.add_argument("--name", default="step throughput", help="of the marks (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args(argv)
    content = report.load(arguments.result)
    if arguments.into is None:
        print(table(content, arguments.result.as_posix()))
        return 0
    source = Path(os.path.relpath(arguments.result, arguments.into.parent)).as_posix()
    document = arguments.into.read_text()
    new = rewritten(document, arguments.name, table(content, source))
    if arguments.check:
        return int(new != document)
    arguments.into.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
