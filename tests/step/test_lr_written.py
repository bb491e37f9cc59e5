"""An LR that the host writes to a group: what counts as written, and what is said of writing without end."""

import warnings

import numpy as np
import pytest
import torch
from support.lagging import install
from support.tensors import parameter

from greedylr_fused import Cosine, FusedAdamW, GreedyLR
from greedylr_fused.step.rates import WRITES

GREEDY = GreedyLR(patience=0, factor=0.5, smooth=False)


def build(lrs=(1.0,), schedule=GREEDY):
    params = [parameter(torch.zeros(3), torch.ones(3)) for _ in lrs]
    return FusedAdamW([{"params": [param], "lr": lr} for param, lr in zip(params, lrs, strict=True)], schedule=schedule)


def shown(opt):
    return [group["lr"] for group in opt.param_groups]


@pytest.mark.parametrize("lagging", [False, True])
def test_going_back_to_a_number_that_was_shown_before(monkeypatch, lagging):
    """Whatever changed the LR since the last step: what is written to a group is taken as written."""
    if lagging:
        install(monkeypatch)
    for change in (
        lambda o, saved: o.set_lr(0.75),
        lambda o, saved: o.param_groups[0].update(lr=0.75) or o.read_lr(),
        lambda o, saved: o.load_state_dict(saved),
    ):
        opt = build()
        saved = opt.state_dict()
        for loss in (3.0, 2.0):
            opt.step(loss=loss)
        before = shown(opt)[0]
        change(opt, saved)
        assert opt.read_lr() != [before]
        opt.param_groups[0]["lr"] = before
        assert opt.read_lr() == [before] == shown(opt)


@pytest.mark.parametrize("lagging", [False, True])
def test_an_equal_number_written_back_is_no_write(monkeypatch, lagging):
    """As by wrappers that read the groups, and write new objects of the same values."""
    if lagging:
        install(monkeypatch)
    written, alone = build((1.0, 0.5)), build((1.0, 0.5))
    for loss in (3.0, 2.0, 5.0, 1.0, 4.0):
        for group in written.param_groups:
            group["lr"] = np.float64(group["lr"])
        written.step(loss=loss)
        alone.step(loss=loss)
        assert written.read_lr() == alone.read_lr()
    written.set_lr(shown(written))
    assert written.read_lr() == shown(written), "set_lr() goes back to what is shown"


def test_an_lr_that_is_pinned_is_held_where_snapshots_lag(monkeypatch):
    install(monkeypatch)
    opt = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3 * WRITES):
            opt.param_groups[0]["lr"] = float("0.3")  # another object each time
            assert opt.read_lr() == [0.3]
            opt.step(loss=3.0)


def test_a_number_goes_back_after_a_tensor():
    opt = build()
    opt.param_groups[0]["lr"] = torch.tensor(0.5)
    assert opt.read_lr() == [0.5]
    opt.param_groups[0]["lr"] = float("1.0")
    assert opt.read_lr() == [1.0]


@pytest.mark.parametrize("lr", [np.array([1.0]), 1.0 + 0j, True, "1.0"], ids=repr)
def test_what_is_no_number_is_refused_though_it_may_equal_one(lr):
    opt = build()
    opt.param_groups[0]["lr"] = lr
    with pytest.raises(TypeError, match="learning rate of parameter group 0"):
        opt.step(loss=3.0)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_an_lr_written_before_every_step_is_said_once(kind):
    """It cancels what the loss decided, whether or not somebody reads in between."""
    opt = build()
    for step in range(WRITES - 1):
        opt.param_groups[0]["lr"] = kind(0.5 + step / 100)
        if step % 2:
            opt.read_lr()
            opt.state_dict()
        opt.step(loss=3.0)
    with pytest.warns(
        UserWarning, match="10 times in a row, each of which cancels what GreedyLR had decided; drop what"
    ):
        opt.param_groups[0]["lr"] = kind(0.75)
        opt.step(loss=3.0)
    for _ in range(2 * WRITES):
        opt.param_groups[0]["lr"] = kind(0.8)
        opt.step(loss=3.0)


def test_a_schedule_by_hand_beside_one_of_ours_is_said_twice_at_most():
    """By the first peak that it raises, and after ten steps; a warm-up has hundreds."""
    opt = build(schedule=Cosine(100, warmup_steps=90))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(60):
            opt.param_groups[0]["lr"] = 2.0 * (step + 1) / 90
            opt.step()
    assert [str(warning.message).split(":")[0][:20] for warning in said] == [
        "learning rate of par",
        "learning rates were ",
    ]


def test_an_lr_written_before_every_other_step_is_meant():
    opt = build()
    for step in range(4 * WRITES):
        if step % 2:
            opt.param_groups[0]["lr"] = 0.5 + step / 100
        opt.step(loss=3.0)
