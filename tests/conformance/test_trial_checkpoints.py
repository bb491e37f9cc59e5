"""Checkpoints of trainings with a level search, in every phase: what goes on has the bits of an undisturbed run."""

import pytest
import torch
from support.searches import golden
from support.tensors import assert_same
from support.trials import everything, pair

from greedylr_fused.schedules import Phase


@pytest.mark.parametrize(
    "name, first",
    [
        ("climb, raises to the top", "model"),
        ("adalrs, small", "optimizer"),
        pytest.param("climb, raises to the top", "optimizer", marks=pytest.mark.exhaustive),
        pytest.param("adalrs, small", "model", marks=pytest.mark.exhaustive),
    ],
)
def test_a_checkpoint_of_any_phase_goes_on(backend, device, name, first):
    """With every bit of a run that was not interrupted; within a trial, of one whose trial ended there, without a
    verdict, and with its steps. Whatever is saved first: saving changes nothing.
    """
    case = golden()[name]
    config, losses = case["config"], case["losses"]
    seen = set()
    for at in (5, 16, 25, 46, 57, 70):
        ours, by_hand = pair(config, backend, device)
        for loss in losses[:at]:
            for training in (ours, by_hand):
                training.step(loss)
        before = everything(ours.opt), ours.opt._control.vector.clone()
        model = [param.detach().clone() for param in ours.params()] if first == "model" else None
        saved = ours.opt.state_dict()
        model = model or [param.detach().clone() for param in ours.params()]
        assert_same(everything(ours.opt), before[0])
        assert repr(ours.opt._control.vector.tolist()) == repr(before[1].tolist())
        seen.add(by_hand.spec.phase)
        other, _ = pair(config, backend, device)
        with torch.no_grad():
            for param, values in zip(other.params(), model, strict=True):
                param.copy_(values)
        other.opt.load_state_dict(saved)
        other.number = ours.number
        by_hand.spec.resume()
        for loss in losses[at : at + 40]:
            for training in (other, by_hand):
                training.step(loss)
        assert_same(everything(other.opt), everything(by_hand.opt))
        assert float(other.opt._control.slot("phase")) == by_hand.spec.phase
    assert {Phase.TRIAL, Phase.CONTROL} <= seen
