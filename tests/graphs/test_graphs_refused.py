"""What a captured training step refuses: replays that would be outdated, and inputs that the graph cannot take."""

from __future__ import annotations

import numpy
import pytest
import torch
from support.graph_stand_in import Body, StandIn, batch, standing_in, stepped, twins
from support.tensors import assert_same, parameter, snapshot

from greedylr_fused.graphs import CapturedStep
from greedylr_fused.graphs import captured_step as graphs

__all__ = ["standing_in", "twins"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight_decay", 0.5), ("betas", (0.8, 0.9)), ("eps", 1e-6), ("maximize", True), ("corrected_weight_decay", 0.1)],
)
def test_changed_hyper_parameters_are_refused(twins, name, value):
    _, ours, step = twins
    before = snapshot(ours.opt)
    ours.opt.param_groups[0][name] = value
    message = rf"since the capture {name} of parameter group 0 changed from .* to .*call reset\(\): the next call is"
    with pytest.raises(RuntimeError, match=message):
        step(batch(4))
    assert_same(snapshot(ours.opt), before)


REPLACED = {
    "loaded": lambda body: body.opt.load_state_dict(body.opt.state_dict()),
    "group": lambda body: body.opt.add_param_group({"params": [parameter(torch.ones(2))]}),
    "amsgrad": lambda body: body.opt.param_groups[0].update(amsgrad=True),
    "memory": lambda body: setattr(body.params[0], "data", body.params[0].data.clone()),
    "state": lambda body: body.opt.state[body.params[0]].update(exp_avg=torch.zeros(4, 3)),
    "param": lambda body: body.opt.param_groups[0].update(params=[body.params[0]]),
}


@pytest.mark.parametrize("change", REPLACED)
def test_what_was_replaced_is_refused(twins, change):
    _, ours, step = twins
    REPLACED[change](ours)
    with pytest.raises(RuntimeError, match=r"since the capture .*(were replaced|amsgrad of).*call reset\(\)"):
        step(batch(4))


def test_moved_gradients_are_refused_and_cleared_ones_are_not(twins):
    eager, ours, step = twins
    ours.opt.zero_grad()
    step(batch(4))
    ours.params[1].grad = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"gradient of a parameter of shape \(4,\) .*in other memory.*opt.zero_grad"):
        step(batch(5))
    ours.opt.zero_grad()
    step(batch(5))
    for i in (4, 5):
        stepped(eager, batch(i))
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_after_reset_it_goes_on_with_what_has_changed(twins):
    eager, ours, step = twins
    for opt in (ours.opt, eager.opt):
        opt.param_groups[0]["weight_decay"] = 0.5
    step.reset()
    assert not step.captured
    for i in range(4, 9):
        step(batch(i, rows=7))
        stepped(eager, batch(i, rows=7))
    assert step.captured
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_inputs_of_another_kind_are_refused(twins):
    _, _, step = twins
    with pytest.raises(
        ValueError, match=r"expected .*\(5, 3\) as input number 0.* got a torch.float32 tensor of shape \(2, 3\)"
    ):
        step(batch(4, rows=2))
    with pytest.raises(ValueError, match=r"float64 tensor"):
        step({"inputs": batch(4)["inputs"].double()})
    with pytest.raises(ValueError, match="(?s)expected inputs nested as .*, got "):
        step(batch(4), scale=2.0)
    with pytest.raises(ValueError, match="as input number 0, .*got 'text'"):
        step({"inputs": "text"})


def test_a_constant_stays_what_it_was(standing_in):
    ours = Body()
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt)
    step(batch(0), scale=2.0)
    with pytest.raises(ValueError, match="expected 2.0 as input number 1, .*got 3.0; .*pass what changes as a tensor"):
        step(batch(1), scale=3.0)


def test_a_body_that_steps_something_else(standing_in):
    ours, other = Body(), Body()
    StandIn.optimizer = other.opt
    other.opt.step(loss=1.0)
    step = CapturedStep(ours, other.opt, warmup=1)
    step(batch(0))
    with pytest.raises(RuntimeError, match="does not step the optimizer given beside it"):
        step(batch(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            lambda body: (body, torch.optim.AdamW(body.params)),
            TypeError,
            "expected a FusedAdamW or a DeviceSchedule as optimizer, got a AdamW",
        ),
        (lambda body: (body.opt, body.opt), TypeError, "expected a function of the batch as body, got a FusedAdamW"),
        (lambda body: (body, body.opt, 0), ValueError, "expected an integer >= 1 as warmup, got 0"),
        (
            lambda body: (body, body.opt, 3),
            RuntimeError,
            "expected parameters on a GPU, .*got ones on cpu; call the body",
        ),
    ],
)
def test_refused_at_construction(arguments, error, message):
    body, opt, *warmup = arguments(Body())
    with pytest.raises(error, match=message):
        CapturedStep(body, opt, **({"warmup": warmup[0]} if warmup else {}))


def test_a_scale_that_a_scaler_has_left_is_refused(twins):
    """The graph has no decision in it that would take the scale, or a skip, back."""
    _, ours, step = twins
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ours.opt.zero_grad()
    loss = sum(param.square().sum() for param in ours.params)
    scaler.scale(loss).backward()
    scaler.step(ours.opt, loss=loss)
    ours.opt.zero_grad()
    with pytest.raises(RuntimeError, match="a step was made with a gradient scaler"):
        step(batch(4))


def test_a_loss_that_was_observed_outside_is_refused(twins):
    _, ours, step = twins
    ours.opt.observe(100.0)
    before = snapshot(ours.opt)
    with pytest.raises(
        RuntimeError, match=r"expected losses observed in the body, .*got 1 observed outside.*move opt.observe\(loss\)"
    ):
        step(batch(4))
    assert_same(snapshot(ours.opt), before)


def test_a_capture_that_fails_leaves_no_loss_and_no_gradient(standing_in, monkeypatch):
    ours = Body()
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=1)
    step(batch(0))

    def fails(self, run):
        ours.opt.observe(1.0)
        ours.params[0].grad = torch.ones_like(ours.params[0])
        ours.opt._control.pending.zero_()  # on a GPU nothing has run
        raise RuntimeError("a wait")

    monkeypatch.setattr(graphs.Graph, "capture", fails)
    with pytest.raises(RuntimeError, match="a wait"):
        step(batch(1))
    assert ours.opt._control.observed == 0 and ours.params[0].grad is None
    assert not ours.opt._engine.lent
    ours.opt.step(loss=1.0)


def test_constants_are_compared_with_their_types(standing_in):
    ours = Body()
    StandIn.optimizer = ours.opt
    with pytest.raises(TypeError, match=r"expected tensors .*, got a ndarray.*torch.from_numpy\(x\)"):
        CapturedStep(ours, ours.opt)({"inputs": numpy.ones((5, 3))})
    step = CapturedStep(ours, ours.opt)
    step(batch(0), scale=1)
    for other in (1.0, True):
        with pytest.raises(ValueError, match=f"expected 1 as input number 1, .*got {other};"):
            step(batch(1), scale=other)
    step = CapturedStep(lambda x, scale: ours(x), ours.opt)
    step(batch(0), scale=float("nan"))
    step(batch(1), scale=float("nan"))
    with pytest.raises(ValueError, match="expected nan as input number 1, .*got 1.0;"):
        step(batch(2), scale=1.0)
