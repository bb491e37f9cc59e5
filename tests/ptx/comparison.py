"""Steps taken side by side, by the kernels from their PTX and by the `cpu` backend, and compared bit for bit."""

from dataclasses import dataclass

import numpy as np
import pytest
from support import emulated

from ptx.arena import with_one_nan
from ptx.device import FAST, Device
from ptx.grid import Execution
from ptx.names import SLOT, DType
from ptx.problem import SPIKES, Problem, name_of_slot

SUMS = ("grad_sq_sum", "grad_abs_sum", "grad_nonfinite")
VECTORS = ("control", "steps")
SUM_TOLERANCE = 1e-13  # relative; the cpu backend adds up in another order


@dataclass(frozen=True)
class Step:
    """What happens in one step.

    Attributes:
        loss: sum of losses, of `weight`.
        limit: of the gradients' norm.
        scale: the loss scale.
        gradients: their size; None: those that are there.
        bad: a gradient element, if it is not to be a finite one.
        measures: whether the norm is.
        apart: whether clip and control are launches of their own, as where ranks are waited for.
        lies: the type of a second loss, read in place, of the first one's value.
    """

    name: str
    loss: float
    weight: float = 2.0
    limit: float = np.inf
    scale: float = 1.0
    gradients: float | None = 1.0
    bad: float | None = None
    skips: bool = False
    found_inf: bool = False
    measures: bool = True
    apart: bool = False
    lies: DType | None = None


STEPS = [
    Step("plain", 2.0, gradients=None, measures=False, lies=DType.F32),
    Step("clipped", 0.9, limit=0.5, scale=4.0, lies=DType.BF16),
    Step("skipped for one that is not finite", 3.1, bad=np.nan, skips=True, lies=DType.F64),
    Step("norm measured apart", 5.3, weight=0.0, limit=0.5, gradients=1e-2, apart=True, lies=DType.F16),
    Step("found_inf", -0.2, found_inf=True, measures=False),
    Step("NaN, not skipped", 3.1, bad=np.nan),
]


class Comparison:
    """Two equal problems, one for each side; `ratio` is the device's, of its speed at float to that at double."""

    def __init__(
        self, device: Device, execution: Execution, problem: Problem, equal: Problem, ratio: int = FAST
    ) -> None:
        device.set_up(ratio=ratio)
        emulated.set_ratio(ratio)
        self.cpu_module = pytest.importorskip("greedylr_fused._cpu", reason="the cpu backend was not built")
        self.device = device
        self.ours, self.theirs = problem, equal
        own = {name: problem.addresses[name] for name in ("scratch", "snapshot")}
        self.table = device.native.TensorTable(**problem.table(), **own, device=0)
        self.cpu_table = self.cpu_module.TensorTable(**equal.table())
        self.summed = Summed(problem)
        device.execution = execution

    def set_schedule(self, slots: dict[str, float]) -> None:
        for problem in (self.ours, self.theirs):
            for slot, value in slots.items():
                problem[slot] = value

    def take(self, step: Step) -> None:
        for problem in (self.ours, self.theirs):
            if step.gradients is not None:
                problem.new_gradients(step.gradients, step.bad)
            problem["loss_sum"], problem["loss_weight"] = step.loss, step.weight
            problem["max_grad_norm"], problem["grad_scale"] = step.limit, step.scale
            problem["skip_nonfinite"], problem["found_inf"] = float(step.skips), float(step.found_inf)
            problem["spike_window"] = SPIKES if step.apart or step.found_inf else 0.0  # the clip alone skips them
        if step.measures:
            self._measure(step)
        if step.apart or step.found_inf:
            self.device.run(self.table.clip, 0)
        if step.measures or step.found_inf:
            self.cpu_table.clip()
            self._check_vectors(f"{step.name}, decided")
        losses = [problem.loss(step.lies, step.loss) for problem in (self.ours, self.theirs)]
        closing, cpu_closing = losses if not step.apart else [(0, 0)] * 2
        self.device.run(self.table.update, 0, not step.apart, *closing)
        self.cpu_table.update(1, not step.apart, *cpu_closing)
        if step.apart:
            self.device.run(self.table.control, 0, *losses[0])
            self.cpu_table.control(*losses[1])
        self._check_vectors(step.name)
        self._check_snapshot(step.name)
        self._check_elements(step.name)
        assert self.ours.arena.guards_intact(), f"{step.name}: something was written between the arrays"

    def _measure(self, step: Step) -> None:
        emulated_sums = self.summed.by_emulation(self.ours)
        self.device.run(self.table.measure, 0, not step.apart)
        self.cpu_table.measure(1, False)
        for name in SUMS:
            sums = self.ours[name], self.theirs[name]
            assert same(sums[0], emulated_sums[name]), f"{step.name}: {name} {sums[0]}, emulated {emulated_sums[name]}"
            assert close(name, *sums), f"{step.name}: {name} {sums[0]}, on the cpu {sums[1]}"
            self.theirs[name] = sums[0]

    def _check_vectors(self, when: str) -> None:
        for name in VECTORS:
            ours, theirs = self.ours.views[name], self.theirs.views[name]
            bad = ~same(ours, theirs)
            k = int(bad.argmax())
            what = name_of_slot(k) if name == "control" else f"{name}[{k}]"
            assert not bad.any(), f"{when}: {what} is {ours[k]}, on the cpu {theirs[k]}; {bad.sum()} differ"

    def _check_snapshot(self, when: str) -> None:
        number = self.ours["step"] + self.ours["skipped"]
        expected = np.array([number, *self.ours.shown, number])
        assert same(self.ours.views["snapshot"], expected).all(), f"{when}: the host is shown something else"

    def _check_elements(self, when: str) -> None:
        for (row, tensor), (dtype, ours) in self.ours.arrays.items():
            theirs = self.theirs.arrays[row, tensor][1]
            bad = with_one_nan(dtype, ours) != with_one_nan(dtype, theirs)
            if dtype == DType.F32 and self.ours.has_codes(tensor):  # quotients below 2^-126 are 0 there
                with np.errstate(invalid="ignore"):
                    apart = np.abs(ours.view(np.float32) - theirs.view(np.float32))
                bad &= ~(apart < np.finfo(np.float32).tiny)
            k = int(bad.argmax()) if len(bad) else 0
            what = f"element {k} of {len(ours)} of tensor {tensor}, row {row}, {dtype.name}"
            assert not bad.any(), f"{when}: {what}: bits {ours[k]:x}, on the cpu {theirs[k]:x}; {bad.sum()} differ"

    def finish(self) -> None:
        counters = self.ours.views["scratch"][:8]
        assert not counters.any(), f"the counters of blocks that have arrived are left at {counters.view(np.uint32)}"


class Summed:
    """The sums over gradients by the kernels' source, compiled for the CPU: the same additions in the same order."""

    def __init__(self, problem: Problem) -> None:
        self.control = problem.views["control"].copy()
        self.scratch = problem.views["scratch"].copy()
        arguments = problem.table() | {"control": address(self.control)}
        self.table = emulated.module().TensorTable(**arguments, scratch=address(self.scratch), snapshot=0, device=0)

    def by_emulation(self, problem: Problem) -> dict[str, float]:
        self.control[:] = problem.views["control"]
        self.table.measure(0, False)
        return {name: float(self.control[SLOT[name]]) for name in SUMS}


def address(array) -> int:
    return array.__array_interface__["data"][0]


def same(a, b):
    return (a == b) | (np.isnan(a) & np.isnan(b))


def close(name: str, a: float, b: float) -> bool:
    if name == "grad_nonfinite":
        return (a > 0) == (b > 0)  # more than that it does not say
    if not np.isfinite(a) or not np.isfinite(b):
        return not np.isfinite(a) and not np.isfinite(b)
    return abs(a - b) <= SUM_TOLERANCE * abs(b)
