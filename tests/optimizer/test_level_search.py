"""Whole trainings with a level search, from the outside: what it finds, what it asks for, and what it refuses."""

import math

import pytest
import torch
from support.tensors import latest

from greedylr_fused import WSD, AdaLRS, Climb, Constant, DeviceSchedule, FusedAdamW, GreedyLR, Linear, Mechanic

BASE = Linear(400, warmup_steps=20)


def trained(lr, schedule, steps=400, **options):
    """A quadratic with a little noise, whose weights have 3 to go; the optimizer, and its error at the end."""
    generator = torch.Generator().manual_seed(5)
    target = torch.full((8,), 3.0)
    weight = torch.nn.Parameter(torch.zeros(8))
    opt = FusedAdamW([weight], lr=lr, weight_decay=0.0, schedule=schedule, **options)
    for _ in range(steps):
        loss = (weight - target + 0.01 * torch.randn(8, generator=generator)).square().mean()
        loss.backward()
        opt.step(loss=loss)
        opt.zero_grad()
    return opt, float((weight.detach() - target).square().mean())


def test_an_lr_that_is_too_low_is_raised():
    """At 5e-3 the weights get no further than about 1 in 400 steps with an anneal."""
    opt, error = trained(5e-3, Climb(base=BASE))
    assert latest(opt).phase == "frozen" and latest(opt).level >= 3.0 - 1e-9
    assert error < 0.5 * trained(5e-3, BASE)[1]
    assert latest(opt).step == 400 and opt.read_lr() == [0.0]


def test_a_third_of_the_lr_is_raised_to_it():
    """The optimizer's own LR needs no proof: where noise alone is to be seen the search ends there, not below."""
    opt, _ = trained(1e-6, Climb(base=BASE, top=1.0))
    assert latest(opt).phase == "frozen" and latest(opt).level == pytest.approx(1.0)


def test_adalrs_tries_more_where_the_loss_falls_more_slowly():
    opt, error = trained(5e-3, AdaLRS(base=Linear(400)))
    assert latest(opt).phase == "frozen" and latest(opt).level > 1.0
    assert error < trained(5e-3, Linear(400))[1]


@pytest.mark.parametrize("kind", [Climb, AdaLRS])
def test_refusals(kind):
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"tuner: expected None with {kind.__name__}.*leave out one"):
        FusedAdamW([weight], lr=1.0, schedule=kind(base=BASE), tuner=Mechanic())
    with pytest.raises(ValueError, match='snapshot: expected "device" or "host", got \'disk\''):
        kind(base=BASE, snapshot="disk")
    with pytest.raises(ValueError, match="expected a step schedule that ends"):
        kind(base=Constant())
    with pytest.raises(ValueError, match="write total_steps="):
        kind(base=Linear(30, warmup_steps=3))
    with pytest.raises(TypeError, match="DeviceSchedule.*leaves parameters alone"):
        DeviceSchedule(torch.optim.SGD([weight], lr=torch.tensor(0.1)), kind(base=BASE))
    opt = FusedAdamW([weight], schedule=kind(base=BASE))
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="loss"):
        opt.step()


def test_inside_zero_it_is_refused_with_what_shards_it(monkeypatch):
    name = "torch.distributed.optim.zero_redundancy_optimizer"
    scope = {
        "__name__": name,
        "make": lambda: FusedAdamW([torch.nn.Parameter(torch.ones(1))], schedule=Climb(base=BASE)),
    }
    exec("def construct(): return make()", scope)
    with pytest.raises(TypeError, match="got Climb, which puts parameters back after trials; shard by .*fully_shard"):
        scope["construct"]()


def test_a_backup_on_the_host_is_in_ordinary_memory_beside_a_cpu(device):
    opt, loss = trained(5e-3, Climb(base=BASE, snapshot="host"), steps=100)
    other, same = trained(5e-3, Climb(base=BASE), steps=100)
    assert loss == same and math.isfinite(loss)
    assert opt._engine.backup.where == "host" and other._engine.backup.where == "device"


@pytest.mark.parametrize("base", [GreedyLR(), WSD(warmup_steps=5)], ids=["loss-driven", "endless"])
def test_another_base_is_refused_in_few_words(base):
    with pytest.raises((TypeError, ValueError), match=rf"base: expected .* got {type(base).__name__};") as caught:
        Climb(base=base)
    assert len(str(caught.value).split()) <= 40


@pytest.mark.parametrize(("made", "phase", "level"), [(30, "wait", 1 / 3), (250, "frozen", 1.0)])
def test_a_search_that_takes_over_too_late_for_a_round_is_over_at_once(made, phase, level):
    """At the level of the run that it takes over; else it would train a step at a third of that."""
    opt, _ = trained(1e-3, BASE, made)
    search, _ = trained(1e-3, Climb(base=BASE), 1)
    search.load_state_dict(opt.state_dict())
    found = latest(search)
    assert (found.phase, found.level) == (phase, pytest.approx(level))
    assert search.read_lr() == pytest.approx([lr * level for lr in opt.read_lr()])
