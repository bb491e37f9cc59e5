"""The stages of `make gpu-check`: which processes, with which limits, side by side or alone."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.outcome import counted
from benchmarks.gpu.runner import Command, Stage

ROOT = Path(__file__).resolve().parent.parent.parent
#: What is checked on each kind of device; the CPU is for rehearsals.
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
#: A failure that says this is of the environment, not of what is checked.
_MISSING = ("No module named pytest", *(f"No module named '{name}'" for name in ("hypothesis", "pytest_timeout")))
_MISSING += ("No module named 'transformers'",)
_NO_SANITIZER = ("Device not supported", "Unable to find injection library", "No attachable process found")


class Machine:
    """The interpreter, its environment and where results go.

    Args:
        out: folder of the results.
        device: "cuda", or "cpu" to rehearse.
    """

    def __init__(self, out: Path, device: str = "cuda") -> None:
        self.out, self.device, self.backends = out, device, BACKENDS[device]
        self.site = ROOT / "build" / "gpu-check-site"
        path = os.pathsep.join(filter(None, [str(ROOT), str(self.site), os.environ.get("PYTHONPATH", "")]))
        programs = os.pathsep.join([str(self.site / "bin"), os.environ.get("PATH", os.defpath)])
        own = {"PYTHONPATH": path, "PATH": programs, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self.env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | own

    @functools.cached_property
    def reasons(self) -> dict[str, str | None]:
        """Why each backend cannot run on the device, or None; asked after the build."""
        found = self.ask(
            f"import json, greedylr_fused; print(json.dumps(greedylr_fused.available_backends({self.device!r})))"
        )
        known = json.loads(found) if found else {}
        other = "there is no such backend" if found else "greedylr_fused cannot be imported"
        return {name: known.get(name, other) for name in self.backends}

    @property
    def usable(self) -> list[str]:
        """Backends that can run."""
        return [name for name, reason in self.reasons.items() if reason is None]

    def ask(self, code: str) -> str:
        """What a process prints, empty if it fails."""
        command = [sys.executable, "-c", code]
        try:
            done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def environment(self) -> dict[str, Any]:
        """Device, versions, commit."""
        return json.loads(self._stamp or "{}")

    @functools.cached_property
    def _stamp(self) -> str:
        return self.ask(
            "import json, torch; from benchmarks import environment\n"
            f"print(json.dumps(environment.stamp(torch.device({self.device!r}))))"
        )

    def highlights(self) -> list[str]:
        """What the benchmarks found, in a few lines."""
        lines = self.ask(f"from benchmarks.gpu import summary; summary.print_highlights({str(self.out)!r})")
        return lines.splitlines()

    def python(self, *arguments: object, limit: float, **options: Any) -> Command:
        """A process of this interpreter."""
        return Command([sys.executable, *map(str, arguments)], limit, **options)

    def pytest(self, *arguments: str, limit: float, fine: tuple[int, ...] = (0,)) -> Command:
        """Tests, without the plugins that happen to be installed; a warning of the versions at hand fails none."""
        fixed = ("-q", "--exhaustive", "--no-header", "--tb=short", "-rfE", "-W", "default", "-p", "no:cacheprovider")
        fixed += ("-p", "pytest_timeout", "--timeout", "100")
        return self.python("-m", "pytest", *fixed, *arguments, limit=limit, unusable=_MISSING, fine=fine)

    def for_backends(self, *files: str, limit: float) -> list[Command] | str:
        """Tests marked gpu in these files, a process per backend that can run."""
        chosen = {name: ("-m", "gpu", "-k", f"by-{name}") for name in self.usable}
        if self.device == "cpu":
            chosen = dict.fromkeys(self.usable, ("-k", "rehearsal"))
        return [self.pytest(*files, *which, limit=limit) for which in chosen.values()] or self._none_usable()

    def conformance(self, backend: str) -> list[Command] | str:
        """A process per file: so many can run side by side, since they wait for the host more than for the GPU."""
        if (reason := self.reasons.get(backend, "not on this device")) is not None:
            return reason
        large = "not 2_to_the_31"  # has a stage of its own, which has the memory for itself
        options = ("--device", self.device, "--backend", backend, "--control-steps", "3000", "-k", large)
        files = sorted((ROOT / "tests" / "conformance").glob("test_*.py"))
        return [self.pytest(f"tests/conformance/{file.name}", *options, limit=150) for file in files]

    def sanitizer(self, tool: str) -> list[Command] | str:
        """compute-sanitizer around a small case, per backend."""
        program = find_sanitizer()
        if program is None:
            return "compute-sanitizer is neither on PATH nor under CUDA_HOME or /usr/local/cuda"
        # API errors are not ours: PyTorch tries calls that may fail. Without its cache every tensor ends where its
        # memory ends, so that one element too many is seen.
        options = ("--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", "--target-processes", "all")
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return [
            Command(
                [program, *options, sys.executable, "tests/gpu/sanitized.py", "--backend", backend],
                limit=100,
                env=env,
                unusable=_NO_SANITIZER,
            )
            for backend in self.usable
        ] or self._none_usable()

    def benchmark(self, name: str, *arguments: str, limit: float) -> list[Command]:
        """A module of benchmarks/, which writes its own file."""
        fixed = ("-m", f"benchmarks.{name}", "--device", self.device, "--out", self.out)
        return [self.python(*fixed, *arguments, limit=limit)]

    def _none_usable(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())


def find_sanitizer() -> str | None:
    """The program, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / folder for home in homes if home for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or next(
        (str(place / "compute-sanitizer") for place in places if (place / "compute-sanitizer").exists()), None
    )


#: Arguments: device and the backends that have to be on.
_USABLE = """
import sys
from greedylr_fused import available_backends
from greedylr_fused.commands.doctor import main
main()
found = available_backends(sys.argv[1])
off = {name: found.get(name, "there is no such backend") for name in sys.argv[2:]}
sys.exit("; ".join(f"{name} is off: {why}" for name, why in off.items() if why) or 0)
"""


def groups(machine: Machine) -> list[tuple[int, list[Stage]]]:
    """Groups of stages in their order, each with how many processes may run side by side."""
    m = machine
    cores = max(2, min(12, (os.cpu_count() or 2) - 2))
    graphs = [f"tests/gpu/test_gpu_{name}.py" for name in ("graphs", "captured_step")]
    others = ["amp", "errors", "agreement", "control", "distributed", "spikes", "search", "backup", "telemetry"]
    others = [f"tests/gpu/test_gpu_{name}.py" for name in others]
    apart = ("--ignore=tests/gpu", "--ignore=tests/conformance")
    apart += ("--deselect=tests/backends/test_triton_interpreter.py::test_conformance_on_the_gpu",)

    def all_on(_: str) -> str:
        return f"{' and '.join(m.backends)} on"

    return [
        (1, [Stage("build", lambda: [m.python("setup.py", "build_ext", "--inplace", limit=150)], _last_line)]),
        (1, [Stage("backends", lambda: [m.python("-c", _USABLE, m.device, *m.backends, limit=60)], all_on)]),
        (
            cores,
            [
                Stage("graph capture", lambda: m.for_backends(*graphs, limit=100)),
                Stage("sync-debug, launches", lambda: m.for_backends("tests/gpu/test_gpu_host.py", limit=100)),
                Stage("AMP, errors, control, ranks, telemetry", lambda: m.for_backends(*others, limit=120)),
                Stage(
                    "other GPU tests",
                    lambda: [m.pytest("tests", "-m", "gpu", *apart, limit=100, fine=(0, 5))],
                    _or_none,
                ),
                *(Stage(f"conformance, {name}", lambda name=name: m.conformance(name)) for name in m.backends),
            ],
        ),
        # A test holds up the default stream for seconds, and would wait for others' turns on the GPU.
        (2, [Stage("streams", lambda: m.for_backends("tests/gpu/test_gpu_streams.py", limit=60))]),
        # One at a time has room for 34 GiB.
        (1, [Stage("beyond 2^31 elements", lambda: m.for_backends("tests/gpu/test_gpu_large.py", limit=60))]),
        (
            4,
            [
                Stage("memcheck", lambda: m.sanitizer("memcheck"), _sanitized),
                Stage("racecheck", lambda: m.sanitizer("racecheck"), _sanitized),
            ],
        ),
        *((1, [stage]) for stage in _benchmarks(m)),
        (1, [Stage("figure", lambda: [m.python("-m", "benchmarks.gpu.summary", m.out, limit=40)], _last_line)]),
    ]


def _benchmarks(m: Machine) -> list[Stage]:
    large = "matrix-1e9,gpt2-124m,10000x64" if m.device == "cuda" else "1000x64x64"
    asked: list[tuple[str, str, list[str], float]] = [
        ("roofline", "throughput.roofline", ["--seconds", "1"], 60),
        (
            "throughput",
            "throughput.optimizer_step",
            ["--shapes", large, "--mixes", "fp32,bf16,bf16-int16-8bit", "--seconds", "2"],
            150,
        ),
        ("host overhead", "host.overhead", ["--seconds", "1"], 60),
        ("control cost", "host.control_cost", ["--seconds", "3"], 50),
        ("training step", "throughput.train_step", ["--seconds", "4"], 60),
    ]
    return [
        Stage(
            name,
            lambda module=module, options=options, limit=limit: m.benchmark(module, *options, limit=limit),
            _last_line,
        )
        for name, module, options, limit in asked
    ]


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:100] if lines else ""


def _or_none(output: str) -> str:
    return counted(output) or "there are none"


def _sanitized(output: str) -> str:
    found = [line.split("SUMMARY:")[1].strip() for line in output.splitlines() if "SUMMARY:" in line]
    return "; ".join(found)
