"""Trainings with a level search: every bit of what its trials change, and of what putting them back leaves."""

import math

import pytest
import torch
from support.host_reads import as_of_a_device, no_host_read
from support.searches import BASE, golden
from support.tensors import assert_same, latest, parameter
from support.trials import BF16, LRS, STORAGES, Training, everything, groups, pair, params

from greedylr_fused import AdaLRS, Climb, FusedAdamW, Linear, SkipSpikes
from greedylr_fused.schedules import Backup, Phase, SearchSpec
from greedylr_fused.tensors import Backup as Backups

#: A trial from step 11 to 21, a control to 31, and so on.
CASE = "climb, the first try fails"


def few(backend, device, count):
    """A count that the time allows."""
    return count // 2 if backend == "triton" and device.type == "cpu" else count


def slot(opt, name):
    return float(opt._control.slot(name))


@pytest.mark.parametrize(
    ("name", "storage"),
    [(CASE, storage) for storage in STORAGES]
    + [("climb, a skipped step", "floats"), ("adalrs, small", "floats"), ("adalrs, not finite", "floats")],
)
def test_a_search_is_a_training_with_copies(backend, device, name, storage):
    if backend == "triton" and storage != "floats":
        pytest.skip("the interpreter takes too long; test_backup.py copies each storage")
    case = golden()[name]
    ours, by_hand = pair(case["config"], backend, device, storage)
    actions = set()
    for loss in case["losses"][: few(backend, device, 100)]:
        for training in (ours, by_hand):
            training.step(loss)
        assert_same(everything(ours.opt), everything(by_hand.opt))
        actions.add(by_hand.spec.backup)
    assert actions == {*Backup} or backend == "triton"


def test_kept_copies_follow_what_is_put_back(backend, device):
    if backend == "triton":
        pytest.skip("the interpreter takes too long; test_backup.py has copies")
    case = golden()[CASE]
    ours, by_hand = pair(case["config"], backend, device, copied=True)
    for loss in case["losses"][:40]:
        for training in (ours, by_hand):
            training.step(loss)
        for param, copy in ours.opt._engine.copies.of.items():
            assert torch.equal(copy, param.to(BF16))
    assert_same(everything(ours.opt), everything(by_hand.opt))


@pytest.mark.parametrize("skips", [False, True])
def test_a_trial_that_breaks_the_weights_ends(backend, device, skips):
    """At an LR that float32 does not hold; if their gradients do not skip the step, the loss tells."""
    config = Climb(base=BASE, min_window=8, window=0.0, start=1.0, factor=1e38, top=1e38)
    weight = parameter(torch.tensor([1.0, -2.0, 3.0], device=device))
    opt = FusedAdamW([weight], lr=1e3, weight_decay=0.0, schedule=config, backend=backend, skip_nonfinite=skips)
    kept, broke = None, 0
    for _ in range(few(backend, device, 60)):
        loss = weight.square().sum()
        opt.zero_grad()
        loss.backward()
        opt.step(loss=loss.detach())
        if slot(opt, "backup") == Backup.TAKE:
            kept = everything(opt)
        if slot(opt, "backup") == Backup.PUT_BACK:
            assert_same(everything(opt), kept)
            assert slot(opt, "phase") == Phase.FROZEN, "above the starting LR a trial must win"
        broke += not weight.isfinite().all()
    assert broke == 1 and latest(opt).skipped == skips
    assert latest(opt).phase == "frozen" and latest(opt).level == 1.0
    assert weight.isfinite().all()


def reach(training, losses, phase, window_step):
    """Step until the search is so far; return the losses that are left."""
    for number, loss in enumerate(losses):
        training.step(loss)
        at = (slot(training.opt, "phase"), slot(training.opt, "window_step"))
        if at == (phase, window_step):
            return losses[number + 1 :]
    raise AssertionError("not reached")


def test_a_state_that_a_trial_makes_is_as_new_after_it(backend, device):
    """Of a parameter that has its first gradient within the trial; and one more trial keeps what the last left."""
    case = golden()["climb, stops"]
    opt = FusedAdamW(groups(params(device)), schedule=case["config"], backend=backend)
    training = Training(opt)
    late = training.params()[2]
    losses, before, known = case["losses"], late.detach().clone(), 0
    for loss in losses[:32]:
        training.step(loss, without=[2] if training.number < 15 else [])
        known += late in opt.state
        if slot(opt, "backup") == Backup.PUT_BACK:
            assert known > 2 and torch.equal(late, before)
            assert all(not value.any() for value in opt.state[late].values())
    assert float(opt.state[late]["step"]) == 10.0 and slot(opt, "phase") == Phase.TRIAL
    kept = everything(opt)
    for loss in losses[32:42]:
        training.step(loss)
    assert slot(opt, "backup") == Backup.PUT_BACK
    assert_same(everything(opt), kept)


def test_a_group_that_joins_within_a_trial_goes_back_to_when_it_did(backend, device):
    case = golden()["climb, stops"]
    ours, by_hand = pair(case["config"], backend, device)
    losses = case["losses"]
    for training in (ours, by_hand):
        for loss in losses[:15]:
            training.step(loss)
    assert slot(ours.opt, "phase") == Phase.TRIAL
    new = parameter(torch.full((5,), 3.0, device=device))
    ours.opt.add_param_group({"params": [new], "lr": 0.5})
    for loss in losses[15:22]:
        for training in (ours, by_hand):
            training.step(loss)
    assert slot(ours.opt, "backup") == Backup.PUT_BACK
    found, expected = everything(ours.opt), everything(by_hand.opt)
    assert_same({name: found[name] for name in expected}, expected)
    assert torch.equal(new, torch.full_like(new, 3.0)) and float(ours.opt.state[new]["step"]) == 0.0


def test_a_spike_within_a_trial_is_no_verdict(backend, device):
    """It is skipped, its loss is not counted, and the trial goes on for as many steps as without it."""
    config = Climb(base=BASE, min_window=8, window=0.0)
    options = dict(skip_nonfinite=True, backend=backend, max_grad_norm=1.0)
    spikes = SkipSpikes(rolling_interval_length=8, minimum=4)
    ours = Training(FusedAdamW(groups(params(device)), schedule=config, skip_spikes=spikes, **options))
    spec = SearchSpec(config)
    for step in range(few(backend, device, 44)):
        loss = 5.0 - 0.01 * step + 0.01 * (step % 3)
        spike = step in (15, 24)
        ours.step(100.0 if spike else loss)
        if not spike:
            spec.observe(loss)
        assert slot(ours.opt, "phase") == spec.phase and slot(ours.opt, "multiplier") == spec.multiplier
        assert slot(ours.opt, "sum_y") == spec.sums.y
        if spike:
            assert slot(ours.opt, "backup") == Backup.NONE
            assert spec.phase is (Phase.TRIAL if step == 15 else Phase.CONTROL)
    assert latest(ours.opt).skipped_spikes == latest(ours.opt).skipped == (2 if backend != "triton" else 1)


def test_a_loss_scale_that_overflows_within_a_trial_fails_it(backend, device):
    case = golden()["climb, stops"]
    ours, _ = pair(case["config"], backend, device)
    reach(ours, case["losses"], Phase.TRIAL, 3)
    ours.opt.grad_scale = torch.tensor(4.0, device=device)
    ours.opt.found_inf = torch.tensor(1.0, device=device)
    ours.step(1.0)
    assert slot(ours.opt, "backup") == Backup.PUT_BACK and slot(ours.opt, "phase") == Phase.CONTROL
    assert math.isnan(slot(ours.opt, "kept"))


@pytest.mark.parametrize(
    "config", [Climb(base=Linear(400, warmup_steps=20)), AdaLRS(base=Linear(400))], ids=["climb", "adalrs"]
)
def test_the_backup_is_there_until_the_search_is_over(backend, device, config):
    ours, _ = pair(config, "cpu" if backend == "triton" else backend, device, copied=True)
    opt = ours.opt
    foretold = opt.memory()
    assert opt._engine.backup is None and foretold.backup > 0
    assert foretold.total == foretold.backup + sum(
        getattr(foretold, kind) for kind in ("parameters", "gradients", "moments", "remainders")
    )
    saved = None
    for step in range(250):
        ours.step(5.0 - 0.01 * step)
        if step == 30:
            saved = opt.state_dict()
        searches = latest(opt).phase != "frozen"
        assert (opt._engine.backup is not None) == searches
        assert opt.memory().backup == (foretold.backup if searches else 0)
        if searches:
            assert opt._engine.backup.nbytes == foretold.backup
    assert not searches and "backup" not in repr(opt.memory()) and "backup" in repr(foretold)
    opt._engine.discard()  # a new table needs none
    ours.step(1.0)
    assert opt._engine.backup is None
    opt.load_state_dict(saved)
    ours.step(1.0)
    assert opt._engine.backup is not None and opt.memory() == foretold


def test_no_step_searches_without_its_backup(backend, device, monkeypatch):
    """A backup that finds no memory fails the step before it, and the next one tries again."""
    ours, by_hand = pair(golden()["climb, stops"]["config"], backend, device)
    real, left = Backups.place, [MemoryError("no room"), MemoryError("no room")]

    def place(self, *args):
        if left:
            raise left.pop()
        return real(self, *args)

    monkeypatch.setattr(Backups, "place", place)
    for _ in range(2):
        ours.number = 0
        with pytest.raises(MemoryError):
            ours.step(1.0)
    ours.number = 0
    for loss in golden()["climb, stops"]["losses"][:24]:
        for training in (ours, by_hand):
            training.step(loss)
    assert_same(everything(ours.opt), everything(by_hand.opt))
    assert by_hand.spec.phase is Phase.CONTROL


def test_nothing_is_read_back(backend, device, monkeypatch):
    """In no step of a whole search, the one that lets the backup go included."""
    if backend == "triton":
        pytest.skip("the interpreter takes too long")
    as_of_a_device(monkeypatch)
    config = Climb(base=BASE, min_window=4, window=0.0)
    opt = FusedAdamW(groups(params(device)), schedule=config, backend=backend, max_grad_norm=1.0)
    training = Training(opt)
    training.step(5.0)
    losses = [torch.tensor(5.0 - 0.1 * step, device=device) for step in range(80)]
    state = [value for own in opt.state.values() for value in own.values()]
    kept = [own for _, own in opt._engine.backup.table.pairs]
    with no_host_read(monkeypatch, [*training.params(), *state, *losses, *kept, opt._control.vector]):
        for loss in losses:
            training.step(loss)
    assert opt._engine.backup is None and latest(opt).phase == "frozen"


def test_after_the_search_the_lrs_are_those_of_the_base(backend, device):
    case = golden()["climb, stops"]
    ours, _ = pair(case["config"], backend, device)
    if backend == "triton":
        pytest.skip("the interpreter takes too long")
    for loss in case["losses"][:72]:
        ours.step(loss)
    curve = BASE.curve()
    level = latest(ours.opt).level
    for step in range(72, 90):
        assert ours.opt.read_lr() == [lr * level * curve[step] for lr in LRS]
        ours.step(0.1 * step)
    assert latest(ours.opt).phase == "frozen" and latest(ours.opt).level == level
