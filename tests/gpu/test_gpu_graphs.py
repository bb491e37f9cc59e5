"""A whole training step as a CUDA graph does what the eager step does, bit for bit, LR included."""

import dataclasses
import itertools

import pytest
import torch
from machines import RESTLESS, WARM_UP, Training
from support.tensors import assert_same, snapshot

from greedylr_fused import WSD

REPLAYS = 12
BF16 = torch.bfloat16
OPTIONS = {
    "plain": {},
    "clipping": {"max_grad_norm": 0.01},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.5},
    "two_mixes": {"dtypes": (torch.float32, BF16), "max_grad_norm": 0.01},
    "measuring": {"norms": True},
    "float32_moments": {"dtypes": (BF16,), "state_dtype": torch.float32},
}


def twins(machine, **options):
    """The same training twice, the second captured; both after the same steps."""
    eager, other = (Training(machine, **options) for _ in range(2))
    for i in range(WARM_UP):
        eager.step(i)
    return eager, other, other.captured()


@pytest.mark.parametrize("options", OPTIONS)
def test_replays_are_eager_steps(machine, options):
    eager, captured, replay = twins(machine, **OPTIONS[options])
    rates = []
    for i in range(WARM_UP, WARM_UP + REPLAYS):
        eager.step(i)
        replay(i)
        rates.append(eager.opt.read_lr())
        assert captured.opt.read_lr() == rates[-1]
    assert_same(snapshot(captured.opt), snapshot(eager.opt))
    assert sum(a != b for a, b in itertools.pairwise(rates)) > REPLAYS // 2, "the LR changes across replays"
    assert machine.metrics(captured.opt).step == WARM_UP + REPLAYS


@pytest.mark.parametrize("based", [False, True], ids=["by_step", "by_loss_too"])
def test_replays_follow_a_curve_and_a_decay_that_begins_between_them(machine, based):
    wsd = WSD(warmup_steps=WARM_UP + 3)
    eager, captured, replay = twins(machine, schedule=dataclasses.replace(RESTLESS, base=wsd) if based else wsd)
    rates = []
    for i in range(WARM_UP, WARM_UP + REPLAYS):
        if i == WARM_UP + 5:
            eager.opt.start_decay(4)
            captured.opt.start_decay(4)
        eager.step(i)
        replay(i)
        rates.append(eager.opt.read_lr())
        assert captured.opt.read_lr() == rates[-1]
    assert_same(snapshot(captured.opt), snapshot(eager.opt))
    assert rates[0] != rates[1] and rates[-1] == [0.0]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("place", ["new", "same"])
def test_a_graph_survives_eager_steps_between_replays(machine, options, place):
    """Those have gradients at other addresses, which the next replay must not use, nor the next eager step the
    graph's: neither when that step's gradients lie where none lay before, nor when they lie where the last eager
    step's did, so that for the host nothing has changed.
    """
    eager, captured, replay = twins(machine, **OPTIONS[options])
    held = []
    for i in range(WARM_UP, WARM_UP + REPLAYS):
        eager.step(i)
        if i % 3 < 2:
            replay(i)
        elif place == "same":
            captured.step_in_place(i)
        else:
            captured.step(i)
            held.append([param.grad for param in captured.params])  # so that each has an address of its own
    assert_same(snapshot(captured.opt), snapshot(eager.opt))


def test_an_eager_step_between_capture_and_first_replay(machine):
    """Capturing runs nothing: what the graph will send was not sent yet."""
    eager, captured, replay = twins(machine, max_grad_norm=0.01)
    graphs = [param.grad for param in captured.params]
    if machine.on_gpu:  # at the graph's own addresses
        for grad in graphs:
            grad.zero_()
        captured.feed(5)
        captured.body()
    else:
        captured.step(5)
    eager.step(5)
    for i in (6, 7):
        eager.step(i)
        replay(i)
    assert_same(snapshot(captured.opt), snapshot(eager.opt))


def test_an_lr_written_before_a_capture_is_refused_in_it(gpu):
    """The graph would write it again at every replay, over what set_lr() or the schedule decided since."""
    training = Training(gpu)
    training.step(0)
    for group in training.opt.param_groups:
        group["lr"] = 0.02
    training.opt.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="expected a write before or after the capture of a CUDA graph, got"),
        torch.cuda.graph(graph),
    ):
        training.body()
    training.step(1)
    assert all(0.001 <= lr <= 0.1 for lr in training.opt.read_lr())


@pytest.mark.parametrize("schedule", [None, RESTLESS], ids=["no_schedule", "schedule"])
def test_set_lr_reaches_a_graph(machine, schedule):
    eager, captured, replay = twins(machine, schedule=schedule)
    for i, lr in enumerate((0.02, 0.005, 0.005, 0.09), WARM_UP):
        for training in (eager, captured):
            training.opt.set_lr(lr)
        eager.step(i)
        replay(i)
        assert captured.opt.read_lr() == eager.opt.read_lr()
        assert_same(snapshot(captured.opt), snapshot(eager.opt))


def test_two_graphs_of_one_optimizer(machine):
    """Each reads its own gradients, whichever ran last."""
    eager, captured, first = twins(machine, max_grad_norm=0.01)
    second = captured.captured()
    for i in range(WARM_UP):
        eager.step(i)
    for i in (5, 6, 7, 8, 9):
        eager.step(i)
        (first, second, second, first, first)[i - 5](i)
    assert_same(snapshot(captured.opt), snapshot(eager.opt))


def test_a_checkpoint_goes_on_in_a_graph(machine):
    """Loaded into an optimizer that was captured before: captured anew, it goes on as if it had never stopped."""
    eager, captured, replay = twins(machine)
    eager.step(5)
    replay(5)
    resumed = Training(machine)
    resumed.captured()
    with torch.no_grad():
        for new, old in zip(resumed.params, captured.params, strict=True):
            new.copy_(old)
    resumed.opt.load_state_dict(captured.opt.state_dict())
    replay = resumed.captured()
    for i in range(WARM_UP):
        eager.step(i)
    for i in (6, 7, 8):
        eager.step(i)
        replay(i)
        assert resumed.opt.read_lr() == eager.opt.read_lr()
    assert_same(snapshot(resumed.opt, control=False), snapshot(eager.opt, control=False))


def test_observations_of_micro_batches_in_a_graph(machine):
    """`observe` per micro-batch and one step, captured as one graph."""

    def body(training):
        for weight in (1.0, 3.0):
            loss = training.loss()
            (loss / 2).backward()
            training.opt.observe(loss, weight=weight)
        training.opt.step()

    eager, captured = (Training(machine, max_grad_norm=1e-4) for _ in range(2))
    for i in range(WARM_UP + 4):
        eager.opt.zero_grad()
        eager.feed(i)
        body(eager)
    replay = captured.captured(lambda: body(captured))
    for i in range(WARM_UP, WARM_UP + 4):
        replay(i)
    assert_same(snapshot(captured.opt), snapshot(eager.opt))
