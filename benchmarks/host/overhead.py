"""What a step costs the host: many tensors of 64 elements, as plain tensors and as DTensors (FSDP2's parameters)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from benchmarks import harness, options, report
from benchmarks.cases import peers
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.peers import Built, Contender
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload
from benchmarks.harness import OnRound
from benchmarks.host import dtensors
from benchmarks.host.dtensors import ELEMENTS
from benchmarks.options import Asked
from benchmarks.report import Report
from greedylr_fused.commands.bench import Spread

#: Numbers of tensors. The first steps of torch's optimizers over 1,000 DTensors take a minute, over 10,000 many (they
#: decide how each list of operands is laid out): those are for who asks for them.
COUNTS = {"plain": [10, 100, 300, 1000, 10_000], "dtensor": [10, 100, 300]}
FULL = {kind: [10, 100, 300, 1000, 10_000] for kind in COUNTS}


def contenders(device: torch.device) -> list[Contender]:
    """Ours on its preferred backend, torch's two fast ones; with and without clipping."""
    families = (peers.preferred(device), "torch-fused", "torch-foreach")
    return [Contender.parse(family + clip) for clip in ("", "+clip") for family in families]


def measure(kind: str, count: int, asked: Asked, found: Report, on_round: OnRound | None = None) -> None:
    """Add a record per contender for so many tensors of a kind, one of COUNTS; on a CPU of one thread."""
    with contextlib.ExitStack() as stack:
        if asked.device.type == "cpu":
            stack.enter_context(harness.one_thread())
        work = Workload(Shapes(f"{count}x{ELEMENTS}", "", ((ELEMENTS,),) * count), MIXES["fp32"], asked.device)
        if kind == "dtensor":
            dtensors.shard(work, stack.enter_context(dtensors.mesh(asked.device)))
        built: dict[str, Built] = {}
        for contender in contenders(asked.device):
            try:
                built[contender.name] = peers.build(contender, work)
            except (harness.NotOffered, TypeError) as error:
                found.leave_out(f"{kind}: {contender.name}", str(error))
        clock = harness.clock_for(asked.device, cold=False, device_time=False)
        steps = {name: one.step for name, one in built.items()}
        limits = {"seconds": asked.seconds, "longest": 3 * asked.seconds, "rounds": (6, 1000)}
        times = harness.compare(steps, clock, **limits, warmup=1, on_round=on_round)
    for name, samples in times.items():
        base = Contender.parse(name).base.name
        host = [sample.host for sample in samples]
        beside = [sample.host for sample in times.get(base, [])]
        found.add(
            kind=kind,
            tensors=count,
            contender=name,
            base=base,
            us_per_step=report.spread(host, 1e6),
            us_per_tensor=report.spread(host, 1e6 / count),
            ratio=Spread.of_ratios(beside, host).as_dict() if beside else None,
        )


def run(counts: dict[str, list[int]], asked: Asked) -> Report:
    """All of these numbers of tensors, by kind."""
    found = Report("host_overhead", asked.device, asked.config | {"cases": counts})
    return options.measure(found, dtensors.cases(measure, counts, asked, found), asked)


def print_report(found: Report) -> None:
    """A row per contender and kind, a column per number of tensors."""
    records = found.records
    counts = sorted({record["tensors"] for record in records})
    rows = []
    for kind, name in dict.fromkeys((record["kind"], record["contender"]) for record in records):
        own = {r["tensors"]: r for r in records if (r["kind"], r["contender"]) == (kind, name)}
        cells = [_cell(own[n]) if n in own else "-" for n in counts]
        largest = own[max(own)]["us_per_tensor"]["median"]
        rows.append([f"{kind} {name}", *cells, report.number(largest)])
    columns = ["", *(f"{n:,} tensors" for n in counts), "per tensor"]
    report.print_table("host microseconds per step (times torch fused), median", columns, rows)


def _cell(record: report.Record) -> str:
    us, ratio = report.number(record["us_per_step"]["median"]), record["ratio"]
    return f"{us} ({ratio['median']:.1f}x)" if ratio else us


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "host.overhead",
        "host_overhead.json",
        f"{__doc__}\n\nCaches are warm, the queue is empty before each step. Contenders: ours on its "
        "preferred backend,\ntorch fused and foreach, with and without clipping. On a CPU: one thread. Columns: "
        "benchmarks/README.md.",
        seconds=3.0,
    )
    parser.add_argument("--full", action="store_true", help="up to 10,000 DTensors, too; takes long")
    listed = "; ".join(f"{kind} {', '.join(map(str, counts))}" for kind, counts in COUNTS.items())
    parser.add_argument("--counts", metavar="A,B", help=f"numbers of tensors (default: {listed})")
    parser.add_argument("--kinds", metavar="A,B", help=f"of {', '.join(COUNTS)} (default: both)")
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    given = options.names(arguments.counts or "")
    if not all(n.isdigit() and int(n) for n in given):
        raise SystemExit(f"--counts: expected numbers above 0 with commas between, got {arguments.counts}")
    counts = [int(n) for n in given] or None
    kinds = options.chosen(arguments.kinds, list(COUNTS), list(COUNTS), "kinds")
    usual = FULL if arguments.full else COUNTS
    options.finish(run({kind: counts or usual[kind] for kind in kinds}, asked), asked, print_report)


if __name__ == "__main__":
    main()
