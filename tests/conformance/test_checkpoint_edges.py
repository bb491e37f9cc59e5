"""Checkpoints between unlike optimizers, under hooks, and copies taken in the middle of a step."""

import copy

import pytest
import torch
from support.tensors import latest, parameter

from greedylr_fused import FusedAdamW, GreedyLR


@pytest.mark.parametrize("saved", [None, GreedyLR(smooth=True)])
def test_a_checkpoint_of_another_kind_of_schedule_starts_this_one_anew(device, backend, saved):
    losses = [1.0, 2.0, 3.0]
    source = FusedAdamW([parameter(torch.zeros(2, device=device), torch.ones(2, device=device))], schedule=saved)
    for loss in losses:
        source.step(loss=loss)
    for schedule in (GreedyLR(mode="max", patience=0, reset_start=3, smooth=False), None):
        if (schedule is None) == (saved is None) or (saved and schedule):
            continue
        traces = []
        for load in (False, True):
            param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
            opt = FusedAdamW([param], lr=source.read_lr()[0], schedule=schedule, backend=backend)
            if load:
                opt.load_state_dict(source.state_dict())
                assert latest(opt).step == 3
            traces.append([(opt.step(loss=loss), opt.read_lr())[1] for loss in losses])
        assert traces[0] == traces[1]


def test_a_checkpoint_of_the_other_mode_is_refused(device, backend):
    params = [parameter(torch.zeros(2, device=device))]
    low, high = (
        FusedAdamW(params, schedule=GreedyLR(mode=mode, smooth=False), backend=backend) for mode in ("min", "max")
    )
    with pytest.raises(
        ValueError, match=r'expected mode="max", as this schedule has it, got one written with mode="min"'
    ):
        high.load_state_dict(low.state_dict())


def test_hooks_see_whole_checkpoints(device, backend):
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt = FusedAdamW([param], lr=0.1, schedule=GreedyLR(smooth=False), backend=backend)
    opt.step(loss=1.0)
    opt.register_state_dict_post_hook(lambda _, found: {"wrapped": found})
    wrapped = opt.state_dict()
    assert wrapped["wrapped"]["param_groups"][0]["control"]["best"] == 1.0
    opt.register_load_state_dict_pre_hook(lambda _, found: found["wrapped"])
    seen = []
    opt.register_load_state_dict_post_hook(lambda loaded: seen.append(loaded.read_lr()))
    opt.step(loss=0.5)
    opt.load_state_dict(wrapped)
    assert seen == [[0.1]] and latest(opt).best == 1.0


def test_a_copy_in_mid_accumulation_goes_on(device, backend):
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt = FusedAdamW([param], schedule=GreedyLR(smooth=False), backend=backend)
    opt.observe(10.0)
    for twin in (copy.deepcopy(opt), opt):
        twin.param_groups[0]["params"][0].grad = torch.ones(2, device=device)
        twin.observe(0.0)
        twin.step()
        assert twin.read_lr() and twin._control.numbers()[0]["loss"] == 5.0


def test_step_counts_are_saved_one_by_one(device, backend):
    params = [parameter(torch.zeros(1, device=device), torch.ones(1, device=device)) for _ in range(50)]
    opt = FusedAdamW(params, backend=backend)
    opt.step()
    for states in (opt.state_dict()["state"], opt.__getstate__()["state"]):
        assert all(state["step"].untyped_storage().nbytes() == 4 for state in states.values())


def test_a_complex_checkpoint_runs_in_torch(device, backend):
    param = parameter(
        torch.ones(3, dtype=torch.complex64, device=device), torch.ones(3, dtype=torch.complex64, device=device)
    )
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    torchs = torch.optim.AdamW([param])
    torchs.load_state_dict(opt.state_dict())
    torchs.step()
    assert torchs.state[param]["step"] == 2


def test_an_lr_edited_in_a_checkpoint_counts(device, backend):
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt = FusedAdamW([param], lr=1e-3, schedule=GreedyLR(smooth=False), backend=backend)
    opt.step(loss=1.0)
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 5e-4
    opt.load_state_dict(saved)
    assert opt.read_lr() == [5e-4]


def test_a_plain_checkpoint_continues_from_its_lr_not_from_where_it_began(device, backend):
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    plain = FusedAdamW([param], lr=1.0, backend=backend)
    plain.param_groups[0]["lr"] = 1e-3
    plain.step()
    assert "control" not in plain.state_dict()["param_groups"][0]
    opt = FusedAdamW([param], lr=1e-3, schedule=GreedyLR(min_lr=1e-5, max_lr=1e-2, smooth=False), backend=backend)
    opt.load_state_dict(plain.state_dict())
    assert opt.read_lr() == [1e-3] and latest(opt).step == 1


def test_a_checkpoint_without_moments_is_said(device, backend):
    """Its schedule goes on, and AdamW begins anew."""

    def build():
        param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
        return FusedAdamW([param], lr=1e-3, schedule=GreedyLR(smooth=False), backend=backend)

    opt, fresh = build(), build()
    fresh.load_state_dict(opt.state_dict())  # of no step: there is nothing to miss
    opt.step(loss=1.0)
    with pytest.warns(UserWarning, match="its schedule is at step 1, and it has no moments of any parameter"):
        fresh.load_state_dict(opt.state_dict() | {"state": {}})


def test_a_hook_before_saving_is_saved(device, backend):
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt = FusedAdamW([param], lr=1e-3, schedule=GreedyLR(smooth=False), backend=backend)
    opt.register_state_dict_pre_hook(lambda hooked: hooked.set_lr(5e-4))
    assert opt.state_dict()["param_groups"][0]["control"]["lr"] == 5e-4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("step", torch.ones(2), "expected one number, got"), ("exp_avg", None, "expected a tensor, got None")],
)
def test_damaged_states_change_nothing(device, backend, name, value, message):
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt = FusedAdamW([param], lr=1e-3, schedule=GreedyLR(smooth=False), backend=backend)
    opt.step(loss=1.0)
    saved = opt.state_dict()
    saved["state"][0] = saved["state"][0] | {name: value}
    saved["param_groups"][0]["lr"] = 2e-3
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(saved)
    assert opt.read_lr() == [1e-3] and opt.state[param]["step"] == 1


def test_a_parameter_whose_saved_state_is_empty(device, backend):
    params = [parameter(torch.zeros(2, device=device), torch.ones(2, device=device)) for _ in range(2)]
    opt = FusedAdamW(params, lr=1e-3, schedule=GreedyLR(smooth=False), backend=backend)
    opt.step(loss=1.0)
    saved = opt.state_dict()
    saved["state"][1] = {}
    opt.load_state_dict(saved)
    opt.step(loss=1.0)
    assert [int(opt.state[param]["step"]) for param in params] == [2, 1] and latest(opt).step == 2


@pytest.mark.parametrize("wide", ["exp_avg", "exp_avg_sq"])
def test_moments_of_two_dtypes_are_loaded_in_the_wider(device, backend, wide):
    """As other optimizers write them; a kernel reads all moments in one dtype."""
    values = torch.ones(1000, dtype=torch.bfloat16, device=device)
    param = parameter(values, values.clone())
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    saved = opt.state_dict()
    exact = saved["state"][0][wide].float() + 1e-6
    saved["state"][0] = saved["state"][0] | {wide: exact}
    opt.load_state_dict(saved)
    own = opt.state[param]
    assert torch.equal(own[wide], exact) and own["exp_avg"].dtype == own["exp_avg_sq"].dtype == torch.float32
    opt.step()
    assert bool(own["exp_avg_sq"].isfinite().all())


def of_schedule(device, backend, losses=(), **options):
    """An optimizer that has seen these losses."""
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    opt = FusedAdamW([param], lr=1e-3, schedule=GreedyLR(patience=0, **options), backend=backend)
    for loss in losses:
        opt.step(loss=loss)
    return opt


@pytest.mark.parametrize(("saved", "own"), [(True, False), (False, True)])
def test_the_best_mean_is_no_measure_for_losses_nor_the_other_way(device, backend, saved, own):
    source = of_schedule(device, backend, [2.0, 1.0], smooth=saved)
    opt = of_schedule(device, backend, smooth=own)
    with pytest.raises(
        ValueError, match=rf"expected smooth={own}, as this schedule has it, got one written with smooth={saved}"
    ):
        opt.load_state_dict(source.state_dict())
    unused = of_schedule(device, backend, smooth=saved)  # it has compared nothing yet
    opt.load_state_dict(unused.state_dict())
    loaded = source.state_dict()
    del loaded["param_groups"][0]["control"]  # what the error advises
    opt.load_state_dict(loaded)
    assert opt.read_lr() == source.read_lr() and latest(opt).step == 2


def test_of_a_longer_window_the_newest_losses_are_taken(device, backend):
    losses, more = [5.0, 4.0, 3.5, 3.25], [3.0, 3.5]
    source = of_schedule(device, backend, losses, smooth=True, window_size=4)
    opt = of_schedule(device, backend, smooth=True, window_size=2)
    opt.load_state_dict(source.state_dict())
    assert opt._control.numbers()[0]["window"] == losses[-2:] and latest(opt).smoothed_loss == sum(losses[-2:]) / 2
    again = of_schedule(device, backend, smooth=True, window_size=2)
    again.load_state_dict(opt.state_dict())
    for loaded in (opt, again):
        means = [(loaded.step(loss=loss), latest(loaded).smoothed_loss)[1] for loss in more]
        assert means == [(3.25 + 3.0) / 2, (3.0 + 3.5) / 2]
    assert opt.read_lr() == again.read_lr()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_shorter_window_goes_on_filling(device, backend, count):
    losses = [5.0, 4.0, 3.5, 3.25, 3.0, 2.75, 2.5][: count + 2]
    source = of_schedule(device, backend, losses[:count], smooth=True, window_size=3)
    opt = of_schedule(device, backend, smooth=True, window_size=4)
    opt.load_state_dict(source.state_dict())
    for loss in losses[count:]:
        opt.step(loss=loss)
    kept = [*losses[:count][-3:], *losses[count:]][-4:]
    assert opt._control.numbers()[0]["window"] == kept and latest(opt).smoothed_loss == sum(kept) / len(kept)


def test_a_window_that_saw_bad_losses_and_spikes_loads(device, backend):
    """A running sum keeps the rounding of what has left it: it is the last mean that it must agree with."""
    losses = [1e17, 1.0, 2.0, float("nan"), 3.0, 0.1, float("inf")]
    for end in range(len(losses) + 1):
        options = {"smooth": True, "window_size": 2, "reset_start": 1, "cooldown": 1}
        source = of_schedule(device, backend, losses[:end], **options)
        opt = of_schedule(device, backend, **options)
        opt.load_state_dict(source.state_dict())
        for loaded in (source, opt):
            loaded.step(loss=0.7)
        assert (
            opt.state_dict()["param_groups"][0]["control"]["window_sum"] == source._control.numbers()[0]["window_sum"]
        )
        assert opt.read_lr() == source.read_lr()


def test_flags_stay_those_of_this_optimizer(device, backend):
    """`fused` tells PyTorch's AdamW where the step counts lie, if it loads what is saved after this."""
    param = parameter(torch.zeros(2, device=device), torch.ones(2, device=device))
    torchs = torch.optim.AdamW([param], foreach=True)
    torchs.step()
    opt = FusedAdamW([param], backend=backend)
    opt.load_state_dict(torchs.state_dict())
    assert [opt.param_groups[0][name] for name in ("fused", "foreach")] == [True, None]
