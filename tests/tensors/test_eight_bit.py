"""The format of 8-bit moments: golden values, and what they promise of averages over many steps.

Each promise is also asked of a format that would be simpler, and breaks it.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from greedylr_fused.tensors import eight_bit

F64 = torch.float64
M = (0, 1e-3, -1e-3, 5e-4, -2.5e-4, 1e-4, -1e-5, 1e-6, -1e-7, 9.99e-4, 7.3e-4, -3.1e-8)
V = (0, 1e-6, 2.5e-7, 1e-8, 1e-10, 1e-12, 1.1e-14, 1e-16, 9e-7, 3.3e-7, 5e-9, 1e-20)


def group(values, n=eight_bit.GROUP):
    return torch.tensor([*values, *[0.0] * (n - len(values))])


def bits(step, n=eight_bit.GROUP, number=0, first=0):
    return eight_bit.randoms(torch.arange(first, first + n), number, torch.tensor(float(step)))


def through(m, v, random):
    """Moments as the next step finds them."""
    return eight_bit.decode_moments(*eight_bit.encode_moments(m, v, random))


def test_golden_codes():
    nearest = eight_bit.encode_moments(group(M), group(V), None)
    assert nearest[0][:12].tolist() == [0, 127, -127, 107, -90, 71, -40, 23, -13, 127, 117, -9]
    assert nearest[1][:12].tolist() == [0, 255, 214, 143, 81, 45, 26, 14, 252, 222, 131, 5]
    at_random = eight_bit.encode_moments(group(M), group(V), bits(1))
    assert at_random[0][:12].tolist() == [0, 127, -127, 106, -90, 72, -40, 22, -13, 127, 117, -9]
    assert at_random[1][:12].tolist() == [0, 255, 215, 144, 81, 46, 26, 15, 252, 222, 132, 5]
    for codes in (nearest, at_random):
        assert codes[2].tolist() == [torch.tensor(1e-3).item()] and codes[3].tolist() == [torch.tensor(1e-3).item()]
    m, v = eight_bit.decode_moments(*nearest)
    decoded = {3: 5.03872e-4, 4: -2.52206e-4, 5: 9.76829e-5, 7: 1.07571e-6}
    assert {i: pytest.approx(m[i].item(), rel=1e-5) for i in decoded} == decoded
    squares = {2: 2.4603e-7, 3: 9.78063e-9, 5: 9.40543e-13}
    assert {i: pytest.approx(v[i].item(), rel=1e-5) for i in squares} == squares


def test_golden_hash():
    assert eight_bit.mix(torch.tensor(1)).item() == 0x688990C0 and eight_bit.mix(torch.tensor(0)).item() == 0
    assert [f"{x:08x}" for x in bits(1)[:12].tolist()] == (
        "58f54975 d25b73e6 caffe390 e4605623 932acd88 c01896b4 c7750ac0 ad815f30 672b334e 6273060a a496214e d1a6ce10"
    ).split()
    whole = bits(7, 256, number=3, first=2**32 - 128)
    assert len(whole.unique()) == 256 and not torch.equal(whole[:128], bits(7, 128, number=3)), "beyond 2^32"


@given(st.data())
def test_a_code_is_within_one_of_its_value(data):
    """For any finite group: what is decoded lies between the values of the codes next to the true one."""
    exponent = data.draw(st.integers(-37, 18))
    seed = data.draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (128,), generator=g) * 2 - 1
    m = sign * torch.exp(torch.rand(128, generator=g) * -30) * 10.0**exponent
    v = (torch.exp(torch.rand(128, generator=g) * -30) * 10.0**exponent).square()
    q, q_sq, s, s_sq = eight_bit.encode_moments(m, v, bits(seed % 1000, 128))
    for x, code, scale, largest in ((m.abs(), q.abs(), s, 127), (v.double().sqrt(), q_sq, s_sq, 255)):
        each = scale.double().repeat_interleave(64)
        true = torch.where(each > 0, largest * (x.double() / each.clamp(min=1e-300)) ** 0.25, 0.0)
        assert ((code.double() - true).abs() <= 1.0001).all()
    assert (torch.sign(q) * sign >= 0).all() and (q_sq[(v > 0) & (s_sq > 0).repeat_interleave(64)] > 0).all()


@pytest.mark.parametrize(
    "kind, m, v",
    [
        ("zero", torch.zeros(64), torch.zeros(64)),
        ("all equal", torch.full((64,), 0.25), torch.full((64,), 0.0625)),
        ("one", group([-3.0]), group([9.0])),
        ("below the smallest scale", torch.full((64,), 1e-39), torch.full((64,), 1e-45)),
    ],
)
def test_special_groups(kind, m, v):
    q, q_sq, s, s_sq = eight_bit.encode_moments(m, v, bits(3))
    back, back_sq = eight_bit.decode_moments(q, q_sq, s, s_sq)
    if kind == "below the smallest scale":
        assert s.item() == 0 and (q == 0).all() and s_sq.item() > 0 and (back == 0).all()
    else:
        torch.testing.assert_close(back, m, rtol=1e-6, atol=0)
        torch.testing.assert_close(back_sq, v, rtol=1e-6, atol=0)
    assert eight_bit.finite_groups(s, s_sq).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_group_that_is_not_finite_is_known(value):
    m, v = torch.ones(128), torch.ones(128)
    m[70] = value
    v[70] = value * value
    _, _, s, s_sq = eight_bit.encode_moments(m, v, bits(3, 128))
    assert eight_bit.finite_groups(s, s_sq).tolist() == [True, False]


def test_rounding_up_is_as_likely_as_its_fraction():
    """To four sigma, and the mean of an 8-bit lane to half of its step; lanes do not correlate."""
    n = 1 << 18
    random = bits(5, n)
    u, w = ((random & 255).double() + 0.5) / 256, ((random >> 16).double() + 0.5) / 65536
    for fraction in (0.001, 0.0123, 0.25, 0.5, 0.77, 0.999):
        sigma = math.sqrt(fraction * (1 - fraction) / n)
        assert abs((u + fraction >= 1).double().mean() - fraction) <= 4 * sigma + 1 / 512
        assert abs((w + fraction >= 1).double().mean() - fraction) <= 4 * sigma + 1 / 131072
    lanes = torch.stack([u, w, (random >> 8 & 255).double(), bits(6, n).double(), bits(5, n, number=1).double()])
    correlation = torch.corrcoef(lanes) - torch.eye(5, dtype=F64)
    assert correlation.abs().max() < 4.5 / math.sqrt(n)
    next_to = torch.corrcoef(torch.stack([w[1:], w[:-1], u[1:], u[:-1]])) - torch.eye(4, dtype=F64)
    assert next_to.abs().max() < 4.5 / math.sqrt(n)


def both(m, v, step):
    return through(m, v, bits(step, len(m)))


def nearest(m, v, step):
    return through(m, v, None)


def only_sq(m, v, step):
    """exp_avg to nearest, exp_avg_sq at random."""
    return nearest(m, v, step)[0], both(m, v, step)[1]


def eight_bit_lane(m, v, step):
    """exp_avg_sq rounded by 8 random bits, as exp_avg is."""
    random = bits(step, len(m))
    return through(m, v, random & 0xFFFF | (random >> 24 << 24 | 0x800000))


def drift(stores, steps, beta1=0.9, beta2=0.95):
    """How far coordinates whose gradient is zero move in a live group, in units of the LR, by each way to store."""
    g = torch.Generator().manual_seed(0)
    live = torch.cat([torch.zeros(8), torch.ones(56)])  # the first had a gradient, and are dead from now on
    states = [((1 - live) * 0.1, (1 - live) * 0.01) for _ in stores]
    moved = [torch.zeros(64) for _ in stores]
    for step in range(1, steps + 1):
        grad = torch.randn(64, generator=g) * live
        for i, store in enumerate(stores):
            m, v = states[i]
            m, v = torch.lerp(m, grad, 1 - beta1), v * beta2 + (1 - beta2) * grad * grad
            moved[i] += m / (v.sqrt() + 1e-8)
            states[i] = store(m, v, step) if store else (m, v)
    return [total[:8].abs().max().item() for total in moved]


def test_a_dead_coordinate_stays_where_it_is():
    """A gradient that stopped: the remaining moments fade as in float32. Rounding to nearest keeps them for ever, and
    with exp_avg_sq alone at random exp_avg outlives it.
    """
    exact, ours = drift([None, both], 5000)
    assert ours <= 1.1 * exact
    assert all(simpler > 2 * exact for simpler in drift([nearest, only_sq], 1500))


def outlier_error(store, scale, steps=40, beta1=0.9, beta2=0.95):
    """Relative error of the updates of 63 columns beside one whose gradients are `scale` times as large."""
    g = torch.Generator().manual_seed(1)
    state, exact = (torch.zeros(64 * 64), torch.zeros(64 * 64)), (torch.zeros(64 * 64), torch.zeros(64 * 64))
    wrong = total = largest = 0.0
    for step in range(1, steps + 1):
        grad = torch.randn(64, 64, generator=g)
        grad[:, 0] *= scale
        grad = grad.reshape(-1)
        new = [(torch.lerp(m, grad, 1 - beta1), v * beta2 + (1 - beta2) * grad * grad) for m, v in (state, exact)]
        ours, theirs = (
            (m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + 1e-8)).view(64, 64)[:, 1:] for m, v in new
        )
        wrong, total = wrong + (ours - theirs).square().sum().item(), total + theirs.square().sum().item()
        largest = max(largest, ours.abs().max().item())
        state, exact = store(*new[0], step), new[1]
    return math.sqrt(wrong / total), largest


def test_an_outlier_leaves_its_group_alone():
    for scale in (1, 30, 3000):
        error, largest = outlier_error(both, scale)
        assert error <= 0.27 and largest < 20, (scale, error, largest)

    def square_root_codes(m, v, step):  # 8 bits of the square root of the share, as others store it
        s = m.view(-1, 64).abs().amax(1).repeat_interleave(64)
        s_sq = v.view(-1, 64).amax(1).sqrt().repeat_interleave(64)
        m = torch.sign(m) * s * (torch.round(127 * (m.abs() / s).sqrt()) / 127).square()
        return m, (s_sq * (torch.round(255 * (v.sqrt() / s_sq).sqrt()) / 255).square()).square()

    assert outlier_error(square_root_codes, 3000)[0] > 0.27


@pytest.mark.parametrize("power", [-26, -13, 13])
def test_powers_of_two_change_nothing(power):
    g = torch.Generator().manual_seed(2)
    m, v = torch.randn(256, generator=g), torch.rand(256, generator=g)
    q, q_sq, s, s_sq = eight_bit.encode_moments(m, v, bits(1, 256))
    scaled = eight_bit.encode_moments(m * 2.0**power, v * 4.0**power, bits(1, 256))
    assert torch.equal(scaled[0], q) and torch.equal(scaled[1], q_sq)
    assert torch.equal(scaled[2], s * 2.0**power) and torch.equal(scaled[3], s_sq * 2.0**power)


BETAS, LEVELS = (0.95, 0.999, 0.9999), (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def staleness(stores, steps=1600, groups=4):
    """Mean of log(sqrt(v) as stored / sqrt(v)) of noisy gradients, of each beta2 and level below the group's scale."""
    g = torch.Generator().manual_seed(3)
    shape = (len(BETAS), len(LEVELS), groups, 64)
    beta2 = torch.tensor(BETAS).view(-1, 1, 1, 1)
    size = torch.tensor(LEVELS).view(1, -1, 1, 1).expand(shape).clone()
    size[..., 0] = 1.0  # holds the scale
    exact = size.double().square()
    states, logs = [exact.float() for _ in stores], [torch.zeros(shape[:2], dtype=F64) for _ in stores]
    for step in range(1, steps + 1):
        grad = torch.randn(shape, generator=g) * size
        grad[..., 0] = 1.0
        exact = exact * beta2 + (1 - beta2) * grad.double().square()
        for i, store in enumerate(stores):
            new = (states[i] * beta2 + (1 - beta2) * grad.square()).reshape(-1)
            states[i] = store(torch.zeros_like(new), new, step)[1].view(shape)
            if step > steps // 2 and step % 8 == 0:
                logs[i] += (states[i].double().sqrt() / exact.sqrt()).log()[..., 1:].mean((2, 3)) / (steps // 16)
    return logs


def test_the_second_moment_neither_grows_stale_nor_ratchets():
    ours, to_nearest, by_8_bits = staleness([both, nearest, eight_bit_lane])
    assert ours[1, 0].abs() < 0.01 and ours.abs().max() <= 0.07, ours
    assert to_nearest[1, 0].abs() > 0.01 and to_nearest.abs().max() > 0.14
    assert by_8_bits[1, 5] > 0.14, by_8_bits
