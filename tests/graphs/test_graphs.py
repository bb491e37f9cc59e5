"""A captured training step on the host, with a stand-in for the graph. tests/gpu has the real ones."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.graph_stand_in import Body, StandIn, batch, standing_in, stepped, twins
from support.tensors import assert_same, latest, snapshot

from greedylr_fused.graphs import CapturedStep

__all__ = ["standing_in", "twins"]


def test_calls_are_training_steps_from_the_first_one_on(twins):
    eager, ours, step = twins
    for i in range(3, 9):
        loss, rest = step(batch(i))
        expected, _ = stepped(eager, batch(i))
        assert torch.equal(loss, expected) and rest == {"batch": 5}
        assert ours.opt.read_lr() == eager.opt.read_lr()
        assert ours.opt.param_groups[0]["lr"] == eager.opt.param_groups[0]["lr"]
    assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert latest(ours.opt) == latest(eager.opt)


def test_the_caller_s_batch_is_left_alone_and_results_are_overwritten(twins):
    _, _, step = twins
    given = batch(7)
    first, _ = step(given)
    value = first.clone()
    assert torch.equal(given["inputs"], batch(7)["inputs"])
    second, _ = step(batch(8))
    assert first is second and not torch.equal(first, value)


def test_an_lr_that_is_written_reaches_the_next_replay(twins):
    eager, ours, step = twins
    for i, write in enumerate(
        (lambda opt: opt.param_groups[0].update(lr=0.05), lambda opt: opt.set_lr(0.002), lambda opt: None)
    ):
        write(ours.opt)
        write(eager.opt)
        step(batch(10 + i))
        stepped(eager, batch(10 + i))
        assert ours.opt.read_lr() == eager.opt.read_lr()
    assert_same(snapshot(ours.opt), snapshot(eager.opt))


def test_listeners_are_told_of_replays_and_autograd_of_changes(twins):
    _, ours, step = twins
    told = []

    class Listener:
        def after_step(self):
            pass

        def after_replay(self):
            told.append(ours.opt.metrics().step)

        def after_restart(self):
            pass

    ours.opt._listeners.append(Listener())
    version = ours.params[0]._version
    step(batch(4))
    step(batch(5))
    assert told == [4, 5] and ours.params[0]._version > version


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor(0.01, dtype=torch.float64)])
def test_a_tensor_lr_is_taken_over_before_the_capture_and_never_in_it(standing_in, monkeypatch, lr):
    """A graph would go on copying from the tensor of its capture, over what was written since."""
    ours = Body(lr=lr, schedule=None)
    StandIn.optimizer, written = ours.opt, []
    write = ours.opt._control.write_lr
    monkeypatch.setattr(ours.opt._control, "write_lr", lambda index, lr: (written.append(lr), write(index, lr)))
    capture, within = StandIn.capture, []

    def watched(self, run):
        before = len(written)
        result = capture(self, run)
        within.append(len(written) - before)
        return result

    monkeypatch.setattr(StandIn, "capture", watched)
    step = CapturedStep(ours, ours.opt, warmup=1)
    step(batch(0))
    step(batch(1))
    assert within == [0] and len(written) >= 2
    ours.opt.param_groups[0]["lr"] = torch.tensor(0.5)
    step(batch(2))
    assert ours.opt.read_lr() == [0.5]


def test_a_step_that_is_dropped_waits_for_what_its_graph_reads(standing_in, monkeypatch):
    ours, told = Body(), []
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=1)
    monkeypatch.setattr(CapturedStep, "reset", lambda self: told.append((id(self), self.captured)))
    step(batch(0))
    step(batch(1))
    mine = id(step)
    del step
    gc.collect()
    assert (mine, True) in told  # beside those of other tests, perhaps


def test_what_the_graph_used_is_let_go_with_it(twins):
    """A run that goes back to a checkpoint and captures anew, again and again, does not grow."""
    _, ours, step = twins
    table = weakref.ref(ours.opt._engine.table)
    ours.opt.load_state_dict(ours.opt.state_dict())
    gc.collect()
    assert table() is not None  # the graph is there
    step.reset()
    gc.collect()
    assert table() is None
