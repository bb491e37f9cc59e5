"""8-bit moments and masters in Triton against the reference: one step from equal state, whatever was stored before.

In the interpreter all bits agree. Compiled, the roots of codes and the quotient of an update are approximations: codes
are within one, values within a unit in the last place of what is stored.

Runs where Triton runs kernels: on a GPU, or under TRITON_INTERPRET=1 (test_triton_interpreter.py sees to that).
"""

import pytest
import torch
from support.stored_pairs import BF16, CHUNK, F32, MIXES, PLACES, SHAPES, SPECIAL, Pair, every_mix, random_state
from support.tensors import parameter

from greedylr_fused.tensors import Place, eight_bit


@pytest.fixture
def backends(device, monkeypatch):
    """Names of the backend under test and of the reference, on tensors of several chunks."""
    backend = pytest.importorskip("greedylr_fused.backends.triton.backend").TritonBackend
    if (reason := backend.unavailable(device)) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(backend, "chunk_size", CHUNK)
    return "triton", "reference"


@pytest.fixture
def placed(monkeypatch):
    """Lets parameters lie at `PLACES`, by their number."""
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: PLACES[number % len(PLACES)])


@every_mix
def test_steps_from_equal_state(device, backends, placed, mix):
    """Several chunks and places, two groups of options, a tensor that now and then has no gradient."""
    pair = Pair(device, backends, mix, SHAPES, betas=(0.9, 0.999))
    for opt, params in zip(pair.optimizers, pair.sides, strict=True):
        extra = parameter(torch.ones(64, 64, device=device, dtype=mix[0]))
        opt.add_param_group({"params": [extra], "betas": (0.3, 0.95), "maximize": True, "eps": 1e-4})
        params.append(extra)
    for step in range(2):
        grads = pair.grads(10.0**-step)
        if step == 1:
            grads[2] = None
        pair.step(grads)
        pair.check(f"step {step}")


@pytest.mark.parametrize("offset", [1, 8])
@pytest.mark.parametrize("mix", [MIXES[0], MIXES[3], MIXES[-1]], ids=["float32", "int8_master", "float32_moments"])
def test_tensors_off_16_bytes(device, backends, monkeypatch, mix, offset):
    """Alone, in one piece, which at the second time crosses 2^32."""
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: PLACES[offset == 8])
    pair = Pair(device, backends, mix, SHAPES[-1:], offset=offset)
    for step in range(2):
        pair.step(pair.grads())
        pair.check(f"step {step}")


@pytest.mark.parametrize("mix", MIXES[-4:], ids=["int16", "int8", "int16_float32_grad", "int8_float32_grad"])
def test_masters_with_amsgrad_and_of_any_shape(device, backends, monkeypatch, mix):
    """Also where a row is divided anywhere, as ranks do with float32 moments: 41 * (1 / 41) is below 1 in float32."""
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: Place(number, 7, 41, 1000))
    pair = Pair(device, backends, mix, [(64, 64), (5,), (CHUNK + 13,), ()], amsgrad=True)
    for step in range(2):
        pair.step(pair.grads(3.0 if step else 1.0))
        pair.check(f"step {step}")


def test_a_body_that_begins_amid_a_chunk(device, backends):
    """Where parameter, gradient and remainder all come to 16 bytes at the same element, the fifth."""
    pair = Pair(device, backends, MIXES[-3], SHAPES[-1:], offset=4)
    pair.step(pair.grads())
    for params, opt in zip(pair.sides, pair.optimizers, strict=True):
        state = opt.state[params[0]]
        memory = torch.zeros(params[0].numel() + 12, dtype=torch.int8, device=device)
        state["remainder"] = memory[12:].view(params[0].shape).copy_(state["remainder"])
        opt.add_param_group({"params": [parameter(torch.ones(3, device=device))]})  # builds the table anew
    pair.step(pair.grads())
    assert pair.state(0)[0]["remainder"].data_ptr() % 16 == 12
    pair.check()


@pytest.mark.parametrize("mix", [*MIXES[:2], MIXES[3], MIXES[4]], ids=lambda mix: "-".join(map(str, mix)))
def test_special_groups(device, backends, mix):
    """As gradients from zero state, and from random state; beside ordinary groups, which do not notice."""
    pair = Pair(device, backends, mix, [(64, 64)])
    for step in range(3):
        (grad,) = pair.grads()
        for i, change in enumerate(SPECIAL.values()):
            grad[2 * i] = change(grad[2 * i])
        before = {name: tensor.clone() for name, tensor in pair.state(0)[0].items()}
        pair.step([grad])
        ours = pair.state(0)[0]
        for i, name in enumerate(SPECIAL):
            kept = name in ("inf", "-inf", "nan", "square above all numbers", "scale without a normal reciprocal")
            if step and kept:  # its moments, the parameter not
                for stored in ("exp_avg_q", "exp_avg_sq_q", "exp_avg_scale", "exp_avg_sq_scale"):
                    assert torch.equal(ours[stored][2 * i], before[stored][2 * i]), f"{name}: {stored}"
        pair.check(f"step {step}")
        if step == 1:
            random_state(pair)


@pytest.mark.parametrize("master", ["int16", "int8"])
def test_special_masters(device, backends, master):
    """Every exponent, halves between two parameters, parameters that were set from outside, NaN and infinity."""
    pair = Pair(device, backends, (BF16, F32, F32, master), [(128, 128)], lr=1e-9, weight_decay=0.0)
    pair.step([torch.zeros(128, 128)])
    high = torch.arange(-(1 << 15), 1 << 15, 4).view(128, 128).to(torch.int16)
    low = torch.randint(-(1 << 15), 1 << 15, (128, 128), generator=pair.random)
    low[::7], low[1::7], low[2::7] = -(1 << 15), (1 << 15) - 1, 0
    for side in pair.state(0):
        side["param"].copy_(high.view(BF16))
        side["remainder"].copy_(low if master == "int16" else low >> 8)
    for step in range(2):
        pair.step([torch.zeros(128, 128)])
        pair.check(f"step {step}")


def test_rounding_depends_on_number_step_and_index(device, backends, placed):
    """Of equal values; so that the tests above, whose values are random, could tell."""
    pair = Pair(device, backends, MIXES[0], [(64, 64)] * 4)
    seen = []
    for _ in range(2):
        pair.step([torch.full((64, 64), 0.3) * torch.linspace(0.1, 1, 64)] * 4)
        seen += [pair.state(i)[0]["exp_avg_sq_q"].clone() for i in range(4)]
        pair.check()
    assert len({tuple(codes.reshape(-1).tolist()) for codes in seen}) == len(seen)
    for codes in seen:
        assert len({tuple(row) for row in codes.tolist()}) == len(codes), "rows are rounded alike"


def test_no_code_exceeds_the_largest(device, backends, monkeypatch):
    """255 + (65535 + 1/2) / 65536 rounds to 256."""
    random = eight_bit.randoms(torch.arange(1 << 20), 3, torch.tensor(1)) >> 16
    index = int(torch.nonzero(random == 0xFFFF)[0])
    place = Place(3, index // 64 * 64, 4096, 4096)
    monkeypatch.setattr("greedylr_fused.tensors.entry.place_of", lambda param, number: place)
    pair = Pair(device, backends, MIXES[0], [(64, 64)])
    pair.step([torch.ones(64, 64)])
    assert int(pair.state(0)[0]["exp_avg_sq_q"][0, index % 64]) == 255
    pair.check()


def test_fractions(device, backends):
    """Of every lane, exactly."""
    from support.triton_kernels import fractions

    lanes = torch.arange(1 << 16, device=device, dtype=torch.int64)
    random = lanes << 16 | 0xFF00 | lanes & 0xFF
    u, u_sq = fractions(random)
    assert torch.equal(u, ((lanes & 0xFF).float() + 0.5) / 256)
    assert torch.equal(u_sq, (lanes.float() + 0.5) / 65536)
