"""What follows from times: rates, shares and ratios, always of times from the same rounds."""

from __future__ import annotations

from typing import Any

from benchmarks.cases.peers import Contender
from benchmarks.cases.workload import Workload
from benchmarks.harness import Sample
from benchmarks.report import spread
from benchmarks.throughput import roofline
from greedylr_fused.commands.bench import Spread

#: Its name among the times.
ROOFLINE = "roofline"


def rates(times: dict[str, list[Sample]], name: str, work: Workload, traffic_known: bool = True) -> dict[str, Any]:
    """The entries of one contender's record.

    Args:
        times: of all contenders, as from `harness.compare`.
        name: which.
        work: what it ran over.
        traffic_known: whether the bytes that it moves are those of the mix.
    """
    contender, samples = Contender.parse(name), times[name]
    result: dict[str, Any] = {"ms": spread([sample.step for sample in samples], 1e3)}
    device = [sample.device for sample in samples if sample.device is not None]
    result["device_ms"] = spread(device, 1e3) if device else None
    moved = work.bytes_per_parameter(clip="clip" in contender.options)
    seconds = [roofline.device_seconds(sample) for sample in samples]
    gigabytes = work.shapes.elements * moved / 1e9
    result["bytes_per_parameter"] = moved if traffic_known else None
    result["gb_per_s"] = spread([gigabytes / s for s in seconds]) if traffic_known else None
    result["share_of_roofline"] = None
    if traffic_known and ROOFLINE in times:
        factor = gigabytes * 1e9 / roofline.bytes_moved(work)
        floor = [roofline.device_seconds(sample) * factor for sample in times[ROOFLINE]]
        result["share_of_roofline"] = Spread.of_ratios(floor, seconds).as_dict()
    base = contender.base.name
    result["base"], result["ratio"], result["ratio_device"] = base, None, None
    if base in times:
        pairs = list(zip(times[base], samples, strict=True))
        result["ratio"] = spread([b.step / own.step for b, own in pairs])
        if device:
            of_device = [(roofline.device_seconds(b), roofline.device_seconds(own)) for b, own in pairs]
            result["ratio_device"] = spread([b / own for b, own in of_device])
    return result
