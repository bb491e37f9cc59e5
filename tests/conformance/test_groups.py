"""`param_groups` that are assigned, grown, shrunk or put in another order between steps, as with torch's AdamW."""

import copy
import gc
import weakref

import pytest
import torch
from support.tensors import assert_same_bits, parameter

from greedylr_fused import Cosine, FusedAdamW, GreedyLR

LRS = (0.1, 0.02, 0.003)


class Pair:
    """Ours and torch's AdamW over equal parameters, in three groups; without a schedule both do the same."""

    def __init__(self, device, backend, schedule=None):
        self.sides = []
        for kind, options in ((FusedAdamW, {"backend": backend, "schedule": schedule}), (torch.optim.AdamW, {})):
            generator = torch.Generator().manual_seed(0)
            params = [parameter(torch.randn(4 + i, generator=generator).to(device)) for i in range(4)]
            groups = [{"params": [params[i]], "lr": LRS[i], "weight_decay": 0.1 * i} for i in range(3)]
            self.sides.append((kind(groups, lr=1.0, **options), params))
        self.ours, self.torchs = (opt for opt, _ in self.sides)

    def step(self, seed, loss=None):
        for opt, params in self.sides:
            generator = torch.Generator().manual_seed(100 + seed)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(param)
            opt.step(loss=loss) if opt is self.ours and loss is not None else opt.step()

    def compare(self):
        for a, b in zip(self.sides[0][1], self.sides[1][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for (a, x), (b, y) in zip(self.ours.state.items(), self.torchs.state.items(), strict=True):
            assert a.shape == b.shape and float(x["step"]) == float(y["step"])


def reordered(opt, params):
    opt.param_groups.reverse()


def removed(opt, params):
    """With its state, which torch's state_dict() would not find a parameter for."""
    del opt.state[opt.param_groups.pop(1)["params"][0]]


def assigned(opt, params):
    del opt.state[opt.param_groups[0]["params"][0]]
    opt.param_groups = [{**group, "params": list(group["params"])} for group in opt.param_groups[1:]]


def appended(opt, params):
    opt.param_groups.append({**opt.param_groups[0], "params": [params[3]], "lr": 0.5})


def added(opt, params):
    opt.add_param_group({"params": [params[3]], "lr": 0.5})


def merged(opt, params):
    opt.param_groups[0]["params"] += opt.param_groups.pop()["params"]


def assigned_with_another_lr(opt, params):
    opt.param_groups = [{**group, "lr": 0.5 * group["lr"]} for group in opt.param_groups]


def added_and_reordered(opt, params):
    added(opt, params)
    reordered(opt, params)
    opt.param_groups[0]["lr"] = 0.25


CHANGES = [reordered, removed, assigned, appended, added, merged, assigned_with_another_lr, added_and_reordered]


@pytest.mark.parametrize("change", CHANGES)
def test_without_a_schedule_as_torch(device, backend, change):
    pair = Pair(device, backend)
    for seed in range(2):
        pair.step(seed)
    for opt, params in pair.sides:
        change(opt, params)
    for seed in range(2, 4):
        pair.step(seed)
    pair.compare()
    assert [group["lr"] for group in pair.ours.param_groups] == [group["lr"] for group in pair.torchs.param_groups]
    assert pair.ours.metrics().step == 4
    twins = [parameter(param.detach().clone()) for param in pair.sides[0][1]]
    of = {id(param): twin for param, twin in zip(pair.sides[0][1], twins, strict=True)}
    groups = [{**group, "params": [of[id(param)] for param in group["params"]]} for group in pair.ours.param_groups]
    resumed = FusedAdamW(groups, backend=backend)
    resumed.load_state_dict(copy.deepcopy(pair.ours.state_dict()))
    pair.sides[1] = resumed, twins
    pair.step(4)
    for a, b in zip(pair.sides[0][1], twins, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("schedule", [GreedyLR(patience=0, factor=0.5, smooth=False), Cosine(20, warmup_steps=5)])
def test_with_a_schedule_each_group_keeps_its_own(device, backend, change, schedule):
    """Known groups go on, a new one starts at its LR, and all follow the next decisions alike."""
    pair = Pair(device, backend, schedule)
    needs_loss = isinstance(schedule, GreedyLR)
    for seed in range(3):
        pair.step(seed, 3.0 - seed if needs_loss else None)
    before = {group["params"][0]: (group["lr"], lr) for group, lr in lrs_of(pair.ours)}
    curve_value = float(pair.ours._control.slot("curve_value"))
    change(*pair.sides[0])
    wanted = []
    for group in pair.ours.param_groups:
        shown, own = before.get(group["params"][0], (None, None))
        starts = own is None  # at its own peak
        wanted.append(group["lr"] * curve_value if starts else own if group["lr"] == shown else group["lr"])
    found = pair.ours.read_lr()
    assert found == pytest.approx(wanted, rel=1e-12)
    assert [group["lr"] for group in pair.ours.param_groups] == found
    assert pair.ours.metrics().step == 3 and pair.ours.metrics().lr == tuple(found)
    pair.step(3, 1.0 if needs_loss else None)  # neither better nor worse than the last: no raise
    after = pair.ours.read_lr()
    ratios = [b / a for a, b in zip(found, after, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-12)
    saved = copy.deepcopy(pair.ours.state_dict())
    pair.step(4, 0.5 if needs_loss else None)
    pair.ours.load_state_dict(saved)
    assert pair.ours.read_lr() == after


def lrs_of(opt):
    return list(zip(opt.param_groups, opt.read_lr(), strict=True))


def test_what_was_observed_and_written_before_counts(device, backend):
    pair = Pair(device, backend, GreedyLR(patience=0, factor=0.5, smooth=False))
    opt, params = pair.sides[0]
    pair.step(0, 3.0)
    opt.observe(5.0)
    opt.param_groups[2]["lr"] = 0.004
    reordered(opt, params)
    assert opt.read_lr()[0] == 0.004
    pair.step(1)
    assert opt.metrics().loss == 5.0


def test_many_groups_are_added_at_once(device, backend):
    """The control vector is made anew once, by the next step, not by each call."""
    params = [parameter(torch.ones(1, device=device), torch.ones(1, device=device)) for _ in range(20)]
    opt = FusedAdamW(params[:1], lr=0.1, schedule=Cosine(10), backend=backend)
    opt.step()
    known = opt._control
    for i, param in enumerate(params[1:]):
        opt.add_param_group({"params": [param], "lr": 0.01 * (i + 1)})
        assert opt._control is known
    opt.step()
    assert opt._control.n_groups == 20 and opt.metrics().step == 2
    assert opt.read_lr()[1:] == pytest.approx([0.01 * (i + 1) / 0.1 * opt.read_lr()[0] for i in range(19)], rel=1e-12)


def test_no_group_at_all_is_refused_and_changes_nothing(device, backend):
    pair = Pair(device, backend)
    pair.step(0)
    opt = pair.ours
    groups, opt.param_groups = opt.param_groups, []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="empty param_groups"):
            opt.step()
    opt.param_groups = groups
    pair.step(1)
    assert opt.metrics().step == 2


@pytest.mark.parametrize("bad", [{"betas": (2.0, 0.9)}, {"lr": -1.0}, {"eps": "small"}])
def test_a_new_group_that_is_not_allowed_is_refused_and_changes_nothing(device, backend, bad):
    pair = Pair(device, backend)
    pair.step(0)
    opt, params = pair.sides[0]
    opt.param_groups.append({**opt.param_groups[0], "params": [params[3]]} | bad)
    before = [param.detach().clone() for param in params]
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match="of parameter group 3"):
            opt.step()
    for param, value in zip(params, before, strict=True):
        assert_same_bits(param, value)
    opt.param_groups.pop()
    pair.step(1)
    assert opt.metrics().step == 2


def halfway(device, backend, lrs=(1e-3, 2e-3)):
    """Two groups in the middle of a curve."""
    params = [parameter(torch.ones(3, device=device), torch.ones(3, device=device)) for _ in lrs]
    groups = [{"params": [param], "lr": lr} for param, lr in zip(params, lrs, strict=True)]
    opt = FusedAdamW(groups, schedule=Cosine(100), backend=backend)
    for _ in range(50):
        opt.step()
    return opt, params


def comes_back(opt, params):
    group = opt.param_groups.pop()
    opt.metrics()  # the optimizer has seen that it was gone
    opt.param_groups.append(group)


def split(opt, params):
    """One part was trained, the other only added before."""
    group = opt.param_groups[1]
    group["params"].append(parameter(torch.zeros(3, device=params[0].device)))
    opt.param_groups.append({**group, "params": []})
    opt.read_lr()
    opt.param_groups = [opt.param_groups[0], *({**group, "params": [param]} for param in group["params"])]


def grown(opt, params):
    first, second = opt.param_groups
    added = parameter(torch.zeros(3, device=params[0].device))
    opt.param_groups = [{**first, "params": [*first["params"], added]}, second]


@pytest.mark.parametrize("change", [comes_back, split, grown])
def test_a_group_of_known_parameters_keeps_its_peak(device, backend, change):
    opt, params = halfway(device, backend)
    before = opt.read_lr()
    change(opt, params)
    parts = len(opt.param_groups) - 1  # of the second group
    assert opt.read_lr() == [before[0], *[before[1]] * parts]
    assert opt._control.initial_lrs == [1e-3, *[2e-3] * parts]


def test_an_empty_group_is_none_of_the_others(device, backend):
    opt, _ = halfway(device, backend, lrs=(1e-3,))
    opt.add_param_group({"params": []})
    opt.read_lr()
    opt.add_param_group({"params": [], "lr": 4e-4})
    opt.read_lr()
    assert opt._control.initial_lrs == [1e-3, 1e-3, 4e-4]


def test_bounds_of_each_group_refuse_another_order(device, backend):
    params = [parameter(torch.ones(3, device=device), torch.ones(3, device=device)) for _ in range(2)]
    schedule = GreedyLR(min_lr=[1e-4, 1e-3], smooth=False)
    opt = FusedAdamW([{"params": [param]} for param in params], lr=0.01, schedule=schedule, backend=backend)
    opt.step(loss=1.0)
    opt.param_groups.reverse()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="bounds of its own in GreedyLR"):
            opt.step(loss=1.0)
    opt.param_groups.reverse()
    opt.step(loss=1.0)
    assert opt.metrics().step == 2


def test_a_closure_that_adds_a_group_keeps_its_loss(device, backend):
    opt = FusedAdamW(
        [parameter(torch.ones(3, device=device), torch.ones(3, device=device))],
        schedule=GreedyLR(smooth=False),
        backend=backend,
    )

    def added():
        opt.add_param_group({"params": [parameter(torch.ones(2, device=device))]})
        return opt.read_lr()

    def returns():
        added()
        return torch.tensor(0.25, device=device)

    def observes():
        added()
        opt.observe(torch.tensor(0.5, device=device))

    for closure, loss in ((returns, 0.25), (observes, 0.5)):
        opt.step(closure)
        assert opt.metrics().loss == loss
    opt.step(loss=1.0)
    assert opt.metrics().step == 3 and len(opt.metrics().lr) == 3


def test_parameters_that_were_replaced_are_let_go(device, backend):
    """As accelerate does where it shards a model after the optimizer was made."""
    opt = FusedAdamW([parameter(torch.ones(3, device=device))], backend=backend)
    old = [weakref.ref(param) for group in opt.param_groups for param in group["params"]]
    for group in opt.param_groups:
        group["params"] = [parameter(torch.ones(3, device=device), torch.ones(3, device=device))]
    opt.step()
    gc.collect()
    assert [ref() for ref in old] == [None]
