"""Checkpoints of schedules: resumed to the bit, taken over by other schedules, refused where they cannot be."""

import copy
import pickle

import pytest
import torch
from support.tensors import assert_same, assert_same_bits, latest, parameter, snapshot
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from greedylr_fused import WSD, Constant, Cosine, FusedAdamW, GreedyLR, Linear, OneCycle, ReduceOnPlateau, Table

LOSSES = [5.0, 4.0, 4.5, 4.4, 3.0, 3.5, 3.6, 2.0, 2.5, 2.6, 2.7, 1.0]
GREEDY = {"patience": 0, "factor": 0.8}
SCHEDULES = {
    "cosine": Cosine(9, warmup_steps=3),
    "late": WSD(warmup_steps=2),
    "plateau": ReduceOnPlateau(patience=1, factor=0.5, cooldown=1, smooth=True, window_size=3),
    "based": GreedyLR(**GREEDY, base=Linear(10, warmup_steps=2), smooth=True, window_size=3, forget_every=4),
    "based late": GreedyLR(**GREEDY, base=WSD(), compare="previous", cooldown=1, warmup=1),
}


def build(backend, device, schedule, lr=0.5):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    return FusedAdamW([param], lr=lr, schedule=schedule, backend=backend)


def run(opt, losses):
    for t, loss in losses:
        if t == 4 and "WSD" in repr(opt.schedule):
            opt.start_decay(5)
        opt.step(loss=loss)


@pytest.mark.parametrize("name", SCHEDULES)
def test_going_on_is_as_if_it_had_never_stopped(backend, device, name):
    steps = list(enumerate(LOSSES))
    whole = build(backend, device, SCHEDULES[name])
    run(whole, steps)
    for at in (0, 3, 6, 9):
        first = build(backend, device, SCHEDULES[name])
        run(first, steps[:at])
        saved = pickle.loads(pickle.dumps(first.state_dict()))
        values = [p.detach().clone() for p in first.param_groups[0]["params"]]
        second = build(backend, device, SCHEDULES[name], lr=0.1)
        with torch.no_grad():
            second.param_groups[0]["params"][0].copy_(values[0])
        second.load_state_dict(saved)
        for resumed in (second, copy.deepcopy(first)):
            for param in resumed.param_groups[0]["params"]:
                param.grad = torch.ones_like(param)  # a copy has none
            run(resumed, steps[at:])
            assert_same(snapshot(resumed), snapshot(whole))


def test_through_distributed_checkpointing_in_mid_decay(backend, device):
    """Its optimizer begins at LR 0 of a warm-up, and is made to create its state by a step at LR 0."""
    models = [torch.nn.Linear(2, 2, device=device) for _ in range(2)]
    opts = [FusedAdamW(m.parameters(), lr=0.5, schedule=WSD(warmup_steps=2), backend=backend) for m in models]
    for param in models[0].parameters():
        param.grad = torch.ones_like(param)
    run(opts[0], list(enumerate(LOSSES[:6])))
    saved = get_optimizer_state_dict(models[0], opts[0])
    set_optimizer_state_dict(models[1], opts[1], saved)
    assert opts[1].read_lr() == opts[0].read_lr() == [0.5 * WSD().decay(5)[2]]
    assert_same_bits(opts[1]._control.vector, opts[0]._control.vector)
    for opt in opts:
        for param in opt.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        opt.step()
    assert opts[1].read_lr() == opts[0].read_lr() == [0.5 * WSD().decay(5)[3]]


@pytest.mark.parametrize(
    "schedule", [Cosine(9, warmup_steps=3), GreedyLR(base=Cosine(9, warmup_steps=3), smooth=False)]
)
def test_the_first_step_of_a_warm_up_is_a_step(backend, device, schedule):
    """Its LR is 0, as in the step by which distributed checkpointing creates state; nobody has written that 0."""
    opt = build(backend, device, schedule)
    opt.param_groups[0]["params"][0].grad.zero_()
    opt.step(loss=1.0) if isinstance(schedule, GreedyLR) else opt.step()
    assert latest(opt).step == 1 and opt.read_lr() == [0.5 * (1 / 3)]
    if isinstance(schedule, GreedyLR):
        with pytest.raises(RuntimeError, match="expected a loss, from which its schedule GreedyLR decides, got none"):
            build(backend, device, schedule).step()


def test_a_checkpoint_from_before_there_were_step_schedules(backend, device):
    opt = build(backend, device, GreedyLR(**GREEDY))
    run(opt, list(enumerate(LOSSES[:4])))
    saved = opt.state_dict()
    for name in ("level", "forget_left", "decay_start", "decay_steps", "fraction"):
        del saved["param_groups"][0]["control"][name]
    old = build(backend, device, GreedyLR(**GREEDY))
    old.load_state_dict(saved)
    assert_same_bits(old._control.vector, opt._control.vector)


def test_torchs_adamw_under_a_scheduler_hands_over_its_peak_and_its_steps(backend, device):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    theirs = torch.optim.AdamW([param], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda t: (10 - t) / 10)
    for _ in range(4):
        theirs.step()
        scheduler.step()
    ours = build(backend, device, Linear(10), lr=1.0)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(6):
        assert ours.read_lr() == scheduler.get_last_lr()
        theirs.step()
        scheduler.step()
        ours.step()


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_of_a_warm_up_only_what_is_left_is_waited_for(backend, device, steps):
    """Where a schedule starts anew in mid-run, as from torch's AdamW or from another schedule."""
    based = GreedyLR(**GREEDY, base=Constant(warmup_steps=3), smooth=False)
    theirs = torch.optim.AdamW([parameter(torch.zeros(3, device=device), torch.ones(3, device=device))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda t: min(1.0, t / 3))
    other = build(backend, device, Constant(warmup_steps=3))
    for _ in range(steps):
        theirs.step()
        scheduler.step()
        other.step()
    for source in (theirs, other):
        opt = build(backend, device, based)
        opt.load_state_dict(source.state_dict())
        assert float(opt._control.slot("warmup_left")) == max(0, 3 - steps)


def test_a_hold_of_its_own_is_waited_for_whole(backend, device):
    """It counts observations of this schedule, which has made none."""
    other = build(backend, device, Linear(10))
    for _ in range(4):
        other.step()
    opt = build(backend, device, GreedyLR(**GREEDY, hold=5))
    opt.load_state_dict(other.state_dict())
    assert float(opt._control.slot("warmup_left")) == 5.0


@pytest.mark.parametrize(
    ("saved", "loaded", "want"),
    [
        (Linear(10), Linear(20), 0.5 * 0.8),  # a longer run: the peak stays
        (Linear(10), GreedyLR(smooth=False), 0.5 * 0.6),  # goes on from the LR
        (Linear(10), GreedyLR(base=Linear(10), smooth=False), 0.5 * 0.6),
        (GreedyLR(base=Linear(10), patience=9, smooth=False), Linear(10), 0.5 * 0.6),
        (GreedyLR(patience=9, smooth=False), Table([0.25]), 0.5 * 0.25),
        (GreedyLR(patience=9, smooth=False), GreedyLR(base=Linear(10), patience=9, smooth=False), 0.5 * 0.6),
        (ReduceOnPlateau(), GreedyLR(smooth=False), 0.5),
        (GreedyLR(base=Linear(10), patience=9), GreedyLR(patience=9), 0.5 * 0.6),  # without the base, from the LR
        (Linear(10), None, 0.5 * 0.6),
    ],
    ids=str,
)
def test_another_schedule_takes_over(backend, device, saved, loaded, want):
    source = build(backend, device, saved)
    run(source, list(enumerate(LOSSES[:4])))
    opt = build(backend, device, loaded)
    opt.load_state_dict(source.state_dict())
    assert opt.read_lr() == [pytest.approx(want, rel=1e-15)] and latest(opt).step == (4 if loaded else 0) or not loaded


def test_numbers_that_another_optimizer_handed_on_while_it_trained(backend, device):
    """torch's AdamW takes ours in its groups, counts steps in its states alone, and writes an LR of its own."""
    source = build(backend, device, Linear(10))
    run(source, list(enumerate(LOSSES[:2])))
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    theirs = torch.optim.AdamW([param], lr=1.0)
    theirs.load_state_dict(source.state_dict())
    for _ in range(3):
        theirs.step()
    theirs.param_groups[0]["lr"] = 0.1
    opt = build(backend, device, Linear(10))
    opt.load_state_dict(theirs.state_dict())
    assert opt.read_lr() == [0.1] and latest(opt).step == 5
    opt.step()
    assert opt.read_lr() == [0.2 * 0.4]


def test_a_decay_that_the_schedule_does_not_know_is_refused(backend, device):
    source = build(backend, device, WSD())
    source.start_decay(5)
    run(source, [(0, 1.0), (1, 1.0)])
    opt = build(backend, device, Linear(10))
    before = snapshot(opt)
    with pytest.raises(
        ValueError, match=r"expected a decay of at most 0 steps.*, got one of 5 that start_decay\(\) began"
    ):
        opt.load_state_dict(source.state_dict())
    assert_same(snapshot(opt), before)


def test_a_load_that_fails_leaves_the_decay_that_was_going_on(backend, device):
    source, opt = (build(backend, device, WSD()) for _ in range(2))
    source.start_decay(50)
    opt.start_decay(4)
    opt.step()

    def fail(_):
        raise OSError("disk")

    with opt.register_load_state_dict_post_hook(fail), pytest.raises(OSError, match="disk"):
        opt.load_state_dict(source.state_dict())
    opt.step()
    assert opt.read_lr() == [0.5 * WSD().decay(4)[2]]


def test_an_lr_edited_in_the_checkpoint_moves_the_level(backend, device):
    source = build(backend, device, Linear(10))
    run(source, list(enumerate(LOSSES[:5])))
    saved = source.state_dict()
    saved["param_groups"][0]["lr"] = 0.125
    opt = build(backend, device, Linear(10))
    opt.load_state_dict(saved)
    assert opt.read_lr() == [0.125]
    opt.step()
    assert opt.read_lr() == [0.25 * 0.4]


def test_onecycle_of_torch_hands_over_its_peak_not_where_it_began(backend, device):
    param = parameter(torch.zeros(3, device=device), torch.ones(3, device=device))
    theirs = torch.optim.AdamW([param], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.5, total_steps=10, cycle_momentum=False)
    for _ in range(4):
        theirs.step()
        scheduler.step()
    ours = build(backend, device, OneCycle(10))
    ours.load_state_dict(theirs.state_dict())
    assert ours.read_lr() == pytest.approx(scheduler.get_last_lr(), rel=1e-15)


@pytest.mark.parametrize("own", [True, False])
def test_a_step_schedule_begins_where_none_was_before(backend, device, own):
    """At its first step: else 20 steps of a constant LR would put it at its end, and the LR of a curve whose numbers
    were deleted would be multiplied by that curve twice."""
    source = build(backend, device, Linear(40) if own else None)
    for _ in range(20):
        source.step()
    saved = source.state_dict()
    saved["param_groups"][0].pop("control", None)
    opt = build(backend, device, Linear(10), lr=1.0)
    opt.load_state_dict(saved)
    for t in range(3):
        assert opt.read_lr() == [(0.25 if own else 0.5) * ((10 - t) / 10)]
        opt.step()


@pytest.mark.parametrize("based", [True, False])
def test_an_lr_written_where_the_curve_is_zero_is_not_forgotten(backend, device, based):
    """It holds for one step, also for the copy that takes that step."""
    base = Linear(10, warmup_steps=2)
    opt = build(backend, device, GreedyLR(base=base) if based else base)
    opt.set_lr(0.125)
    resumed = build(backend, device, opt.schedule)
    resumed.load_state_dict(opt.state_dict())
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), resumed):
        assert other.read_lr() == [0.125]
    opt.add_param_group({"params": [parameter(torch.zeros(1, device=device))], "lr": 0.25})
    assert opt.read_lr() == [0.125, 0.0]
    opt.step(loss=1.0)
    assert opt.read_lr() == [0.25, 0.125]


def test_a_schedule_that_is_over_says_so(backend, device):
    source = build(backend, device, Linear(10))
    run(source, list(enumerate(LOSSES[:8])))
    opt = build(backend, device, Linear(6))
    with pytest.warns(UserWarning, match=r"Linear: its LR is 0 from step 6 on, and the checkpoint is of step 8"):
        opt.load_state_dict(source.state_dict())
    saved = source.state_dict()
    for group in saved["param_groups"]:  # as it advises
        del group["control"]
        group["lr"] = 0.25
    opt.load_state_dict(saved)
    assert opt.read_lr() == [0.25]
