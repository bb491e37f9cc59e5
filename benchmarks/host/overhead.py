"""What a step costs the host: many tensors of 64 elements, as plain tensors and as DTensors (FSDP2's parameters)."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import harness, options, report
from benchmarks.cases import peers
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.peers import Built, Contender
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload
from greedylr_fused import available_backends
from greedylr_fused.commands.bench import Spread

#: Numbers of tensors. The first steps of torch's optimizers over 1,000 DTensors take a minute, over 10,000 many (they
#: decide how each list of operands is laid out): those are for who asks for them.
COUNTS = {"plain": [10, 100, 300, 1000, 10_000], "dtensor": [10, 100, 300]}
FULL = {kind: [10, 100, 300, 1000, 10_000] for kind in COUNTS}
ELEMENTS = 64


def contenders(device: torch.device) -> list[Contender]:
    """Ours on its preferred backend, torch's two fast ones; with and without clipping."""
    ours = next(name for name, reason in available_backends(device).items() if reason is None)
    families = (f"ours-{ours}", "torch-fused", "torch-foreach")
    return [Contender.parse(family + clip) for clip in ("", "+clip") for family in families]


@contextlib.contextmanager
def mesh(device: torch.device) -> Iterator[Any]:
    """A mesh of this process alone; gloo on a CPU, NCCL on a GPU."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        yield init_device_mesh(device.type, (1,))
    finally:
        dist.destroy_process_group()


def shard(work: Workload, over: Any) -> None:
    """Turn parameters, gradients and moments into DTensors over the same memory."""
    from torch.distributed.tensor import DTensor, Shard

    def sharded(tensor: Tensor) -> Tensor:
        return DTensor.from_local(tensor, over, [Shard(0)])

    grads = [param.grad for param in work.params]
    work.params = [torch.nn.Parameter(sharded(param.detach())) for param in work.params]
    for param, grad in zip(work.params, grads, strict=True):
        param.grad = sharded(grad)
    work.moments = [{name: sharded(moment) for name, moment in moments.items()} for moments in work.moments]


def measure_case(
    count: int,
    kind: str,
    over: Any,
    device: torch.device,
    seconds: float,
    found: report.Report,
    on_round: Callable[[float], object] | None = None,
) -> None:
    """Add a record per contender for so many tensors.

    Args:
        count: tensors.
        kind: one of COUNTS.
        over: the mesh of DTensors, None for plain tensors.
        device: where the tensors are.
        seconds: for all contenders together.
        found: takes the records.
        on_round: see `harness.compare`.
    """
    if device.type == "cpu" and torch.get_num_threads() > 1:
        with harness.one_thread():
            return measure_case(count, kind, over, device, seconds, found, on_round)
    work = Workload(Shapes(f"{count}x{ELEMENTS}", "", ((ELEMENTS,),) * count), MIXES["fp32"], device)
    if kind == "dtensor":
        shard(work, over)
    built: dict[str, Built] = {}
    for contender in contenders(device):
        try:
            built[contender.name] = peers.build(contender, work)
        except (peers.NotOffered, TypeError) as error:
            found.leave_out(f"{kind}: {contender.name}", str(error))
    on_gpu = device.type == "cuda"
    clock = harness.CudaClock(device, cold=False, device_time=False) if on_gpu else harness.CpuClock(cold=False)
    steps = {name: one.step for name, one in built.items()}
    limits = {"seconds": seconds, "longest": 3 * seconds}
    times = harness.compare(steps, clock, **limits, rounds=(6, 1000), warmup=1, on_round=on_round)
    for name, samples in times.items():
        host, base = [sample.host for sample in samples], times[Contender.parse(name).base.name]
        found.add(
            kind=kind,
            tensors=count,
            contender=name,
            base=Contender.parse(name).base.name,
            us_per_step=Spread.of(host).scaled(1e6).as_dict(),
            us_per_tensor=Spread.of(host).scaled(1e6 / count).as_dict(),
            ratio=Spread.of_ratios([sample.host for sample in base], host).as_dict(),
        )


def run(
    cases: dict[str, list[int]],
    device: torch.device,
    seconds: float,
    config: dict[str, Any],
    out: Path | None = None,
    until: float = math.inf,
) -> report.Report:
    """All cases, with a progress bar.

    Args:
        cases: numbers of tensors by kind.
        device: where.
        seconds: per case.
        config: for the result file.
        out: folder to write it to after every case.
        until: after this `time.monotonic()` no case is begun.
    """
    found = report.Report("host_overhead", device, config | {"cases": cases})
    with report.Progress("host_overhead", sum(map(len, cases.values()))) as progress:
        for kind, counts in cases.items():
            with contextlib.ExitStack() as stack:
                over = None
                if kind == "dtensor":
                    if not dist.is_available() or not (dist.is_nccl_available() or device.type == "cpu"):
                        found.leave_out("dtensor", f"torch {torch.__version__} is built without its process groups")
                        continue
                    over = stack.enter_context(mesh(device))
                for count in counts:
                    progress.case(f"{count} {kind} tensors")
                    if time.monotonic() > until:
                        found.leave_out(f"{count} {kind} tensors", report.OVER)
                    else:
                        measure_case(count, kind, over, device, seconds, found, progress.part)
                    progress.end_case()
                    if out is not None:
                        found.write(out)
    return found


def print_report(records: list[report.Record]) -> None:
    """A row per contender and kind, a column per number of tensors."""
    counts = sorted({record["tensors"] for record in records})
    rows = []
    for kind, name in dict.fromkeys((record["kind"], record["contender"]) for record in records):
        own = {r["tensors"]: r for r in records if (r["kind"], r["contender"]) == (kind, name)}
        cells = [
            f"{report.number(own[n]['us_per_step']['median'])} ({own[n]['ratio']['median']:.1f}x)" if n in own else "-"
            for n in counts
        ]
        largest = own[max(own)]["us_per_tensor"]["median"]
        rows.append([f"{kind} {name}", *cells, report.number(largest)])
    columns = ["", *(f"{n:,} tensors" for n in counts), "per tensor"]
    report.print_table("host microseconds per step (times torch fused), median", columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host.overhead",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\nCaches are warm, the queue is empty before each step. Contenders: ours on its "
        "preferred backend,\ntorch fused and foreach, with and without clipping. On a CPU: one thread. Columns: "
        "benchmarks/README.md.",
    )
    options.add_common(parser, "host_overhead")
    parser.add_argument("--full", action="store_true", help="up to 10,000 DTensors, too; takes long")
    listed = "; ".join(f"{kind} {', '.join(map(str, counts))}" for kind, counts in COUNTS.items())
    parser.add_argument("--counts", metavar="A,B", help=f"numbers of tensors (default: {listed})")
    parser.add_argument("--kinds", metavar="A,B", help=f"of {', '.join(COUNTS)} (default: both)")
    parser.add_argument("--seconds", type=float, default=3.0, help="per case (default: %(default)s)")
    arguments = parser.parse_args(argv)
    device, config = options.common(arguments)
    given = arguments.counts.split(",") if arguments.counts else []
    if not all(n.strip().isdigit() and int(n) for n in given):
        raise SystemExit(f"--counts: got {arguments.counts}, allowed are numbers above 0 with commas between")
    counts = [int(n) for n in given] or None
    kinds = options.chosen(arguments.kinds, list(COUNTS), list(COUNTS), "kinds")
    usual = FULL if arguments.full else COUNTS
    found = run({kind: counts or usual[kind] for kind in kinds}, device, arguments.seconds, config, arguments.out)
    print_report(found.records)
    options.print_left_out(found)
    options.report_paths(found.write(arguments.out))


if __name__ == "__main__":
    main()
