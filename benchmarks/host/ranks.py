"""What a step over several ranks takes: many DTensors of 64 elements per rank, with what travels between the ranks.

python -m benchmarks.host.ranks                     two processes over gloo, 300 tensors
python -m benchmarks.host.ranks --device cuda --world 4
"""

from __future__ import annotations

import argparse
import datetime
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
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
from benchmarks.host.overhead import ELEMENTS, shard
from greedylr_fused import available_backends
from greedylr_fused.commands.bench import Spread

#: Of one collective, and of the start of all processes.
LIMIT = datetime.timedelta(seconds=120)
ALL_REDUCE = "one all-reduce of 5 numbers"


def contenders(device: torch.device) -> list[Contender]:
    """Ours on its preferred backend with all that it shares over ranks, torch's fused AdamW with its own clipping."""
    ours = next(name for name, reason in available_backends(device).items() if reason is None)
    names = (f"ours-{ours}", f"ours-{ours}+greedy", f"ours-{ours}+clip", f"ours-{ours}+clip+greedy")
    return [Contender.parse(name) for name in (*names, "torch-fused", "torch-fused+clip")]


def on_rank(rank: int, folder: str, device: torch.device, config: dict[str, Any]) -> None:
    """What one process does; the first leaves the result file in the folder."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    on_gpu = device.type == "cuda"
    if on_gpu:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    world = config["world"]
    store = dist.FileStore(f"{folder}/store", world)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=LIMIT)
    work = Workload(Shapes("", "", ((ELEMENTS,),) * config["tensors"]), MIXES["fp32"], device)
    shard(work, init_device_mesh(device.type, (world,)))
    five = torch.zeros(5, dtype=torch.float64, device=device)
    steps: dict[str, Any] = {ALL_REDUCE: lambda: dist.all_reduce(five, async_op=True).wait()}
    steps |= {contender.name: peers.build(contender, work).step for contender in contenders(device)}
    clock = harness.CudaClock(device, cold=False, device_time=False) if on_gpu else harness.CpuClock(cold=False)
    rounds = (config["rounds"],) * 2  # the same number on every rank, or they would wait for each other forever
    times = harness.compare(steps, clock, seconds=math.inf, rounds=rounds)
    if rank == 0:
        write(times, device, config, Path(folder))
    dist.barrier()
    dist.destroy_process_group()


def write(times: dict[str, list[harness.Sample]], device: torch.device, config: dict[str, Any], folder: Path) -> None:
    """A record per contender."""
    found = report.Report("ranks", device, config)
    for name, samples in times.items():
        host = [sample.host for sample in samples]
        base = None if name == ALL_REDUCE else "torch-fused" + "+clip" * ("+clip" in name)
        ratio = Spread.of_ratios([sample.host for sample in times[base]], host).as_dict() if base else None
        found.add(contender=name, base=base, us_per_step=Spread.of(host).scaled(1e6).as_dict(), ratio=ratio)
    found.write(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host.ranks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\nTimes are those of the first rank, kernels included on a CPU; one thread per process. "
        "Columns: benchmarks/README.md.",
    )
    options.add_common(parser, "ranks")
    parser.add_argument("--world", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--tensors", type=int, default=300, metavar="N", help="DTensors (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="of all contenders (default: %(default)s)")
    arguments = parser.parse_args(argv)
    device, config = options.common(arguments)
    for name in ("world", "tensors", "rounds"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"--{name}: got {getattr(arguments, name)}, allowed are numbers above 0")
    if device.type == "cuda" and arguments.world > torch.cuda.device_count():
        raise SystemExit(f"--world: got {arguments.world}, allowed are the {torch.cuda.device_count()} GPUs here")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, device, config), nprocs=arguments.world)
        found = report.load(Path(folder) / "ranks.json")
    again = report.Report("ranks", device, config)
    again.records, again.environment = found["records"], found["environment"]
    rows = [
        [r["contender"], report.number(r["us_per_step"]["median"]), report.number(r["ratio"] and r["ratio"]["median"])]
        for r in again.records
    ]
    title = f"microseconds per step of {arguments.tensors} DTensors on {arguments.world} ranks, median"
    report.print_table(title, ["", "us", "x torch fused"], rows)
    options.report_paths(again.write(arguments.out))


if __name__ == "__main__":
    main()
