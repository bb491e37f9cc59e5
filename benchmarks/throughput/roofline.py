"""How fast the memory is for the traffic of a step: each mix's reads and writes without its arithmetic.

python -m benchmarks.throughput.roofline --help
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import harness, options, report
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import CODES, MOMENTS, SCALES, Workload, unsupported
from benchmarks.harness import OnRound
from benchmarks.options import Asked
from benchmarks.report import Report
from greedylr_fused.commands import doctor
from greedylr_fused.commands.bench import Spread

ROOT = Path(__file__).resolve().parent.parent.parent
#: Elements handed to a thread at a time; None: an equal share to each. The optimizer's own is 16,384.
_CPU_CHUNKS = (16_384, 65_536, None)
#: How many elements ahead lines are fetched, as the optimizer's general loop does; 0: they are not.
_CPU_AHEAD = (0, 128)
#: Elements whose scales take a cache line.
LINE_OF_SCALES = 1024
Roofline = Callable[[], object]


def candidates(workload: Workload, bits: int = 0) -> dict[str, Roofline]:
    """Every form of the roofline over the workload's buffers, by name. They change no value.

    Args:
        workload: whose.
        bits: of 64, those of the gradient that are let through to what is written, on a CPU: for tests.

    Raises:
        RuntimeError: it cannot be compiled here.
    """
    if workload.device.type == "cuda":
        from benchmarks.throughput import roofline_triton

        return roofline_triton.candidates(workload.flat, workload.mix)
    share = -(-workload.elements_with_padding // torch.get_num_threads())
    return {
        f"chunks of {chunk or share:,}" + (f", fetched {ahead} ahead" if ahead else ""): _on_cpu(
            workload, chunk or share, ahead, bits
        )
        for chunk in _CPU_CHUNKS
        for ahead in _CPU_AHEAD
    }


def bytes_moved(workload: Workload) -> int:
    """By one call of a roofline, padding included."""
    return math.ceil(workload.elements_with_padding * workload.mix.bytes_moved())


def best(workload: Workload, clock: harness.Clock, seconds: float = 1.0) -> tuple[str, Roofline]:
    """The fastest form on this machine, found by trying all."""
    forms = candidates(workload)
    found = harness.compare(forms, clock, seconds=seconds, rounds=(4, 20), warmup=1)
    name = min(forms, key=lambda name: Spread.of([device_seconds(sample) for sample in found[name]]).median)
    return name, forms[name]


def device_seconds(sample: harness.Sample) -> float:
    """What a rate is computed from: the device's own time where it can be told from the host's."""
    return sample.step if sample.device is None else sample.device


def _on_cpu(workload: Workload, chunk: int, ahead: int, bits: int) -> Roofline:
    flat, mix = workload.flat, workload.mix
    names = CODES if mix.eight_bit else MOMENTS[: mix.moments]
    others = [*(SCALES if mix.eight_bit else ()), *(["remainder"] if mix.remainder else [])]
    arrays = [(ctypes.c_void_p * 3)(*(flat[name].data_ptr() for name in group)) for group in (names, others)]
    sizes = (mix.param.itemsize, mix.grad.itemsize, mix.state.itemsize, mix.remainder.itemsize if mix.remainder else 0)
    unit = LINE_OF_SCALES if mix.eight_bit else 64
    whole = [ctypes.c_int64(-(-n // unit) * unit) for n in (workload.elements_with_padding - unit + 1, chunk)]
    call = functools.partial(
        library().roofline,
        ctypes.c_void_p(flat["param"].data_ptr()),
        ctypes.c_void_p(flat["grad"].data_ptr()),
        arrays[0],
        mix.moments,
        arrays[1],
        *sizes,
        *whole,
        ctypes.c_int64(ahead),
        ctypes.c_uint64(bits),
    )

    def roofline() -> None:
        if call(torch.get_num_threads()):
            raise RuntimeError(f"roofline.cpp: expected a mix that it was compiled for, got {mix.name!r}; add it there")

    return roofline


@functools.cache
def library() -> ctypes.CDLL:
    """`roofline.cpp`, compiled with the flags of the instruction set that the optimizer's own loops run in.

    Raises:
        RuntimeError: there is no compiler, or it reports an error.
    """
    sys.path.insert(0, str(ROOT / "csrc"))
    try:
        import native_build as native
    finally:
        sys.path.pop(0)
    try:
        compiler = native.find_compiler()
    except native.NoCompiler as missing:
        raise RuntimeError(f"the roofline is C++: {missing}") from None
    isa = doctor.findings()["instruction set"].split(",")[0]
    flags = native.X86_ISAS.get(isa, ())
    build = ROOT / "build" / f"benchmarks-{sys.platform}-{platform.machine()}-{isa.split()[0]}"
    native.build(
        compiler,
        [
            native.Object(str(Path(__file__).with_name("roofline.cpp")), "roofline", flags),
            native.Object("cpu/threads.cpp", "threads"),
        ],
        build / "roofline.so",
        build,
        link_flags=("-shared", "-pthread", "-ldl"),
    )
    return ctypes.CDLL(str(build / "roofline.so"))


def run(elements: int, asked: Asked) -> Report:
    """A record of copying, and one per mix, over so many elements each."""
    found = Report("roofline", asked.device, asked.config)
    cases = {name: functools.partial(_measure, name, elements, asked, found) for name in ("copy", *MIXES)}
    return options.measure(found, cases, asked)


def _measure(name: str, elements: int, asked: Asked, found: Report, on_round: OnRound | None = None) -> None:
    clock = harness.clock_for(asked.device)
    if name == "copy":
        form, step, moved = "torch's copy_", _copy(elements, asked.device), 8 * elements
    elif why := unsupported(MIXES[name]):
        return found.leave_out(name, why)
    else:
        workload = Workload(Shapes("flat", "", ((elements // 64, 64),)), MIXES[name], asked.device)
        form, step = best(workload, clock, asked.seconds / 2)
        moved = bytes_moved(workload)
    limits = {"seconds": asked.seconds, "rounds": (10, 200)}
    samples = harness.compare({name: step}, clock, **limits, on_round=on_round)[name]
    rates = [moved / device_seconds(sample) / 1e9 for sample in samples]
    found.add(traffic=name, form=form, bytes=moved, gb_per_s=report.spread(rates))


def _copy(elements: int, device: torch.device) -> harness.Step:
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def print_report(found: Report) -> None:
    """The table of bytes and rates."""
    rows = []
    for record in found.records:
        mix, rate = MIXES.get(record["traffic"]), record["gb_per_s"]
        read, written = (4, 4) if mix is None else (mix.bytes_read, mix.bytes_written)
        rates = [report.number(rate[key]) for key in ("median", "p20", "p80")]
        moved = (f"{n:g}" for n in (read, written, read + written))
        rows.append([record["traffic"], *moved, *rates, record["form"]])
    columns = ["traffic", "B read", "B written", "B moved", "GB/s", "p20", "p80", "best form"]
    report.print_table(f"roofline on {found.environment['device']}", columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = options.parser(
        "throughput.roofline",
        "roofline.json",
        __doc__.split("\n")[0] + "\nWrites roofline.json and prints GB/s (1e9 bytes) beside plain copying.",
        seconds=5.0,
    )
    parser.add_argument("--elements", type=int, help="per array; default: 5e7 on a CPU, 2.5e8 on a GPU")
    arguments = parser.parse_args(argv)
    asked = Asked.of(arguments)
    elements = arguments.elements or (250_000_000 if asked.device.type == "cuda" else 50_000_000)
    options.finish(run(elements, asked), asked, print_report)


if __name__ == "__main__":
    main()
