"""The recorder: every step comes to the sinks once, in order, as it was, whenever its copies arrive."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.host_reads import no_host_read
from support.late_copies import LateCopies
from support.telemetry import optimizer, recorded, replay, step, step_unheard
from support.tensors import latest

from greedylr_fused import Cosine, GreedyLR

CAPACITY = 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": None, "max_grad_norm": None},
        {"grad_norms": True},
        {"schedule": GreedyLR(patience=1, window_size=3, base=Cosine(40, warmup_steps=3))},
        {"schedule": Cosine(20, warmup_steps=3), "backend": "reference"},
    ],
    ids=["restless", "plain", "norms", "based", "reference"],
)
def test_every_step_is_recorded_as_metrics_show_it(options):
    options = dict(options)
    grad_norms = options.pop("grad_norms", False)
    opt = optimizer(**options)
    recorder, kept = recorded(opt, capacity=CAPACITY, grad_norms=grad_norms)
    shown = []
    for i in range(50):
        if i == 2:
            opt.set_lr([lr * 0.9 for lr in opt.read_lr()])
        step(opt, loss=math.sin(i) if i % 7 else math.nan, skip=i % 11 == 5 and opt.skip_nonfinite)
        shown.append(latest(opt))
    recorder.close()
    assert kept.numbers == list(range(1, 51))
    assert [each.metrics for each in kept.steps] == shown
    skips = [i % 11 == 5 and opt.skip_nonfinite for i in range(50)]
    assert [each.skipped for each in kept.steps] == skips
    assert not any(each.lost for each in kept.steps)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["step", "skip", "replay", "told", "drain", "wait", "load"]), st.just(0)),
        st.tuples(st.just("arrive"), st.integers(1, 3)),
    ),
    max_size=60,
)


def act(opt, recorder, late, what, count):
    """One random thing that may happen in a run; whether it was a step."""
    if what in ("step", "skip"):
        step(opt, loss=torch.rand(()), skip=what == "skip")
    elif what in ("replay", "told"):
        replay(opt, recorder, told=what == "told", loss=torch.rand(()))
    elif what == "arrive":
        late.arrive(count)
    elif what == "load":
        opt.load_state_dict(opt.state_dict())
    else:
        recorder.drain(wait=what == "wait")
    return what in ("step", "skip", "replay", "told")


@given(actions=ACTIONS, capacity=st.integers(2, CAPACITY))
def test_nothing_is_lost_between_drains(actions, capacity):
    """Whatever is stepped, replayed, drained, loaded and late, as long as a ring is copied before it is full."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        late = LateCopies(monkeypatch)
        opt = optimizer()
        recorder, kept = recorded(opt, capacity=capacity, seconds=math.inf)
        shown, since = [], 1  # the mark with which a ring begins
        for what, count in actions:
            asked = len(late.under_way)
            if since + 2 > capacity and what in ("replay", "told"):
                recorder.drain()
                since = 0
            if act(opt, recorder, late, what, count):
                shown.append(latest(opt))
                since += 1
            if len(late.under_way) > asked or what == "load":
                since = int(what == "load")
            assert [each.metrics for each in kept.steps] == shown[: len(kept.steps)]
        recorder.drain(wait=True)
        assert [each.metrics for each in kept.steps] == shown
        recorder.close()
        assert len(kept.steps) == len(shown) and not any(each.lost for each in kept.steps)


def test_steps_come_when_their_copy_has_arrived(monkeypatch):
    late = LateCopies(monkeypatch)
    opt = optimizer()
    recorder, kept = recorded(opt, capacity=CAPACITY)
    for _ in range(3):
        step(opt)
    assert not late.under_way, "nothing is asked for at every step"
    step(opt)
    assert len(late.under_way) == 1, "half of the ring"
    step(opt)
    recorder.drain()
    assert len(late.under_way) == 2 and not kept.steps
    late.arrive(1)
    step(opt)
    assert kept.numbers == [1, 2, 3, 4], "a step takes over what has arrived"
    late.arrive()
    recorder.drain()
    assert kept.numbers == [1, 2, 3, 4, 5] and len(late.under_way) == 1
    recorder.close()
    assert kept.numbers == [1, 2, 3, 4, 5, 6] and not late.under_way


def test_seconds_pass(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("greedylr_fused.telemetry.recorder.monotonic", lambda: now[0])
    opt = optimizer()
    recorder, kept = recorded(opt, seconds=5)
    step(opt)
    now[0] = 104.9
    step(opt)
    assert kept.numbers == []
    now[0] = 105.0
    step(opt)
    assert kept.numbers == [1, 2, 3]
    step(opt)
    assert kept.numbers == [1, 2, 3], "counted anew"
    recorder.close()


def test_a_step_waits_for_nothing(monkeypatch):
    """Nor does it read memory of the device, while copies arrive now and then."""
    late = LateCopies(monkeypatch)
    opt = optimizer()
    recorder, kept = recorded(opt, capacity=4)
    loss = torch.ones(())
    step(opt, loss)
    with no_host_read(monkeypatch, [recorder._ring._memory, recorder._ring._at]):
        for i in range(40):
            step(opt, loss, skip=i % 5 == 2)
            if i % 3 == 0:
                late.arrive()
            if i % 7 == 0:
                recorder.drain()
    recorder.close()
    assert kept.numbers == list(range(1, 42))


def test_what_is_overwritten_is_counted_once():
    opt = optimizer()
    recorder, kept = recorded(opt, capacity=CAPACITY)
    for _ in range(2):
        step(opt)
    recorder.drain()
    for _ in range(CAPACITY + 5):
        replay(opt, recorder)
    with pytest.warns(RuntimeWarning, match="Recorder: 5 steps were lost.* larger capacity"):
        recorder.drain()
    assert kept.numbers == [1, 2, *range(8, 16)]
    assert [each.lost for each in kept.steps] == [0, 0, 5, *[0] * 7]
    step(opt)
    recorder.close()
    assert kept.numbers[-1] == 16 and kept.steps[-1].lost == 0


def test_steps_that_wrote_no_row_are_counted():
    """Replays of a graph that was captured before there was a recorder."""
    opt = optimizer()
    recorder, kept = recorded(opt)
    step(opt)
    step_unheard(opt, 3)
    step(opt)
    with pytest.warns(RuntimeWarning, match="3 steps were lost"):
        recorder.close()
    assert kept.numbers == [1, 5] and kept.steps[1].lost == 3 and kept.steps[1].event == "cut"


@pytest.mark.parametrize("before", [0, 2])
def test_steps_of_a_graph_captured_before_the_recorder_are_counted_at_the_end(before):
    """Such a graph writes no row, and none may follow."""
    opt = optimizer()
    step(opt)
    recorder, kept = recorded(opt)
    for _ in range(before):
        step(opt)
    step_unheard(opt, 3)
    with pytest.warns(RuntimeWarning, match="3 steps were lost.*before the capture"):
        recorder.close()
    assert len(kept.steps) == before


def test_steps_after_detach_are_not_lost():
    opt = optimizer()
    recorder, kept = recorded(opt)
    step(opt)
    recorder.detach()
    step(opt)
    recorder.close()
    assert kept.numbers == [1]


def test_a_step_that_is_told_of_twice_is_one():
    opt = optimizer()
    recorder, kept = recorded(opt)
    for _ in range(3):
        step(opt)
        recorder.after_step()
    recorder.close()
    assert kept.numbers == [1, 2, 3]


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_step(compiler):
    opt = optimizer()
    recorder, kept = recorded(opt)
    compiled = torch.compile(lambda loss: opt.step(loss=loss), backend=compiler)
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = torch.ones(3)
    shown = []
    for i in range(4):
        compiled(torch.tensor(4.0 - i))
        shown.append(latest(opt))
    recorder.close()
    assert [each.metrics for each in kept.steps] == shown and len(shown) == 4


def test_steps_that_a_loss_scaler_skips():
    """And the plain one after them, in which nobody decides anew whether to skip."""
    opt = optimizer(max_grad_norm=None)
    recorder, kept = recorded(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    param = opt.param_groups[0]["params"][0]
    for factor in (1.0, math.inf, 1.0):
        opt.zero_grad()
        loss = (param * factor).sum()
        scaler.scale(loss).backward()
        scaler.step(opt, loss=1.0)
        scaler.update()
    step(opt)
    recorder.close()
    assert [each.skipped for each in kept.steps] == [False, True, False, False]
    assert [each.metrics.skipped for each in kept.steps] == [0, 1, 1, 1]
