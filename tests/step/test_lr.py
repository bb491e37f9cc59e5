"""The learning rate on both sides: groups on the host, slots on the device."""

import numpy as np
import pytest
import torch
from support.tensors import assert_same, parameter, snapshot

from greedylr_fused import FusedAdamW, GreedyLR
from greedylr_fused.control.slots import block

GREEDY = GreedyLR(patience=0, factor=0.5, smooth=False)


def param():
    return parameter(torch.zeros(3), torch.ones(3))


def build(lrs=(1.0,), schedule=GREEDY, **options):
    return FusedAdamW([{"params": [param()], "lr": lr} for lr in lrs], schedule=schedule, **options)


def shown(opt):
    return [group["lr"] for group in opt.param_groups]


def test_a_group_shows_the_lr_that_comes_next_as_a_number():
    opt = build((1.0, 0.5))
    for loss, want in ((3.0, [2.0, 1.0]), (2.0, [4.0, 2.0]), (5.0, [2.0, 1.0])):
        opt.step(loss=loss)
        assert shown(opt) == want == opt.read_lr() == list(opt.metrics().lr)
        assert all(type(lr) is float for lr in shown(opt))


def test_writing_to_a_group_takes_effect_at_the_next_step():
    opt = build()
    opt.step(loss=3.0)
    opt.param_groups[0]["lr"] = 0.75
    before = opt.param_groups[0]["params"][0].clone()
    opt.step(loss=4.0)  # updates with 0.75; the loss then cuts it
    moved = (before * (1 - 0.75 * 0.01) - opt.param_groups[0]["params"][0])[0].item()
    assert moved == pytest.approx(0.75, rel=1e-5)
    assert shown(opt) == [0.375]


def test_writing_to_one_group_leaves_the_other():
    opt = build((1.0, 1.0))
    opt.step(loss=3.0)
    opt.param_groups[1]["lr"] = 0.5
    opt.step(loss=2.0)
    assert shown(opt) == [4.0, 1.0]


def test_writing_the_same_number_again_changes_nothing():
    opt = build()
    opt.step(loss=3.0)
    opt.param_groups[0]["lr"] = opt.param_groups[0]["lr"]
    opt.step(loss=2.0)
    assert shown(opt) == [4.0]


@pytest.mark.parametrize("lr", [100.0, 0.01, -1.0, float("nan")])
def test_out_of_bounds_is_refused_and_changes_nothing(lr):
    # No bounds could enclose the others.
    allowed, remedy = (r"0\.1 to 10 .*", "bounds") if lr > 0 else ("a finite number >= 0", "correct what wrote it")
    for write in (lambda o: o.param_groups[0].update(lr=lr), lambda o: o.set_lr(lr)):
        opt = build()
        opt.step(loss=3.0)
        before = snapshot(opt)
        with pytest.raises(
            ValueError, match=f"learning rate of parameter group 0: expected {allowed}, got {lr}; .*{remedy}"
        ):
            write(opt)
            opt.step(loss=2.0)
        assert_same(snapshot(opt), before)
        opt.param_groups[0]["lr"] = 2.0
        opt.step(loss=2.0)
        assert shown(opt) == [4.0]


def test_set_lr_is_seen_at_once():
    opt = build((1.0, 0.5))
    opt.step(loss=3.0)
    vector = opt._control.vector
    opt.set_lr([0.25, 0.75])
    assert vector[block("lr", 2)].tolist() == [0.25, 0.75] == shown(opt) == opt.read_lr()
    opt.set_lr(0.5)
    assert shown(opt) == [0.5, 0.5] == list(opt.metrics().lr)
    opt.set_lr([np.float32(0.125), np.float64(0.5)])
    assert opt.read_lr() == [0.125, 0.5]
    opt.set_lr(torch.tensor(0.25))
    assert shown(opt) == [0.25, 0.25]
    assert float(opt._control.slot("best")) == 3.0, "the schedule goes on from there"
    opt.step(loss=2.0)
    assert shown(opt) == [0.5, 0.5]


@pytest.mark.parametrize("lr", [[1.0], [1.0, 1.0, 1.0], torch.ones(3)], ids=str)
def test_set_lr_with_the_wrong_number_of_values(lr):
    opt = build((1.0, 1.0))
    with pytest.raises(ValueError, match=r"learning rate: expected one, .*, got \d of them; pass 2"):
        opt.set_lr(lr)


def test_set_lr_with_a_truth_value():
    with pytest.raises(TypeError, match="learning rate: expected a number, .*, got True"):
        build((1.0,)).set_lr(True)


def test_set_lr_changes_all_groups_or_none():
    opt = build((1.0, 1.0))
    with pytest.raises(ValueError, match="group 1"):
        opt.set_lr([0.5, 100.0])
    assert shown(opt) == [1.0, 1.0] == opt.read_lr()


def test_writes_out_of_bounds_change_all_groups_or_none():
    opt = build((1.0, 1.0))
    opt.param_groups[0]["lr"], opt.param_groups[1]["lr"] = 0.5, 100.0
    with pytest.raises(ValueError, match="group 1"):
        opt.step(loss=1.0)
    opt.param_groups[1]["lr"] = 0.5
    opt.step(loss=1.0)
    assert shown(opt) == [1.0, 1.0]


def test_without_a_schedule_writes_are_free():
    opt = build(schedule=None)
    for lr in (0.0, 5.0, 1e-9):
        opt.param_groups[0]["lr"] = lr
        opt.step()
        assert shown(opt) == [lr] == opt.read_lr()
    opt.set_lr(0.125)
    assert shown(opt) == [0.125]


def test_without_a_schedule_a_negative_lr_is_refused():
    opt = build(schedule=None)
    with pytest.raises(ValueError, match="learning rate of parameter group 0"):
        opt.set_lr(-1.0)
    assert opt.read_lr() == [1.0]


def test_a_tensor_lr_without_a_schedule_stays_the_tensor():
    lr = torch.tensor(0.5)
    opt = FusedAdamW([param()], lr=lr)
    for value in (0.5, 0.25):
        lr.fill_(value)
        opt.step()
        assert opt.param_groups[0]["lr"] is lr and opt.read_lr() == [value]
    opt.set_lr(0.75)
    assert opt.param_groups[0]["lr"] is lr and lr.item() == 0.75


def test_a_number_after_a_tensor_lr_counts_though_it_was_there_before():
    opt = FusedAdamW([param()], lr=0.5)
    for lr in (0.5, torch.tensor(0.25), 0.5):
        opt.param_groups[0]["lr"] = lr
        opt.step()
        assert opt.read_lr() == [float(lr)]


def test_a_tensor_lr_with_a_schedule_is_its_start():
    lr = torch.tensor(0.5)
    opt = build((lr,))
    assert shown(opt) == [0.5]
    opt.step(loss=1.0)
    assert shown(opt) == [1.0] and lr.item() == 0.5


def test_a_tensor_written_to_a_group_with_a_schedule():
    opt = build()
    opt.param_groups[0]["lr"] = torch.tensor(2.0)
    opt.step(loss=1.0)
    assert shown(opt) == [4.0]


def test_add_param_group_starts_at_its_own_lr_and_bounds():
    opt = build(schedule=GreedyLR(patience=0, factor=0.5, smooth=False))
    opt.step(loss=3.0)
    opt.add_param_group({"params": [param()], "lr": 0.01})
    assert shown(opt) == [2.0, 0.01] == opt.read_lr()
    opt.step(loss=2.0)
    assert shown(opt) == [4.0, 0.02]
    for _ in range(10):
        opt.step(loss=9.0)
    assert shown(opt) == [0.1, 0.1 * 0.01]
    assert float(opt._control.slot("best")) == 2.0


def test_add_param_group_keeps_what_was_observed_and_written():
    opt = build()
    opt.observe(3.0)
    opt.param_groups[0]["lr"] = 0.5
    opt.add_param_group({"params": [param()], "lr": 1.0})
    assert shown(opt) == [0.5, 1.0]
    opt.step()
    assert shown(opt) == [1.0, 2.0] and opt.metrics().loss == 3.0


def test_read_lr_includes_what_was_written():
    opt = build()
    opt.param_groups[0]["lr"] = 0.5
    assert opt.read_lr() == [0.5]


def test_a_checkpoint_leaves_no_numbers_in_the_groups_for_long():
    opt = build()
    opt.state_dict()
    opt.step(loss=3.0)
    assert opt.param_groups[0]["control"] == {}
    twin = build()
    twin.load_state_dict(opt.state_dict())
    assert twin.param_groups[0]["control"] == {}
