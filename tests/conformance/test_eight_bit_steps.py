"""Steps over 8-bit moments and masters on every backend, beside the reference: codes at most one apart, and the same
bits where arithmetic is IEEE's on both sides; then what is promised of groups, rounding and options.
"""

import pytest
import torch
from support.tensors import assert_same, assert_same_bits, generator, parameter, set_grad, snapshot, spread, ulp

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.tensors import masters

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
INT8 = torch.int8
#: (parameter, gradient, state_dtype, master_weights): every new kind of storage.
MIXES = [
    (F32, F32, INT8, None),
    *((BF16, grad, INT8, master) for grad in (BF16, F32) for master in (None, "int16", "int8")),
    *((BF16, grad, None, master) for grad in (BF16, F32) for master in ("int16", "int8")),
]
#: Two that get 8 bits, of several chunks and of 3 dimensions, and two that do not.
SHAPES = ((96, 192), (17, 4, 64), (129,), (7, 5))
#: Backends whose arithmetic is that of the reference to the bit on a CPU.
EXACT = ("reference", "cpu")


def name(mix):
    return "-".join(str(part).removeprefix("torch.") for part in mix if part is not None)


def build(backend, device, mix, shapes=SHAPES, seed=0, **options):
    g = generator(seed)
    params = [parameter(spread(g, torch.Size(s).numel(), -3, 0).view(s).to(device, mix[0])) for s in shapes]
    options = {"lr": 0.01, "weight_decay": 0.1} | options
    return params, FusedAdamW(params, backend=backend, state_dtype=mix[2], master_weights=mix[3], **options)


def give(params, mix, seed, scale=1.0):
    """Gradients of all sizes: from element to element over ten powers of ten, groups of zeros, an outlier."""
    g = generator(seed)
    for param in params:
        grad = spread(g, param.numel(), -8, 2) * scale
        grad[: min(64, len(grad) // 4)] = 0
        grad[len(grad) // 2] *= 3000
        set_grad(param, grad.view(param.shape).to(param.device, mix[1]))


def masters_of(opt, params):
    """Parameters, or their masters, in float64."""
    state = [opt.state[param] for param in params]
    joined = [masters.join(p, s["remainder"]) if "remainder" in s else p for p, s in zip(params, state, strict=True)]
    return [tensor.detach().double() for tensor in joined]


def assert_next_to(ours, theirs, mix, exact, params, twins):
    """The state after one step from the same state."""
    coarse = 0 if mix[0] == F32 or mix[3] == "int16" else 1 / 256 if mix[3] == "int8" else 1  # ulps of bfloat16
    for a, b in zip(params, twins, strict=True):
        for key, value in ours.state[a].items():
            other = theirs.state[b][key]
            if exact or key == "step":
                assert_same_bits(value, other.to(value.device), key)
            elif key.endswith("_q"):
                assert (value.int() - other.int().to(value.device)).abs().max() <= 1, key
    for a, b in zip(masters_of(ours, params), masters_of(theirs, twins), strict=True):
        if exact:
            assert torch.equal(a, b.to(a.device))
        unit = torch.maximum(ulp(a, F32), torch.finfo(F32).eps * (a.abs() + 0.05))
        unit = torch.maximum(unit, ulp(a, BF16) * coarse)
        assert ((a - b.to(a.device)).abs() <= 2 * unit).all()


@pytest.mark.parametrize("mix", MIXES, ids=name)
@pytest.mark.parametrize("beta1", [0.9, 0.3])
def test_steps_are_those_of_the_reference(backend, device, budget, mix, beta1):
    options = {"betas": (beta1, 0.95), "max_grad_norm": None, "maximize": beta1 == 0.3}
    params, ours = build(backend, device, mix, **options)
    twins, theirs = build("reference", device, mix, **options)
    for seed in range(budget.rounds + 1):
        for side in (params, twins):
            give(side, mix, seed)
        ours.step()
        theirs.step()
        assert_next_to(ours, theirs, mix, backend in EXACT and device.type == "cpu", params, twins)
        for a, b in zip(params, twins, strict=True):  # from the same state again
            a.data.copy_(b)
            for key, value in ours.state[a].items():
                value.copy_(theirs.state[b][key])
    kinds = {key for param in params for key in ours.state[param]}
    assert ("exp_avg_q" in kinds) == (mix[2] is INT8) and ("remainder" in kinds) == (mix[3] is not None)
    assert "exp_avg_q" not in ours.state[params[2]] and ours.state[params[3]]["exp_avg"].dtype == F32


@pytest.mark.parametrize("mix", [MIXES[0], (BF16, BF16, INT8, "int8")], ids=name)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_group_that_is_not_finite_keeps_its_moments(backend, device, mix, value):
    params, opt = build(backend, device, mix, shapes=((64, 64),), skip_nonfinite=False)
    give(params, mix, 0)
    opt.step()
    before = snapshot(opt)
    give(params, mix, 1)
    params[0].grad[3, 5] = value
    opt.step()
    state = opt.state[params[0]]
    for key in ("exp_avg_q", "exp_avg_sq_q", "exp_avg_scale", "exp_avg_sq_scale"):
        assert_same_bits(state[key][3], before[f"{key} 0"][3], key)
        assert not torch.equal(state[key][4], before[f"{key} 0"][4]) or key == "exp_avg_scale"
    assert state["exp_avg_scale"].isfinite().all() and state["exp_avg_sq_scale"].isfinite().all()
    moved = params[0].detach().double()
    assert moved[3, 5].isnan() and moved.isfinite().sum() == moved.numel() - 1, "as in AdamW, that element alone"


def test_a_skipped_step_leaves_every_bit(backend, device):
    mix = (BF16, BF16, INT8, "int8")
    params, opt = build(backend, device, mix, max_grad_norm=1.0)
    give(params, mix, 0)
    opt.step()
    before = snapshot(opt, control=False)
    params[0].grad[0, 0] = float("nan")
    opt.step()
    assert_same(snapshot(opt, control=False), before)


def test_steps_repeat_to_the_bit_and_differ_from_each_other(backend, device):
    """The random numbers come from the element, the parameter and the step, and from nothing else."""
    mix = (BF16, BF16, INT8, "int8")
    found = []
    for _ in range(2):
        params, opt = build(backend, device, mix, shapes=((64, 64), (64, 64)))
        for seed in (5, 5):  # twice the same gradient
            params[1].data.copy_(params[0])
            give(params[:1], mix, seed)
            params[1].grad = params[0].grad.clone()
            opt.step()
        found.append(snapshot(opt))
    assert_same(*found)
    assert not torch.equal(found[0]["exp_avg_q 0"], found[0]["exp_avg_q 1"]), "another parameter"


@pytest.mark.parametrize("power", [-27, 13])
def test_gradients_may_have_any_scale(backend, device, power):
    """Times a power of two, with eps along: the same updates and codes."""
    found = []
    for scale in (1.0, 2.0**power):
        mix = (F32, F32, INT8, None)
        params, opt = build(backend, device, mix, shapes=((64, 64),), eps=2.0**-27 * scale)
        for seed in range(3):
            give(params, mix, seed, scale)
            params[0].grad = params[0].grad.clamp(-1e3 * scale, 1e3 * scale)
            opt.step()
        found.append((params[0].detach(), *(opt.state[params[0]][key] for key in ("exp_avg_q", "exp_avg_sq_q"))))
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other, "scaled")


def test_unaligned_and_strided_parameters(backend, device):
    """A view into a larger tensor, and a matrix with holes, are updated as they would be by themselves."""
    mix = (F32, F32, INT8, None)
    (plain,), opt = build(backend, device, mix, shapes=((64, 128),))
    views = {
        "odd address": torch.zeros(64 * 128 + 1, device=device)[1:].view(64, 128),
        "holes": torch.zeros(64, 200, device=device)[:, 3:131],
    }
    others = {}
    for key, view in views.items():
        view.copy_(plain.detach())
        param = parameter(view)
        others[key] = param, FusedAdamW([param], lr=0.01, weight_decay=0.1, backend=backend, state_dtype=INT8)
    for seed in range(2):
        give([plain], mix, seed)
        opt.step()
        for param, other in others.values():
            param.grad = plain.grad.clone()
            other.step()
    for key, (param, other) in others.items():
        assert_same_bits(param.detach(), plain.detach(), key)
        for name_, value in opt.state[plain].items():
            assert_same_bits(other.state[param][name_], value, f"{key} {name_}")


def test_channels_last_keeps_float32_moments(backend, device):
    weight = torch.randn(64, 64, 3, 3, generator=generator(0)).to(device, memory_format=torch.channels_last)
    param = parameter(weight, torch.randn_like(weight))
    with pytest.warns(UserWarning, match="expected row-major parameters"):
        opt = FusedAdamW([param], backend=backend, state_dtype=INT8)
    opt.step()
    assert opt.state[param]["exp_avg"].dtype == F32


def test_a_row_major_parameter_that_became_another_is_refused(backend, device):
    weight = torch.randn(64, 64, 2, 2, generator=generator(0)).to(device)
    param = parameter(weight, torch.randn_like(weight))
    opt = FusedAdamW([param], backend=backend, state_dtype=INT8)
    opt.step()
    param.data = param.data.to(memory_format=torch.channels_last)
    param.grad = torch.randn_like(param)
    with pytest.raises(
        RuntimeError, match="expected moments and remainder in torch.float32 and None, .* got torch.int8"
    ):
        opt.step()


def test_groups_choose_for_themselves(backend, device):
    first, second, third = (parameter(torch.ones(64, 64, device=device, dtype=BF16)) for _ in range(3))
    groups = [
        {"params": [first]},
        {"params": [second], "state_dtype": F32},
        {"params": [third], "master_weights": "int8"},
    ]
    opt = FusedAdamW(groups, backend=backend, state_dtype=INT8)
    for param in (first, second, third):
        param.grad = torch.ones_like(param)
    opt.step()
    assert set(opt.state[first]) == {"step", "exp_avg_q", "exp_avg_sq_q", "exp_avg_scale", "exp_avg_sq_scale"}
    assert opt.state[second]["exp_avg"].dtype == F32
    assert opt.state[third]["remainder"].dtype == INT8 and "exp_avg_q" in opt.state[third]


def test_options_of_a_group_that_are_written_later_are_not_ignored(backend, device):
    """A state that is there is not theirs: the next table is refused, before anything is changed, or converted."""
    param = parameter(torch.ones(64, 64, device=device, dtype=BF16), torch.ones(64, 64, device=device, dtype=BF16))
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    group = opt.param_groups[0]
    group["master_weights"] = "int16"
    opt.add_param_group({"params": [parameter(torch.ones(3, device=device))]})
    with pytest.raises(RuntimeError, match="expected moments and remainder in torch.float32 and torch.int16"):
        opt.step()
    assert "remainder" not in opt.state[param]
    opt.load_state_dict(opt.state_dict())
    opt.step()
    assert opt.state[param]["remainder"].dtype == torch.int16 and opt.state[param]["exp_avg"].dtype == F32
    assert group is not opt.param_groups[0] and opt.param_groups[0]["state_version"] == 1
    opt.param_groups[0]["master_weights"] = None  # the master would go on unseen
    opt.add_param_group({"params": [parameter(torch.ones(3, device=device))]})
    with pytest.raises(RuntimeError, match="expected moments and remainder in torch.bfloat16 and None, .* torch.int16"):
        opt.step()
    opt.param_groups[0]["master_weights"] = "int32"
    with pytest.raises(ValueError, match="master_weights: expected"):
        opt.load_state_dict(opt.state_dict())


def test_groups_without_the_options_get_the_optimizer_s(backend, device):
    param = parameter(torch.ones(64, 64, device=device, dtype=BF16), torch.ones(64, 64, device=device, dtype=BF16))
    opt = FusedAdamW([param], backend=backend, state_dtype=INT8, master_weights="int8")
    plain = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "params")
    opt.param_groups = [{name: opt.param_groups[0][name] for name in plain}]
    opt.step()
    assert {"exp_avg_q", "remainder"} <= opt.state[param].keys()


def test_masters_take_steps_that_bfloat16_would_lose(backend, device):
    """Updates far below an ulp of the parameter: without a master nothing moves."""
    steps, moved = 40, {}
    for master in (None, "int16", "int8"):
        param = parameter(torch.ones(64, 64, device=device, dtype=BF16))
        opt = FusedAdamW([param], lr=1e-5, weight_decay=0.0, backend=backend, state_dtype=F32, master_weights=master)
        for _ in range(steps):
            param.grad = torch.ones_like(param)
            opt.step()
        moved[master] = 1 - masters_of(opt, [param])[0].mean().item()
    assert moved[None] == 0
    assert moved["int16"] == pytest.approx(steps * 1e-5, rel=0.01) and moved["int8"] == pytest.approx(
        steps * 1e-5, rel=0.03
    )


def test_the_loss_decides_over_all_kinds_of_state(backend, device):
    """Schedule, clipping and observed losses go with every storage."""
    mix = (BF16, BF16, INT8, "int16")
    params, opt = build(backend, device, mix, schedule=GreedyLR(patience=1, smooth=False), max_grad_norm=0.5)
    for step in range(6):
        give(params, mix, step)
        opt.observe(torch.tensor(float(step), device=device))
        opt.step()
    assert opt.read_lr()[0] < 0.01
    assert all(float(state["step"]) == 6 for state in opt.state.values())
