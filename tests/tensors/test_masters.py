"""The masters of bfloat16 parameters: golden values, every exponent, and small steps that nothing may lose."""

import pytest
import torch

from greedylr_fused.tensors import eight_bit, masters

F32, F64 = torch.float32, torch.float64


def test_golden_masters():
    goldens = {
        0.1: (0x3DCD, -13107, -51),
        3.14159274: (0x4049, 4059, 16),
        -0.001: (0xBA83, 4719, 18),
        1.00390625: (0x3F81, -32768, -128),
        65504.0: (0x4780, -8192, -32),
        1e-40: (0x0001, 5826, 23),
    }
    for value, (high, low, low_8) in goldens.items():
        master = torch.tensor([value])
        param, remainder = masters.split(master, torch.int16, None)
        assert (param.view(torch.int16).item() & 0xFFFF, remainder.item()) == (high, low)
        assert masters.join(param, remainder).item() == master.item()
        param, remainder = masters.split(master, torch.int8, None)
        assert (param.view(torch.int16).item() & 0xFFFF, remainder.item()) == (high, low_8)


def floats(upper, lower):
    return (upper * 65536 + lower).to(torch.int64).to(torch.int32).view(F32)


def test_masters_of_every_exponent():
    """All upper halves, with lower halves at random: exact with 16 bits, within a 256th of an ulp with 8."""
    g = torch.Generator().manual_seed(0)
    upper = torch.arange(2**16).repeat(8) - 2**15
    master = floats(upper, torch.randint(2**16, upper.shape, generator=g))
    number, finite = ~master.isnan(), master.isfinite()
    param, remainder = masters.split(master, torch.int16, None)
    assert torch.equal(masters.join(param, remainder)[number].view(torch.int32), master[number].view(torch.int32))
    assert param[~number].isnan().all() and (remainder[~number] == 0).all()
    random = torch.randint(2**32, upper.shape, generator=g)
    for chosen in (None, random):
        param, remainder = masters.split(master, torch.int8, chosen)
        back = masters.join(param, remainder).double()
        ulp = torch.ldexp(torch.ones_like(back), torch.frexp(master.double().abs().clamp(min=2.0**-126))[1] - 8)
        kept = finite & back.isfinite()  # the largest floats may round to infinity
        assert ((back - master.double()).abs()[kept] <= (1 if chosen is not None else 0.5) * ulp[kept] / 256).all()
        assert torch.equal(back[master.isinf()], master[master.isinf()].double())


def test_a_parameter_written_from_outside_is_within_half_an_ulp():
    g = torch.Generator().manual_seed(0)
    written = (torch.randn(2048, generator=g) * torch.logspace(-30, 30, 2048)).bfloat16()
    written[::7] = torch.tensor([0.0, -0.0]).bfloat16().repeat(300)[: len(written[::7])]
    for low in (-32768, -1, 32767):
        master = masters.join(written, torch.full((2048,), low, dtype=torch.int16)).double()
        ulp = torch.ldexp(torch.ones(2048, dtype=F64), torch.frexp(written.double().abs().clamp(min=2.0**-126))[1] - 8)
        assert ((master - written.double()).abs() <= ulp / 2).all(), low


def decayed(bits, lrs, steps=2000, decay=0.1):
    """Relative change of masters under decay alone, by LR."""
    start = torch.linspace(0.5, 2.0, 1024).expand(len(lrs), 1024)
    master = begin = masters.join(*masters.split(start, torch.int8, None))
    kept = 1 - torch.tensor(lrs)[:, None] * decay
    for step in range(1, steps + 1):
        master = masters.join(*masters.split(master * kept, torch.int8, bits(step)))
    return (master.double() / begin.double() - 1).mean(1).tolist()


def test_masters_of_24_bits_follow_small_steps():
    lrs = [3e-5, 1e-4]
    index = torch.arange(len(lrs) * 1024).view(len(lrs), 1024)
    exact = [(1 - lr * 0.1) ** 2000 - 1 for lr in lrs]
    at_random = decayed(lambda step: eight_bit.randoms(index, 0, torch.tensor(float(step))), lrs)
    assert at_random == pytest.approx(exact, rel=0.02)
    for found, wanted in zip(decayed(lambda step: None, lrs), exact, strict=True):
        assert found != pytest.approx(wanted, rel=0.2), "to nearest"
