"""What torch.optim.Optimizer promises its users, beyond the numbers."""

import gc
import weakref

import pytest
import torch
from support.tensors import assert_same, parameter, snapshot

from greedylr_fused import FusedAdamW, GreedyLR


def build(**options):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    return model, FusedAdamW(model.parameters(), lr=0.01, **options)


def backward(model):
    loss = model(torch.ones(3, 4)).square().mean()
    loss.backward()
    return loss


def test_it_is_an_optimizer():
    model, opt = build()
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt._step_supports_amp_scaling


def test_step_hooks():
    model, opt = build(schedule=GreedyLR(smooth=False))
    calls = []
    opt.register_step_pre_hook(lambda o, args, kwargs: calls.append(("pre", sorted(kwargs))))
    opt.register_step_post_hook(lambda o, args, kwargs: calls.append(("post", o.metrics().step)))
    loss = backward(model)
    opt.step(loss=loss)
    assert calls == [("pre", ["loss"]), ("post", 1)]


def test_a_pre_hook_may_change_the_loss():
    model, opt = build(schedule=GreedyLR(smooth=False))
    opt.register_step_pre_hook(lambda o, args, kwargs: (args, kwargs | {"loss": 7.0}))
    opt.step(loss=backward(model))
    assert opt.metrics().loss == 7.0


def test_state_dict_hooks():
    model, opt = build()
    backward(model)
    opt.step()
    calls = []
    opt.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    opt.register_state_dict_post_hook(lambda o, state: calls.append(sorted(state)))
    saved = opt.state_dict()
    assert calls == ["pre", ["param_groups", "state"]]
    opt.register_load_state_dict_pre_hook(lambda o, state: calls.append("load") or dict(state))
    opt.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    opt.load_state_dict(saved)
    assert calls[2:] == ["load", "loaded"]


def test_a_load_hook_that_replaces_the_state_dict():
    """Its result is what is loaded, control numbers and unrounded moments included."""
    model, opt = build(schedule=GreedyLR(patience=0, smooth=False))
    opt.step(loss=backward(model))
    saved = opt.state_dict()
    other_model, other = build(schedule=GreedyLR(patience=0, smooth=False))
    other.register_load_state_dict_pre_hook(lambda o, state: saved)
    other.load_state_dict({"state": {}, "param_groups": []})
    assert other.read_lr() == opt.read_lr() and other.metrics().step == 1


def test_zero_grad():
    model, opt = build()
    backward(model)
    opt.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in model.parameters())
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_closure_runs_once_with_gradients_enabled():
    model, opt = build()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        opt.zero_grad()
        return backward(model)

    with torch.no_grad():
        loss = opt.step(closure)
    assert calls == [True] and loss.requires_grad


def test_an_error_in_the_closure_changes_nothing():
    model, opt = build()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError):
        opt.step(lambda: 1 / 0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    backward(model)
    opt.step()


def test_version_counters_tell_autograd_of_the_update():
    """A graph that still needs the old values must refuse to run, as after any in-place change."""
    model, opt = build()
    loss = backward(model)
    kept = model(torch.ones(3, 4)).square().mean()
    opt.step(loss=loss)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_no_objects_are_left_behind():
    """Nor memory: 200 steps with new gradients each, after a warm-up, keep no object more."""
    model, opt = build(schedule=GreedyLR(patience=0, smooth=True), max_grad_norm=1.0)

    def steps(n):
        for _ in range(n):
            opt.zero_grad()
            loss = backward(model)
            opt.observe(loss, weight=2)
            opt.step()
            opt.metrics()

    steps(20)
    gc.collect()
    before = len(gc.get_objects())
    steps(200)
    gc.collect()
    assert len(gc.get_objects()) - before < 20


def test_an_optimizer_is_freed():
    model, opt = build(schedule=GreedyLR(smooth=False))
    opt.step(loss=backward(model))
    reference = weakref.ref(opt)
    del opt
    gc.collect()
    assert reference() is None
    gradient = weakref.ref(model[0].weight.grad)
    model.zero_grad()
    gc.collect()
    assert gradient() is None, "gradients are not kept alive by the tables"


@pytest.mark.parametrize("stepped", [False, True])
def test_no_cycle_waits_for_the_collector(stepped):
    opt = FusedAdamW([parameter(torch.zeros(3), torch.ones(3))], schedule=GreedyLR())
    if stepped:
        opt.step(loss=1.0)
    gc.collect()
    parts = [weakref.ref(part) for part in (opt, opt._engine.ranks, opt._control, opt._rates)]
    gc.disable()
    try:
        del opt
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()


def test_another_default_device_is_none_of_its_business():
    def trained():
        param = parameter(torch.zeros(3), torch.ones(3))
        opt = FusedAdamW([param], schedule=GreedyLR(window_size=2), max_grad_norm=1.0)
        opt.step(loss=1.0)
        return opt

    opt, other = trained(), trained()
    saved = other.state_dict()
    with torch.device("meta"):
        opt.load_state_dict(saved)
        for each in (opt, other):
            each.step(loss=2.0)
            added = torch.nn.Parameter(torch.ones(2, device="cpu"))
            added.grad = torch.ones(2, device="cpu")
            each.add_param_group({"params": [added]})
            each.step(loss=3.0)
    assert_same(snapshot(opt), snapshot(other))


def test_temporary_gradients_are_let_go():
    param = parameter(torch.zeros(40, 30))
    opt = FusedAdamW([param])
    param.grad = torch.ones(30, 40).t()
    opt.step()
    assert not opt._engine.table._staged


def test_two_optimizers_do_not_mix():
    (a, first), (b, second) = (
        build(schedule=GreedyLR(patience=0, smooth=False)),
        build(schedule=GreedyLR(patience=0, smooth=False)),
    )
    first.step(loss=backward(a))
    assert second.metrics().step == 0
    second.step(loss=backward(b))
    assert first.metrics().step == second.metrics().step == 1


def test_profiler_name():
    _, opt = build()
    assert type(opt).step.hooked, "torch wraps step() for its profiler and hooks"


def test_training_lowers_a_loss():
    torch.manual_seed(1)
    model, opt = build(schedule=GreedyLR(patience=3, smooth=False), max_grad_norm=1.0)
    first = backward(model).item()
    for _ in range(100):
        opt.zero_grad()
        opt.step(loss=backward(model))
    assert backward(model).item() < 0.1 * first


def test_model_moved_after_construction_keeps_the_schedule():
    model, opt = build(schedule=GreedyLR(patience=0, smooth=False))
    opt.step(loss=backward(model))
    model.double()
    for param in model.parameters():
        param.grad = None
    for state in opt.state.values():
        state.update({name: value.double() for name, value in state.items() if name != "step"})
    loss = model(torch.ones(3, 4, dtype=torch.float64)).square().mean()
    loss.backward()
    opt.step(loss=loss)
    assert opt.metrics().step == 2
