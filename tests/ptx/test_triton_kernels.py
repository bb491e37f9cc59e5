"""The PTX of Triton's kernels for 8-bit moments and masters, run under the backend's host code, against the reference.

Each operation is rounded correctly here, where PTX allows an approximation too: then bits are equal.
"""

import re

import pytest
import torch
from support.machine_code import needs_tools
from support.rare import few_of
from support.stored_pairs import CHUNK, MIXES, PLACES, SHAPES, SPECIAL, Pair, name_of, random_state

from ptx import Fault
from ptx.rounding import Rounding

pytest.importorskip("triton", reason="triton is not installed")
from greedylr_fused.backends.triton.access import INTERPRETED  # noqa: E402
from greedylr_fused.backends.triton.backend import TritonBackend  # noqa: E402
from ptx.launches import Launches  # noqa: E402

pytestmark = [pytest.mark.skipif(INTERPRETED.value, reason="TRITON_INTERPRET=1: nothing is compiled"), needs_tools]

CPU, BACKENDS = torch.device("cpu"), ("triton", "reference")
#: Of a kernel's instructions, without schedule, loss and clipping, to which much of the rest belongs.
COVERED = 0.4
GROUPS, ELEMENTS = MIXES[3], MIXES[-1]  # one of each kind, with masters of 24 bits
#: In which each kind of parameter, gradient, moment and master is there.
FEW = [MIXES[0], MIXES[1], MIXES[6], MIXES[7]]


@pytest.fixture
def launches(monkeypatch):
    """Makes Triton's launches run so, on tensors of several chunks that lie at `PLACES` in whole parameters."""
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: PLACES[number % len(PLACES)])
    monkeypatch.setattr(TritonBackend, "chunk_size", CHUNK)

    def install(*args, **options):
        found = Launches(*args, **options)
        found.install(monkeypatch)
        return found

    return install


def step(pair, count=1, scale=1.0):
    for number in range(count):
        pair.step(pair.grads(scale))
        pair.check(f"step {number}")


@pytest.mark.parametrize("mix", few_of(MIXES, FEW.__contains__), ids=name_of)
def test_every_mix_gives_the_bits_of_the_reference(launches, mix):
    run = launches()
    step(Pair(CPU, BACKENDS, mix, [SHAPES[0], *SHAPES], amsgrad=mix[2] is not torch.int8), 2)
    for offset in (0, 1):  # alone, in one piece
        step(Pair(CPU, BACKENDS, mix, SHAPES[-1:], offset=offset), 2)
    ((_, (executed, total)),) = run.program.coverage().items()
    assert executed > COVERED * total, f"{executed} of {total} instructions were executed"


def test_special_groups(launches):
    launches()
    pair = Pair(CPU, BACKENDS, GROUPS, [(64, 64)])
    for number in range(2):
        (grad,) = pair.grads()
        for i, change in enumerate(SPECIAL.values()):
            grad[2 * i] = change(grad[2 * i])
        pair.step([grad])
        pair.check(f"step {number}")
        random_state(pair)


@pytest.mark.parametrize("mix", [MIXES[0], GROUPS, ELEMENTS], ids=["float32", "groups", "elements"])
def test_approximations_move_codes_by_one_at_most(launches, mix):
    launches(Rounding(ulps=2))
    step(Pair(CPU, BACKENDS, mix, SHAPES[-1:], exact=False), 3)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mix", [GROUPS, ELEMENTS], ids=["groups", "elements"])
def test_any_order_of_warps_gives_the_same_bits(launches, mix, offset):
    launches(schedule="random")
    step(Pair(CPU, BACKENDS, mix, SHAPES[-1:], offset=offset), 2)


def replaced(pattern, replacement, last=False):
    """A change of one place in a kernel's text."""

    def mutate(text):
        found = list(re.finditer(pattern, text))[-1 if last else 0]
        return text[: found.start()] + found.expand(replacement) + text[found.end() :]

    return mutate


@pytest.mark.parametrize(
    "pattern, replacement, offset",
    [
        pytest.param(r"xor\.b32(\s+%r\d+, %r\d+, %r\d+;)", r"and.b32\1", 0, id="hash"),
        pytest.param(r", 4, 31, -1;", ", 1, 31, -1;", 0, id="lane"),
        pytest.param(r"sqrt\.approx\.ftz\.f32", "abs.f32", 0, id="root"),
        pytest.param(r"(st\.global\.v4[^\]]*)\+0\]", r"\1+16]", 0, id="one access farther"),
        pytest.param(r"min\.f32(\s+%\w+, %\w+, )", r"max.f32\1", 1, id="clamp"),
    ],
)
def test_a_wrong_instruction_is_seen(launches, pattern, replacement, offset):
    launches(mutate=replaced(pattern, replacement, last=offset == 0))
    with pytest.raises((Fault, AssertionError)):
        step(Pair(CPU, BACKENDS, GROUPS, SHAPES[-1:], offset=offset), 1)


def test_no_barrier_of_the_narrow_path_can_be_left_out(launches):
    """Where a group is shared by two warps."""
    launches(schedule="random", mutate=lambda text: re.sub(r"bar\.sync\s+0;", "", text))
    with pytest.raises((Fault, AssertionError)):
        step(Pair(CPU, BACKENDS, GROUPS, SHAPES[-1:], offset=1), 1)
