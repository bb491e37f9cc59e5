"""One optimizer step: models' shapes x types x contenders, beside the memory's own speed and torch's fused AdamW."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import harness, options, report
from benchmarks.cases import peers
from benchmarks.cases.mixes import MIXES, Mix
from benchmarks.cases.peers import Built, Contender
from benchmarks.cases.shapes import NAMES, Shapes, shapes
from benchmarks.cases.workload import Workload, bytes_available, bytes_needed, peak_bytes, unsupported, without_groups
from benchmarks.harness import OnRound, Sample
from benchmarks.options import Asked
from benchmarks.report import Report
from benchmarks.throughput import roofline
from benchmarks.throughput.presets import FEW, PRESETS
from benchmarks.throughput.rates import ROOFLINE, rates


def measure(
    name: str, mix: Mix, contenders: list[Contender], asked: Asked, found: Report, on_round: OnRound | None = None
) -> None:
    """Time all contenders that can run, and add a record for each; what cannot is left out with its reason."""
    which, device, seconds = shapes(name), asked.device, asked.seconds
    case = f"{name} {mix.name}"
    needed, free = bytes_needed(which, mix) + peers.own_state_bytes(contenders, which.elements), bytes_available(device)
    why = unsupported(mix) or without_groups(which, mix)
    if why is None and needed > free:
        why = f"needs {needed / 2**30:.1f} GiB with temporaries, {free / 2**30:.1f} GiB are free"
    if why is not None:
        found.leave_out(case, why)
        return
    work = Workload(which, mix, device)

    def refuse(name: str, reason: str) -> None:
        found.leave_out(f"{case} {name}", reason)

    built = _affordable(_build(work, contenders, refuse), device, seconds, refuse)
    clock = harness.clock_for(device)
    steps = {name: one.step for name, one in built.items()}
    try:
        form, steps[ROOFLINE] = roofline.best(work, clock, seconds / 8)
    except RuntimeError as error:
        found.leave_out(f"{case} {ROOFLINE}", str(error))
    times = harness.compare(steps, clock, seconds=seconds, longest=3 * seconds, warmup=0, on_round=on_round)
    host_us = _host_us(which, mix, contenders, seconds / 4) if device.type == "cpu" else _host_us_of(times)
    if ROOFLINE in times:
        moved = roofline.bytes_moved(work)
        rate = report.spread([moved / roofline.device_seconds(sample) / 1e9 for sample in times[ROOFLINE]])
        ms = report.spread([sample.step for sample in times[ROOFLINE]], 1e3)
        found.add(**_of_case(which, mix, ROOFLINE), ms=ms, gb_per_s=rate, remark=form)
    for name, one in built.items():
        found.add(
            **_of_case(which, mix, name),
            **rates(times, name, work, one.traffic_known),
            host_us=host_us.get(name),
            state_bytes_per_parameter=round(peers.state_bytes(one) / which.elements, 3),
            peak_bytes=peak_bytes(one.step, device),
            remark=one.remark,
        )


def _of_case(which: Shapes, mix: Mix, contender: str) -> dict[str, Any]:
    return {
        "shapes": which.name,
        "tensors": len(which.sizes),
        "parameters": which.elements,
        "mix": mix.name,
        "contender": contender,
    }


def _build(
    work: Workload, contenders: list[Contender], refuse: Callable[[str, str], object] | None = None
) -> dict[str, Built]:
    built = {}
    for contender in contenders:
        try:
            built[contender.name] = peers.build(contender, work)
        except harness.NotOffered as reason:
            if refuse is not None:
                refuse(contender.name, str(reason))
    return built


def _affordable(
    built: dict[str, Built], device: torch.device, seconds: float, refuse: Callable[[str, str], object]
) -> dict[str, Built]:
    """Warms all up by a step more, and keeps those that leave time to the others."""
    kept = {}
    for name, one in built.items():
        begin = time.perf_counter()
        one.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - begin
        if took <= max(seconds, 2.0):
            kept[name] = one
        else:
            refuse(name, f"one step took {took:.1f} s, more than there is for the case; give it more with --seconds")
    return kept


def _host_us_of(times: dict[str, list[Sample]]) -> dict[str, dict[str, float]]:
    return {name: report.spread([s.host for s in samples], 1e6) for name, samples in times.items()}


def _host_us(which: Shapes, mix: Mix, contenders: list[Contender], seconds: float) -> dict[str, dict[str, float]]:
    """On a CPU the host is the device: its own time shows with as many tensors of one element each."""
    work = Workload(Shapes(which.name, which.about, ((1,),) * len(which.sizes)), mix, torch.device("cpu"))
    with harness.one_thread():
        steps = {name: one.step for name, one in _build(work, contenders).items()}
        limits = {"seconds": seconds, "longest": 2 * seconds}
        return _host_us_of(harness.compare(steps, harness.CpuClock(cold=False), **limits, rounds=(6, 100), warmup=1))


def print_report(found: Report) -> None:
    """One table of all records."""
    columns = ["shapes, types", "contender", "ms", "(p20-p80)", "GB/s", "of roofline", "x torch fused", "host us"]
    columns += ["state B/param", "peak MB"]
    rows, last = [], ""
    for record in found.records:
        case = f"{record['shapes']} {record['mix']}"
        rows.append(["" if case == last else case, *_cells(record)])
        last = case
    report.print_table("step throughput", columns, rows)


def _cells(record: report.Record) -> list[str]:
    def median(key: str, scale: float = 1.0) -> str:
        value = record.get(key)
        return report.number(value["median"] * scale if value else None)

    ms = record.get("device_ms") or record["ms"]
    share = record.get("share_of_roofline")
    ratio = record.get("ratio_device") or record.get("ratio")
    peak = record.get("peak_bytes")
    return [
        record["contender"],
        report.number(ms["median"]),
        f"({report.number(ms['p20'])}-{report.number(ms['p80'])})",
        median("gb_per_s"),
        f"{100 * share['median']:.0f} %" if share else "-",
        f"{ratio['median']:.2f}" if ratio else "-",
        median("host_us"),
        report.number(record.get("state_bytes_per_parameter")),
        report.number(peak / 1e6) if peak is not None else "-",
    ]


def run(cases: dict[str, list[str]], contenders: list[str], asked: Asked) -> Report:
    """All cases.

    Args:
        cases: mixes by the name of shapes.
        contenders: names; what a ratio or share needs is measured along with them.
        asked: with the seconds per case, warm-up not counted.
    """
    parsed = [Contender.parse(name) for name in contenders]
    needed = list(dict.fromkeys([*parsed, *(contender.base for contender in parsed)]))
    config = asked.config | {"cases": cases, "contenders": [contender.name for contender in needed]}
    found = Report("step_throughput", asked.device, config)
    parts = {
        f"{name} {mix}": functools.partial(measure, name, MIXES[mix], needed, asked, found)
        for name, mixes in cases.items()
        for mix in mixes
    }
    return options.measure(found, parts, asked)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "throughput.optimizer_step",
        "step_throughput.json",
        f"{__doc__}\n\nprotocol and columns: benchmarks/README.md",
        epilog=f"shapes: {', '.join(NAMES)}\nmixes: {', '.join(MIXES)}\n"
        f"contenders: {', '.join(peers.FAMILIES)}\n  each with any of {', '.join('+' + o for o in peers.OPTIONS)}, "
        "as in ours-cpu+clip+greedy\n\nexample: python -m benchmarks.throughput.optimizer_step --shapes gpt2-124m \\\n"
        "  --mixes fp32,bf16 --contenders ours-cpu,torch-foreach --seconds 10",
    )
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--quick", action="store_true", help="preset for 2 cores and 8 GB, minutes; default on a CPU")
    preset.add_argument("--state", action="store_true", help="preset of 8-bit moments and masters beside peers")
    preset.add_argument("--full", action="store_true", help="everything that fits into memory; an hour or more")
    parser.add_argument("--shapes", metavar="A,B", help="only these, with the preset's mixes or else fp32 and bf16")
    parser.add_argument("--mixes", metavar="A,B", help="only these")
    parser.add_argument("--contenders", metavar="A,B", help="only these, and torch's fused AdamW doing the same work")
    parser.add_argument("--seconds", type=float, help="per case, besides setting up; default: the preset's, 2 to 20")
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    default = "gpu" if asked.device.type == "cuda" else "quick"
    name = next((name for name in PRESETS if getattr(arguments, name, False)), default)
    chosen = PRESETS[name]
    which = options.chosen(arguments.shapes, list(NAMES), list(chosen.cases), "shapes")
    mixes = options.chosen(arguments.mixes, list(MIXES), [], "mixes") if arguments.mixes else None
    cases = {name: mixes or chosen.cases.get(name, FEW) for name in which}
    contenders = options.names(arguments.contenders) if arguments.contenders else chosen.contenders
    asked = replace(asked, seconds=arguments.seconds or chosen.seconds)
    try:
        found = run(cases, contenders, asked)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    options.finish(found, asked, print_report)


if __name__ == "__main__":
    main()
