"""AdamW itself: against float64, with the error of torch's own fused AdamW in the same dtype as the measure."""

import pytest
import torch
from support.tensors import Measured, adamw64, generator, parameter, set_grad, short, spread, stepped, ulp

from greedylr_fused import FusedAdamW

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

#: (parameter, gradient, moments): every mix that the package supports.
MIXES = [
    *((t, t, t) for t in (F32, F64, BF16, F16)),
    *((h, g, s) for h in (BF16, F16) for g in (h, F32) for s in (h, F32) if (g, s) != (h, h)),
    (F32, F32, BF16),
    *((F32, h, F32) for h in (BF16, F16)),
]
OPTIONS = {
    "defaults": {},
    "lr": {"lr": 0.3},
    "betas": {"betas": (0.8, 0.99)},
    "lerp_from_the_gradient": {"betas": (0.3, 0.7)},
    "no_momentum": {"betas": (0.0, 0.0)},
    "eps": {"eps": 0.1},
    "no_decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.5, "lr": 0.1},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "all": {"lr": 0.02, "betas": (0.45, 0.97), "eps": 1e-4, "weight_decay": 0.2, "amsgrad": True, "maximize": True},
}
SIZES = (1031, 7)


def name(mix):
    return "-".join(map(short, mix))


def build(backend, device, mix, **options):
    params = [parameter(torch.zeros(n, dtype=mix[0], device=device)) for n in SIZES]
    state_dtype = None if mix[2] == mix[0] else mix[2]
    return params, FusedAdamW(params, backend=backend, state_dtype=state_dtype, **options)


def resync(opt, params, mix, seed, step):
    """New random parameters, gradients, moments and step count, in the memory that is there."""
    g = generator(seed)
    for param in params:
        n = param.numel()
        draw = {key: spread(g, n, -3, 1) for key in ("param", "grad", "exp_avg")}
        draw["exp_avg_sq"] = (draw["exp_avg"].abs() + spread(g, n, -3, 0).abs()) ** 2 + 1e-4
        draw["max_exp_avg_sq"] = draw["exp_avg_sq"] * (0.5 + torch.rand(n, generator=g, dtype=F64))
        param.data.copy_(draw["param"])
        set_grad(param, draw["grad"].to(param.device, mix[1]))
        for key, value in opt.state[param].items():
            value.copy_(torch.tensor(step - 1.0) if key == "step" else draw[key])


@pytest.mark.parametrize("mix", MIXES, ids=name)
@pytest.mark.parametrize("options", OPTIONS)
def test_one_step_from_any_state(backend, device, budget, mix, options):
    params, opt = build(backend, device, mix, **OPTIONS[options])
    for param in params:
        set_grad(param, torch.zeros(param.shape, dtype=mix[1], device=device))
    opt.step()
    measured = Measured()
    for seed, step in list(enumerate((1, 10, 1000)))[-budget.rounds :]:
        resync(opt, params, mix, seed, step)
        stepped(opt, measured=measured)
    measured.check()


@pytest.mark.parametrize("mix", MIXES, ids=name)
def test_free_running_trajectory(backend, device, budget, mix):
    """From fresh state on, without re-synchronisation: errors may accumulate, but no more than twice torch's do."""
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    g = generator(5)
    start = spread(g, SIZES[0], -2, 0).to(device, mix[0])
    grads = [spread(g, SIZES[0], -2, 0).to(device, mix[1]) for _ in range(budget.trajectory)]
    param = parameter(start.clone())
    opt = FusedAdamW([param], backend=backend, state_dtype=None if mix[2] == mix[0] else mix[2], **options)
    theirs = parameter(start.clone() if mix[0] == mix[1] == mix[2] else start.float())
    torchs = torch.optim.AdamW([theirs], fused=True, **options)
    truth = dict.fromkeys(("param", "exp_avg", "exp_avg_sq"), torch.zeros_like(start.double())) | {
        "param": start.double()
    }
    visited = {key: value.abs() for key, value in truth.items()}  # the largest magnitude sets the size of roundings
    for step, grad in enumerate(grads, 1):
        set_grad(param, grad.clone())
        theirs.grad = grad.to(theirs.dtype)
        opt.step()
        torchs.step()
        if not mix[0] == mix[1] == mix[2]:  # mixed types: torch in float32, rounded to storage after each step
            theirs.data = theirs.data.to(mix[0]).float()
            for key in ("exp_avg", "exp_avg_sq"):
                torchs.state[theirs][key] = torchs.state[theirs][key].to(mix[2]).float()
        truth, _ = adamw64(
            *(truth["param"], grad.double(), truth["exp_avg"], truth["exp_avg_sq"], None),
            **(options | {"step": step, "maximize": False, "eps": 1e-8}),
        )
        visited = {key: torch.maximum(value, truth[key].abs()) for key, value in visited.items()}
    ours, other = opt.state[param] | {"param": param}, torchs.state[theirs] | {"param": theirs}
    for key, want in truth.items():
        unit = ulp(visited[key], ours[key].dtype)
        error, torchs_error = ((result[key].detach().double() - want).abs() / unit for result in (ours, other))
        assert error.max() <= 2 * torchs_error.max() + 1, key
        assert error.square().mean().sqrt() <= 2 * torchs_error.square().mean().sqrt() + 1, key


CHANGES = {"lr": 2e-3, "betas[0]": (0.8, 0.95), "betas[1]": (0.9, 0.9), "eps": 1e-2, "weight_decay": 0.3}


@pytest.mark.parametrize("change", CHANGES)
def test_every_hyper_parameter_is_alive(backend, device, change):
    """Changing one of them alone changes the result at steps 1, 10 and 100, to what the formula gives."""
    base = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    changed = base | {change.split("[")[0]: CHANGES[change]}
    params, opts = zip(*(build(backend, device, (F32,) * 3, **options) for options in (base, changed)), strict=True)
    for ps, opt in zip(params, opts, strict=True):
        for param in ps:
            param.grad = torch.zeros_like(param)
        opt.step()
    for step in (1, 10, 100):
        results = []
        for ps, opt in zip(params, opts, strict=True):
            resync(opt, ps, (F32,) * 3, 3, step)
            stepped(opt)
            results.append(
                [
                    torch.cat([t.detach().reshape(-1) for t in ts])
                    for ts in (ps, *([opt.state[p][key] for p in ps] for key in ("exp_avg", "exp_avg_sq")))
                ]
            )
        different = [bool((a != b).any()) for a, b in zip(*results, strict=True)]
        # The first step's bias correction cancels beta only where the moments start at zero; here they do not.
        assert different == [True, change == "betas[0]", change == "betas[1]"]


def test_groups_have_their_own_options(backend, device):
    groups = [
        {"params": [parameter(torch.randn(n, device=device))], **OPTIONS[key]}
        for n, key in zip((130, 65, 200, 33), ("defaults", "lerp_from_the_gradient", "amsgrad", "all"), strict=True)
    ]
    opt = FusedAdamW(groups, backend=backend)
    for _ in range(3):
        for group in opt.param_groups:
            group["params"][0].grad = torch.randn_like(group["params"][0])
        stepped(opt)


def test_options_written_to_a_group_take_effect(backend, device):
    param = parameter(torch.randn(513, device=device))
    opt = FusedAdamW([param], backend=backend)
    for change in (
        {},
        {"lr": 0.1},
        {"betas": (0.5, 0.6)},
        {"eps": 0.5},
        {"weight_decay": 0.9},
        {"maximize": True},
        {"amsgrad": True},
    ):
        opt.param_groups[0].update(change)
        param.grad = torch.randn_like(param)
        stepped(opt)


def test_tensor_betas_and_lr(backend, device):
    param = parameter(torch.randn(513, device=device))
    opt = FusedAdamW([param], lr=torch.tensor(0.02), betas=(torch.tensor(0.8), torch.tensor(0.9)), backend=backend)
    for lr in (0.02, 0.5):
        opt.param_groups[0]["lr"].fill_(lr)
        param.grad = torch.randn_like(param)
        stepped(opt)
        assert opt.read_lr() == [torch.tensor(lr).item()]
