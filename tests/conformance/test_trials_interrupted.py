"""Trials of a level search that something comes between: an interrupt, a lack of memory, another dtype."""

import copy

import pytest
import torch
from support.searches import golden
from support.tensors import assert_same
from support.trials import Training, everything, groups, pair, params

from greedylr_fused import AdaLRS, Climb, FusedAdamW, Linear
from greedylr_fused.schedules import Backup, Phase
from greedylr_fused.tensors import Backup as Backups

CASE = "climb, the first try fails"


def search(backend, device, **options):
    opt = FusedAdamW(groups(params(device)), schedule=golden()[CASE]["config"], backend=backend, **options)
    return Training(opt)


@pytest.mark.parametrize("action", [Backup.TAKE, Backup.PUT_BACK])
def test_an_interrupt_after_the_update_loses_no_copy(monkeypatch, backend, device, action):
    """As Ctrl-C does: Python raises it when the native call returns, which is where a step spends its time."""
    ours, by_hand = pair(golden()[CASE]["config"], backend, device)
    interrupted = 0
    for loss in golden()[CASE]["losses"][:35]:
        by_hand.step(loss)
        if by_hand.spec.backup is not action:
            ours.step(loss)
        else:
            kind = type(ours.opt._engine.backend)
            update, interrupted = kind.update, interrupted + 1
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

                def interrupt(*given, update=update, **named):
                    update(*given, **named)
                    raise KeyboardInterrupt

                patch.setattr(kind, "update", interrupt)
                ours.step(loss)
        assert_same(everything(ours.opt), everything(by_hand.opt))
    assert interrupted


def test_a_step_that_fails_before_its_control_copies_nothing(monkeypatch, backend, device):
    """What the last control asked for is done: weights written since are the user's."""
    training = search(backend, device, max_grad_norm=1.0)
    for loss in golden()[CASE]["losses"]:
        training.step(loss)
        if float(training.opt._control.slot("backup")) == Backup.PUT_BACK:
            break
    with torch.no_grad():
        for param in training.params():
            param.fill_(7.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(type(training.opt._engine.backend), "measure", interrupt)
        training.step(1.0)
    assert all(bool((param == 7.0).all()) for param in training.params())


def test_a_lack_of_memory_ends_one_step_and_no_other(monkeypatch, backend, device):
    if backend == "triton":
        pytest.skip("the host's business, and the interpreter takes too long")
    done = search(backend, device)
    for loss in golden()[CASE]["losses"][:110]:
        done.step(loss)
    assert float(done.opt._control.slot("phase")) == Phase.FROZEN
    opt = search(backend, device)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):

        def fail(*_):
            raise torch.OutOfMemoryError("no room")

        patch.setattr(Backups, "place", fail)
        opt.step(1.0)
    opt.opt.load_state_dict(copy.deepcopy(done.opt.state_dict()))
    opt.step(1.0)
    assert opt.opt._engine.backup is None


def test_parameters_that_are_rounded_in_a_trial_go_back_to_the_rounded_ones(backend, device):
    training = search(backend, device)
    kept = None
    for loss in golden()[CASE]["losses"][:35]:
        if kept is not None and float(training.opt._control.slot("window_step")) == 3.0:
            for param in training.params():
                param.data, param.grad = param.data.bfloat16(), None
        training.step(loss)
        copies = float(training.opt._control.slot("backup"))
        if copies == Backup.TAKE:
            kept = [param.detach().clone() for param in training.params()]
        if copies == Backup.PUT_BACK and training.params()[0].dtype == torch.bfloat16:
            for param, before in zip(training.params(), kept, strict=True):
                assert torch.equal(param, before.bfloat16())
            return
    raise AssertionError("no trial was put back")


def test_a_search_that_keeps_trials_skips_steps_that_would_break_them():
    """No loss has judged the last step of a trial that is kept."""
    weight = torch.nn.Parameter(torch.zeros(3))
    base = Linear(1000)
    assert FusedAdamW([weight], schedule=AdaLRS(base=base)).skip_nonfinite
    assert not FusedAdamW([weight], schedule=AdaLRS(base=base), skip_nonfinite=False).skip_nonfinite
    assert not FusedAdamW([weight], schedule=Climb(base=base)).skip_nonfinite, "it puts every trial back"
