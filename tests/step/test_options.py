"""The optimizer's own options: torch's rules, and messages that say what is expected, what was got, what to do."""

import inspect
import math

import numpy as np
import pytest
import torch
from support.tensors import parameter

from greedylr_fused import FusedAdamW, GreedyLR, SkipSpikes
from greedylr_fused.tensors import storage


def one():
    return [parameter(torch.zeros(3), torch.ones(3))]


REFUSED = [
    ({"lr": -1.0}, ValueError, ("lr of parameter group 0", "got -1.0", ">= 0", "lr=3e-4")),
    ({"lr": math.nan}, ValueError, ("lr", "got nan", "finite")),
    ({"lr": math.inf}, ValueError, ("lr", "got inf", "finite")),
    ({"lr": torch.ones(2)}, ValueError, ("lr", "one element", "one LR per parameter group")),
    ({"betas": (1.0, 0.9)}, ValueError, ("betas", "(1.0, 0.9)", "[0, 1)", "betas=(0.9, 0.999)")),
    ({"betas": (0.9, -0.1)}, ValueError, ("betas", "[0, 1)")),
    ({"betas": (0.9,)}, ValueError, ("betas", "a pair")),
    ({"betas": 0.9}, ValueError, ("betas", "a pair")),
    ({"betas": torch.tensor(0.9)}, ValueError, ("betas", "a pair")),
    ({"betas": np.ones((2, 2))}, ValueError, ("betas", "a pair")),
    ({"betas": {0: 0.9, 1: 0.99}}, ValueError, ("betas", "a pair")),
    ({"eps": -1e-8}, ValueError, ("eps", "got -1e-08", ">= 0", "eps=0")),
    ({"weight_decay": -0.1}, ValueError, ("weight_decay", "got -0.1", ">= 0")),
    ({"weight_decay": math.nan}, ValueError, ("weight_decay", "nan")),
    ({"max_grad_norm": 0.0}, ValueError, ("max_grad_norm", "got 0.0", "None", "> 0", "1.0")),
    ({"max_grad_norm": -1.0}, ValueError, ("max_grad_norm", "got -1.0")),
    ({"max_grad_norm": math.inf}, ValueError, ("max_grad_norm", "got inf")),
    ({"skip_nonfinite": "yes"}, ValueError, ("skip_nonfinite", "'yes'", "True, False or None")),
    ({"skip_spikes": True}, TypeError, ("skip_spikes", "got True", "skip_spikes=SkipSpikes()")),
    ({"skip_spikes": SkipSpikes}, TypeError, ("skip_spikes", "SkipSpikes'>", "SkipSpikes()")),
    ({"backend": "metal"}, ValueError, ("backend", "'metal'", "auto, cpu, cuda, triton, reference")),
    ({"state_dtype": torch.int16}, ValueError, ("state_dtype", "int16", "float32")),
    ({"state_dtype": torch.int8, "amsgrad": True}, ValueError, ("amsgrad", "False", "True", "leave amsgrad out")),
    ({"master_weights": "int32"}, ValueError, ("master_weights", "int16", "int8", "int32")),
    ({"master_weights": True}, ValueError, ("master_weights", "True", "int16")),
    (
        {"master_weights": "int16", "state_dtype": torch.bfloat16},
        ValueError,
        ("master_weights", "float32", "bfloat16", "leave state_dtype out"),
    ),
    ({"differentiable": True}, ValueError, ("differentiable", "False", "torch.optim.AdamW(differentiable=True)")),
    ({"schedule": "greedy"}, TypeError, ("schedule", "str", "GreedyLR()")),
]


@pytest.mark.parametrize(("options", "error", "parts"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused(options, error, parts):
    with pytest.raises(error) as caught:
        FusedAdamW(one(), **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_refused_in_a_later_group_by_its_number():
    with pytest.raises(ValueError, match="parameter group 1.*-5"):
        FusedAdamW([{"params": one()}, {"params": one(), "eps": -5}])


def test_no_parameters():
    with pytest.raises(ValueError, match="empty"):
        FusedAdamW([])


def test_tensors_only():
    with pytest.raises(TypeError):
        FusedAdamW([3.0])
    with pytest.raises(TypeError):
        FusedAdamW(torch.zeros(3))


def test_every_option_of_torchs_adamw_with_its_default():
    theirs = inspect.signature(torch.optim.AdamW).parameters
    ours = inspect.signature(FusedAdamW).parameters
    for name, parameter_ in theirs.items():
        assert name in ours, name
        assert ours[name].default == parameter_.default, name
    assert list(ours)[:6] == list(theirs)[:6], "positional arguments"


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"fused": True}, {"fused": False}, {"capturable": True}], ids=str
)
def test_torchs_choices_of_implementation_are_accepted(options):
    opt = FusedAdamW(one(), **options)
    opt.step()


@pytest.mark.parametrize(
    "options",
    [
        {"betas": np.array([0.5, 0.75])},
        {"betas": tuple(np.array([0.5, 0.75]))},
        {"betas": torch.tensor([0.5, 0.75])},
        {"betas": [np.float32(0.5), torch.tensor(0.75)]},
        {"lr": np.float64(0.5)},
        {"lr": np.array([0.5])},
        {"eps": np.array(0.5)},
        {"weight_decay": torch.tensor([0.5])},
    ],
    ids=str,
)
def test_numbers_of_numpy_and_torch_are_numbers(options):
    plain = {name: (0.5, 0.75) if name == "betas" else 0.5 for name in options}
    runs = []
    for given in (options, plain):
        param = parameter(torch.ones(3), torch.ones(3))
        opt = FusedAdamW([param], **given)
        opt.step()
        runs.append((param.tolist(), opt.state_dict()["param_groups"]))
    assert runs[0] == runs[1]


def test_a_state_is_whole_or_not_there(monkeypatch):
    """What interrupts the making of a state (memory, a key) leaves none, and the next step makes it."""
    opt, whole, made = FusedAdamW(one()), storage.zeros, []

    def once_interrupted(param, dtype):
        made.append(param)
        if len(made) == 2:
            raise KeyboardInterrupt
        return whole(param, dtype)

    monkeypatch.setattr(storage, "zeros", once_interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    assert not any(opt.state.values())
    opt.step()
    twin = FusedAdamW(one())
    twin.step()
    (ours,), (theirs,) = opt.state.values(), twin.state.values()
    assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in theirs.items()}


def test_an_unsupported_dtype_names_the_supported_ones():
    param = parameter(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    message = "expected float32, .*got a torch.float64 parameter and state_dtype=torch.bfloat16; .*change state_dtype"
    with pytest.raises(TypeError, match=message):
        FusedAdamW([param], state_dtype=torch.bfloat16)
    opt = FusedAdamW([parameter(torch.zeros(3), torch.ones(3))], state_dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=message):
        opt.add_param_group({"params": [param]})
    assert len(opt.param_groups) == 1
    frozen = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    FusedAdamW([parameter(torch.zeros(3), torch.ones(3)), frozen]).step()  # quantised weights ride along


def test_parameters_on_several_devices():
    params = [
        parameter(torch.zeros(3), torch.ones(3)),
        parameter(torch.zeros(3, device="meta"), torch.ones(3, device="meta")),
    ]
    opt = FusedAdamW(params)
    with pytest.raises(RuntimeError, match="cpu, meta.*one FusedAdamW for the parameters of each device"):
        opt.step()


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    opt = FusedAdamW(model.named_parameters(), lr=0.1)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(3)).sum().backward()
    opt.step()
    other = FusedAdamW(model.named_parameters(), lr=0.1)
    other.load_state_dict(opt.state_dict())


def test_state_names_shapes_and_defaults_are_torchs():
    ours, theirs = FusedAdamW(one(), amsgrad=True), torch.optim.AdamW(one(), amsgrad=True)
    for opt in (ours, theirs):
        opt.step()
    a, b = (next(iter(opt.state.values())) for opt in (ours, theirs))
    assert list(a) == list(b)
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
    assert set(theirs.param_groups[0]) <= set(ours.param_groups[0])
    assert set(theirs.defaults) <= set(ours.defaults)


def test_add_param_group_refuses_and_leaves_no_trace():
    opt = FusedAdamW(one(), lr=0.5, schedule=GreedyLR(min_lr=0.1, max_lr=1.0, patience=0, smooth=False))
    opt.step(loss=3.0)
    for group in ({"lr": 5.0}, {"lr": 0.01}, {"betas": (2.0, 0.1)}):
        with pytest.raises(ValueError):
            opt.add_param_group({"params": one(), **group})
        assert len(opt.param_groups) == 1
    opt.step(loss=2.0)
    with pytest.raises(ValueError, match="GreedyLR min_lr: expected .*got 1 values"):
        FusedAdamW(one(), lr=0.5, schedule=GreedyLR(min_lr=[0.1], smooth=False)).add_param_group(
            {"params": one(), "lr": 0.5}
        )


def test_repr_shows_backend_reasons_and_schedule():
    text = repr(FusedAdamW(one(), schedule=GreedyLR(patience=3, smooth=False)))
    for part in ("FusedAdamW", "lr: 0.001", "backend: ", "patience=3"):
        assert part in text
    assert "not cpu" not in text


def test_a_table_of_hyper_parameters_out_of_range_later():
    """A bad value written to a group after construction is the user's, as in torch; it must not crash."""
    opt = FusedAdamW(one())
    opt.param_groups[0]["eps"] = 1e30
    opt.step()
