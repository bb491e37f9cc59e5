"""What a step over several ranks takes: many DTensors of 64 elements per rank, with what travels between the ranks.

python -m benchmarks.host.ranks                     two processes over gloo, 300 tensors
python -m benchmarks.host.ranks --device cuda --world 4
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import harness, options, report
from benchmarks.cases import peers
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.peers import Contender
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload
from benchmarks.host import dtensors
from benchmarks.host.dtensors import ELEMENTS
from benchmarks.options import Asked
from benchmarks.report import Report
from greedylr_fused.commands.bench import Spread

ALL_REDUCE = "one all-reduce of 5 numbers"


def contenders(device: torch.device) -> list[Contender]:
    """Ours on its preferred backend with all that it shares over ranks, torch's fused AdamW with its own clipping."""
    ours = [peers.preferred(device) + extra for extra in ("", "+greedy", "+clip", "+clip+greedy")]
    return [Contender.parse(name) for name in (*ours, "torch-fused", "torch-fused+clip")]


def on_rank(rank: int, meeting: str, asked: Asked) -> None:
    """What one process does; the first prints the table and leaves the result file.

    Args:
        rank: its number.
        meeting: a file that is not there yet, through which the ranks find each other.
        asked: `config` has the numbers of ranks ("world"), "tensors" and "rounds".
    """
    torch.set_num_threads(1)
    device, config = asked.device, asked.config
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    store = dist.FileStore(meeting, config["world"])
    with dtensors.mesh(device, store, rank, config["world"]) as over:
        work = Workload(Shapes("", "", ((ELEMENTS,),) * config["tensors"]), MIXES["fp32"], device)
        dtensors.shard(work, over)
        five = torch.zeros(5, dtype=torch.float64, device=device)
        steps: dict[str, Any] = {ALL_REDUCE: lambda: dist.all_reduce(five, async_op=True).wait()}
        steps |= {contender.name: peers.build(contender, work).step for contender in contenders(device)}
        clock = harness.clock_for(device, cold=False, device_time=False)
        rounds = (config["rounds"],) * 2  # the same number on every rank, or they would wait for each other forever
        times = harness.compare(steps, clock, seconds=asked.seconds, rounds=rounds)
        if rank == 0:
            options.finish(recorded(times, asked), asked, print_report)
        dist.barrier()


def recorded(times: dict[str, list[harness.Sample]], asked: Asked) -> Report:
    """A record per contender."""
    found = Report("ranks", asked.device, asked.config)
    for name, samples in times.items():
        host = [sample.host for sample in samples]
        base = None if name == ALL_REDUCE else "torch-fused" + "+clip" * ("+clip" in name)
        ratio = Spread.of_ratios([sample.host for sample in times[base]], host).as_dict() if base else None
        found.add(contender=name, base=base, us_per_step=report.spread(host, 1e6), ratio=ratio)
    return found


def print_report(found: Report) -> None:
    """A row per contender."""
    rows = [
        [r["contender"], report.number(r["us_per_step"]["median"]), report.number(r["ratio"] and r["ratio"]["median"])]
        for r in found.records
    ]
    numbers = f"{found.config['tensors']} DTensors on {found.config['world']} ranks"
    report.print_table(f"microseconds per step of {numbers}, median", ["", "us", "x torch fused"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "host.ranks",
        "ranks.json",
        f"{__doc__}\nTimes are those of the first rank, kernels included on a CPU; one thread per process. "
        "Columns: benchmarks/README.md.",
    )
    parser.add_argument("--world", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--tensors", type=int, default=300, metavar="N", help="DTensors (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="of all contenders (default: %(default)s)")
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    if asked.device.type == "cuda" and arguments.world > torch.cuda.device_count():
        raise SystemExit(f"--world: expected at most the {torch.cuda.device_count()} GPUs here, got {arguments.world}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (f"{folder}/meeting", asked), nprocs=arguments.world)


if __name__ == "__main__":
    main()
