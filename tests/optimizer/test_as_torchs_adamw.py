"""FusedAdamW in the place of torch.optim.AdamW: arguments, errors, schedulers and checkpoints, both run side by side.

What differs on purpose is in `DEVIATIONS`, and in the table of docs/migration.md.
"""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from support.paths import ROOT
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from greedylr_fused import FusedAdamW

KINDS = (FusedAdamW, torch.optim.AdamW)
#: torch's own list for AdamW, and what else its constructor takes.
INPUTS = [
    {},
    {"lr": 0.01},
    {"lr": 0.0},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
    {"weight_decay": 0.1, "amsgrad": True},
    {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True, "fused": True},
    {"lr": torch.tensor(0.01), "fused": True},
    {"betas": (0.0, 0.0)},
    {"betas": (0.5, 0.999), "eps": 1e-3},
    {"betas": tuple(torch.tensor(beta, dtype=torch.float64) for beta in (0.9, 0.99))},  # torch computes in their dtype
    {"foreach": True},
    {"foreach": False, "capturable": False, "differentiable": False},
]
SHAPES = ((5, 4), (3,), (), (0,), (2, 3, 4, 5), (1, 1))


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def as_list(params, options):
    return params


def as_generator(params, options):
    return (param for param in params)


def as_named(params, options):
    return [(f"layer.{i}", param) for i, param in enumerate(params)]


def as_groups(params, options):
    return [{"params": params[:2], "lr": 0.05}, {"params": params[2:], "weight_decay": 0.3, "betas": (0.8, 0.9)}]


def as_named_groups(params, options):
    return [{"params": as_named(params[:3], options)}, {"params": as_named(params[3:], options), "lr": 0.02}]


def fill(params, seed):
    """Some parameter has no gradient at some steps."""
    generator = torch.Generator().manual_seed(100 + seed)
    for i, param in enumerate(params):
        gradient = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param.grad = None if (i + seed) % 5 == 0 else gradient


def train(opt, params, seeds, scheduler=None):
    for seed in seeds:
        fill(params, seed)
        opt.step()
        if scheduler is not None:
            scheduler.step(1.0 / (seed + 1)) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else (
                scheduler.step()
            )


def compare(a, b, opts):
    """To float64's rounding over a few steps; the counts, keys and options exactly."""
    for ours, torchs in zip(a, b, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-14)
    for ours, torchs in zip(a, b, strict=True):
        mine, theirs = (opt.state.get(param, {}) for opt, param in zip(opts, (ours, torchs), strict=True))
        assert mine.keys() == theirs.keys() and float(mine.get("step", 0)) == float(theirs.get("step", 0))
    for mine, theirs in zip(opts[0].param_groups, opts[1].param_groups, strict=True):
        assert float(mine["lr"]) == float(theirs["lr"]) and mine.get("param_names") == theirs.get("param_names")


@pytest.mark.parametrize("given", [as_list, as_generator, as_named, as_groups, as_named_groups])
@pytest.mark.parametrize("options", INPUTS, ids=lambda options: "-".join(options) or "default")
def test_arguments(options, given):
    sides = []
    for kind in KINDS:
        params = parameters()
        opt = kind(given(params, options), **copy.deepcopy(options))
        train(opt, params, range(6))
        sides.append((opt, params))
    (ours, a), (torchs, b) = sides
    compare(a, b, (ours, torchs))


@pytest.mark.parametrize("first", [0, 1], ids=["ours first", "torch's first"])
@pytest.mark.parametrize("way", ["direct", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("options", INPUTS[3:8], ids=lambda options: "-".join(options))
def test_one_takes_over_from_the_other(options, way, first, tmp_path):
    """Half of the run by each, against all of it by torch's; a copy or pickle stays with its kind."""
    params, twins = parameters(), parameters()
    opt, whole = KINDS[first](params, **copy.deepcopy(options)), torch.optim.AdamW(twins, **copy.deepcopy(options))
    train(opt, params, range(3))
    if way in ("deepcopy", "pickle"):
        opt = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
        params = opt.param_groups[0]["params"]
    else:
        state = copy.deepcopy(opt.state_dict())
        if way == "file":
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
        opt = KINDS[1 - first](params, lr=123.0)
        opt.load_state_dict(state)
    train(opt, params, range(3, 6))
    train(whole, twins, range(6))
    compare(params, twins, (opt, whole))


SCHEDULERS = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 4], 0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.3, 3),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 1.0, 0.0, 5),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.7),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 4, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.001, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 12),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, threshold=10.0),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.1), lr_scheduler.ExponentialLR(opt, 0.9)], [3]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)], opt
    ),
    "SWALR": lambda opt: SWALR(opt, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_of_torch_drives_it_and_resumes(name):
    """OneCycleLR also writes the betas."""
    sides = []
    for kind in KINDS:
        params = parameters()
        opt = kind(as_groups(params, {}), lr=0.1)
        scheduler = SCHEDULERS[name](opt)
        train(opt, params, range(5), scheduler)
        fresh = kind(as_groups(params, {}), lr=0.1)
        other = SCHEDULERS[name](fresh)
        fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
        other.load_state_dict(copy.deepcopy(scheduler.state_dict()))
        train(fresh, params, range(5, 9), other)
        sides.append((fresh, params))
    (ours, a), (torchs, b) = sides
    compare(a, b, (ours, torchs))


def names_on_one_group_only(kind):
    opt = kind([torch.nn.Parameter(torch.zeros(2))])
    opt.add_param_group({"params": [("weight", torch.nn.Parameter(torch.zeros(2)))]})


def one():
    return torch.nn.Parameter(torch.zeros(2))


def duplicate_groups(kind):
    param = one()
    return kind([{"params": [param]}, {"params": [param]}])


def gradient_of(layout):
    def build(kind):
        param = one()
        opt = kind([param])
        param.grad = torch.ones(2).to_sparse() if layout == "sparse" else torch.ones(2)
        opt.step()

    return build


def wrong_state(change):
    def build(kind):
        param = one()
        opt = kind([param])
        param.grad = torch.ones(2)
        opt.step()
        state = copy.deepcopy(opt.state_dict())
        change(state)
        kind([one()]).load_state_dict(state)

    return build


def another_group(state):
    state["param_groups"].append(dict(state["param_groups"][0]))


def another_param(state):
    state["param_groups"][0]["params"].append(1)


#: Calls that torch's AdamW refuses, by what they are.
REFUSED = OrderedDict(
    {
        "a tensor as parameters": lambda kind: kind(one()),
        "no parameter": lambda kind: kind([]),
        "parameters that are none": lambda kind: kind([1.0]),
        "a parameter that is no leaf": lambda kind: kind([one() * 2]),
        "a parameter in two groups": duplicate_groups,
        "names for some": lambda kind: kind([("weight", one()), one()]),
        "names on one group only": names_on_one_group_only,
        "beta of 1": lambda kind: kind([one()], betas=(1.0, 0.9)),
        "second beta below 0": lambda kind: kind([one()], betas=(0.9, -0.1)),
        "weight decay below 0": lambda kind: kind([one()], weight_decay=-1.0),
        "eps below 0": lambda kind: kind([one()], eps=-1.0),
        "lr below 0": lambda kind: kind([one()], lr=-1.0),
        "lr of two elements": lambda kind: kind([one()], lr=torch.ones(2)),
        "an argument that there is not": lambda kind: kind([one()], momentum=0.9),
        "a group without parameters": lambda kind: kind([{"lr": 0.1}]),
        "a sparse gradient": gradient_of("sparse"),
        "a checkpoint of more groups": wrong_state(another_group),
        "a checkpoint of more parameters": wrong_state(another_param),
        "one beta as a tensor": lambda kind: kind([one()], betas=(0.9, torch.tensor(0.99))),
        "lr as a tensor with foreach": lambda kind: kind([one()], lr=torch.tensor(0.1), foreach=True),
        "betas as tensors with foreach": lambda kind: kind([one()], betas=(torch.tensor(0.9),) * 2, foreach=True),
        "fused and foreach": lambda kind: kind([one()], fused=True, foreach=True),
    }
)
#: What is accepted here, and words of the line of docs/migration.md that says so.
DEVIATIONS = {
    "one beta as a tensor": "tensor betas",
    "lr as a tensor with foreach": "without effect",
    "betas as tensors with foreach": "without effect",
    "fused and foreach": "without effect",
}


def error_of(call, kind):
    try:
        call(kind)
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_what_torchs_adamw_refuses(name):
    """By the same type of exception, so that handlers written for it hold."""
    ours, torchs = (error_of(REFUSED[name], kind) for kind in KINDS)
    assert torchs is not None, "not refused by this PyTorch"
    assert ours is (None if name in DEVIATIONS else torchs)


def test_deviations_are_documented():
    text = (ROOT / "docs/migration.md").read_text()
    assert all(words in text for words in DEVIATIONS.values())
