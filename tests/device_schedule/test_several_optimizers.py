"""One DeviceSchedule over several optimizers: one decision, LRs in their ratio, one checkpoint."""

import copy
import io
import random

import pytest
import torch
from support.host_reads import as_of_a_device, no_host_read
from support.oracle import random_losses
from support.telemetry import recorded
from support.tensors import generator, snapshot
from transformers.optimization import GreedyLR as Upstream

from greedylr_fused import DeviceSchedule, FusedAdamW, Muon
from greedylr_fused.schedules import WSD, Constant, Cosine, GreedyLR

RESTLESS = GreedyLR(factor=0.7, patience=1, smooth=True, window_size=4, reset_start=3)
MUON, ADAMW = 0.02, 3e-4


class Pair:
    """Muon for the matrix, FusedAdamW for two other groups, under one schedule."""

    def __init__(self, schedule=RESTLESS, seed=3, dtype=torch.float64, lrs=(MUON, ADAMW, 2 * ADAMW), **options):
        values = generator(seed)
        shapes = ((6, 5), (5,), (7,))
        self.params = [torch.nn.Parameter(torch.randn(shape, generator=values)) for shape in shapes]
        groups = [{"params": [p], "lr": torch.tensor(lr, dtype=dtype)} for p, lr in zip(self.params, lrs, strict=True)]
        self.muon = Muon(groups[:1], lr=torch.tensor(1.0))
        self.adamw = FusedAdamW(groups[1:], max_grad_norm=1.0)
        self.schedule = DeviceSchedule([self.muon, self.adamw], schedule, **options)
        self.gradients = generator(7)

    def step(self, loss):
        for param in self.params:
            param.grad = torch.randn(param.shape, generator=self.gradients)
        self.muon.step()
        self.adamw.step()
        self.schedule.step(loss=loss)

    @property
    def held(self):
        """The LR that each group's tensor holds."""
        return [group["lr"].item() for opt in self.schedule.optimizers for group in opt.param_groups]


def losses(n, seed=5):
    return random_losses(random.Random(seed), n)


def test_the_lrs_are_those_of_transformers_over_all_groups_at_once():
    host = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in Pair().held])
    options = {name: getattr(RESTLESS, name) for name in ("factor", "patience", "smooth", "window_size", "reset_start")}
    lows, highs = ([ratio * lr for lr in Pair().held] for ratio in (0.1, 10.0))
    driver = Upstream(host, **options, min_lr=lows, max_lr=highs)
    pair = Pair()
    for loss in losses(80):
        pair.step(loss)
        driver.step(loss)
        assert pair.held == pair.schedule.read_lr() == [group["lr"] for group in host.param_groups]
        assert list(pair.schedule.metrics().lr) == pair.held
    assert pair.schedule.metrics().step == 80


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-5])
def test_ratios_are_kept(eps):
    """Up to the changes, smaller than `eps`, that one group makes and another does not."""
    pair = Pair(GreedyLR(factor=0.7, patience=0, smooth=False, eps=eps, base=Constant(warmup_steps=3)))
    start = (MUON, ADAMW, 2 * ADAMW)
    seen = set()
    for loss in [*range(60, 50, -1), *losses(200)]:
        pair.step(float(loss))
        lrs = pair.schedule.read_lr()
        slack = 1e-12 + eps / (0.1 * ADAMW)
        assert all(lr / own == pytest.approx(lrs[0] / MUON, rel=slack) for lr, own in zip(lrs, start, strict=True))
        seen.add(lrs[0])
    assert min(seen) < 0.2 * MUON and max(seen) > MUON and len(seen) > 10


def test_fused_adamw_steps_by_what_was_decided():
    """To the bit of one that decides for itself: its LR tensors hold every bit of the control vector."""
    pair, alone = Pair(), [torch.nn.Parameter(p.detach().clone()) for p in Pair().params[1:]]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(alone, (ADAMW, 2 * ADAMW), strict=True)]
    own = FusedAdamW(groups, max_grad_norm=1.0, schedule=RESTLESS)
    for loss in losses(30):
        pair.step(loss)
        for param, twin in zip(pair.params[1:], alone, strict=True):
            twin.grad = param.grad.clone()
        own.step(loss=loss)
        assert all(map(torch.equal, pair.params[1:], alone))
    assert pair.adamw.read_lr() == own.read_lr() != [ADAMW, 2 * ADAMW]


@pytest.mark.parametrize(("ratios", "expected"), [(None, (0.02, 0.3, 0.6)), ([1, 0.5], (0.02, 0.01, 0.02))])
def test_ratios_of_the_first_one(ratios, expected):
    pair = Pair(Cosine(10), lrs=(0.02, 0.3, 0.6), ratios=ratios)
    assert pair.schedule.read_lr() == pytest.approx(expected, rel=1e-15)
    assert pair.held == pair.schedule.read_lr()
    assert Pair(Cosine(10), lrs=(0.02, 0.3, 0.6), ratios=[4, 2]).held == pytest.approx((0.02, 0.01, 0.02), rel=1e-15)


def test_nothing_is_read_back(monkeypatch):
    as_of_a_device(monkeypatch)
    pair = Pair(GreedyLR(patience=0, window_size=3, base=WSD()))
    given = [torch.tensor(loss, requires_grad=True) for loss in losses(8)]
    pair.step(given[0])  # which makes states and tables
    guarded = [pair.schedule._control.vector, *given, *(group["lr"] for group in pair.schedule._driven.groups)]
    with no_host_read(monkeypatch, guarded):
        for loss in given[1:]:
            pair.step(loss)
    assert pair.schedule.read_lr() != [MUON, ADAMW, 2 * ADAMW]


def test_one_checkpoint_has_all():
    pair = Pair(dtype=torch.float32)
    for loss in losses(20):
        pair.step(loss)
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in pair.params], "all": pair.schedule.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = Pair(dtype=torch.float32, seed=4, lrs=(1.0, 1.0, 1.0))
    with torch.no_grad():
        for param, values in zip(resumed.params, saved["params"], strict=True):
            param.copy_(values)
    tensors = [group["lr"] for group in resumed.schedule._driven.groups]
    resumed.schedule.load_state_dict(saved["all"])
    resumed.gradients.set_state(pair.gradients.get_state())
    assert all(group["lr"] is own for group, own in zip(resumed.schedule._driven.groups, tensors, strict=True))
    for loss in losses(30, seed=9):
        pair.step(loss)
        resumed.step(loss)
        assert resumed.schedule.read_lr() == pair.schedule.read_lr() and resumed.held == pair.held
    for one, other in ((resumed.muon, pair.muon), (resumed.adamw, pair.adamw)):
        found, expected = snapshot(one, control=False), snapshot(other, control=False)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_states_that_were_loaded_otherwise_are_left_alone():
    """As where torch.distributed.checkpoint has loaded them: the schedule's numbers are given alone."""
    pair, other = Pair(), Pair()
    for loss in losses(12):
        pair.step(loss)
    other.muon.load_state_dict(pair.muon.state_dict())
    other.adamw.load_state_dict(pair.adamw.state_dict())
    other.schedule.load_state_dict({"control": pair.schedule.state_dict()["control"]})
    assert other.held == pair.held and other.schedule.metrics().step == 12


@pytest.mark.parametrize("damage", ["the second state", "the window", "one state too few", "no list"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(damage):
    pair = Pair()
    for loss in losses(10):
        pair.step(loss)
    good = copy.deepcopy(pair.schedule.state_dict())
    for loss in losses(3):
        pair.step(loss)
    before = [*snapshot(pair.muon, control=False).values(), *snapshot(pair.adamw, control=False).values()]
    vector, held = pair.schedule._control.vector.clone(), pair.held
    if damage == "the second state":
        del good["optimizers"][1]["param_groups"][0]["betas"]
    elif damage == "the window":
        good["control"][0]["level"] = -1.0
    else:
        good["optimizers"] = good["optimizers"][:1] if damage == "one state too few" else 3
    with pytest.raises((ValueError, KeyError), match="betas|level|states of 2 optimizers"):
        pair.schedule.load_state_dict(good)
    after = [*snapshot(pair.muon, control=False).values(), *snapshot(pair.adamw, control=False).values()]
    assert all(map(torch.equal, before, after)) and pair.held == held
    assert torch.equal(pair.schedule._control.vector.view(torch.int64), vector.view(torch.int64))
    pair.step(1.0)


def test_of_one_optimizer_the_state_is_not_in_it():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    alone = DeviceSchedule(opt, Cosine(10))
    assert list(alone.state_dict()) == ["control"] and alone.optimizer is opt and alone.optimizers == (opt,)
    with pytest.raises(ValueError, match="states of 0 optimizers"):
        alone.load_state_dict(alone.state_dict() | {"optimizers": [opt.state_dict()]})


def test_every_step_is_recorded_with_the_lr_of_each_group():
    pair = Pair()
    recorder, kept = recorded(pair.schedule)
    expected = []
    for loss in losses(9):
        pair.step(loss)
        expected.append(tuple(pair.held))
    recorder.close()
    assert [step.metrics.lr for step in kept.steps] == expected
    assert {f"lr/{index}" for index in range(3)} <= kept.steps[0].scalars().keys()


class OfDion(torch.optim.Optimizer):
    """Uses its LR as the Muon of microsoft/dion does: the tensor of the group, as a factor of foreach operations."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "weight_decay": 0.1, "step": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] += 1
            params = group["params"]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(params, torch._foreach_mul([param.grad for param in params], group["lr"]))


def test_an_optimizer_with_the_interface_of_dion(monkeypatch):
    matrix, gain = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))
    dion, adamw = OfDion([matrix], torch.tensor(0.5)), FusedAdamW([gain], lr=torch.tensor(0.1))
    schedule = DeviceSchedule([dion, adamw], Cosine(4))
    expected = torch.ones(3, 3)
    for step in range(4):
        matrix.grad, gain.grad = torch.ones(3, 3), torch.ones(3)
        lr = torch.tensor(0.5 * Cosine(4).curve()[step])
        expected = expected * (1 - lr * 0.1) - lr
        dion.step()
        adamw.step()
        schedule.step()
    assert torch.equal(matrix.detach(), expected) and gain.detach().max() < 0.8
