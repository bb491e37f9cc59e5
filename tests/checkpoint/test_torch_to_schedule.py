"""A run of torch's AdamW that a schedule takes over: the same LR at the same step by every road a file may take."""

import copy
import functools
import itertools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.foreign_warnings import SINGLE_PROCESS, TYPED_STORAGE
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler

from greedylr_fused import WSD, Cosine, FusedAdamW, GreedyLR, Linear

pytestmark = [SINGLE_PROCESS, TYPED_STORAGE]
STEPS, PEAK = 24, 1e-3
#: How the run of torch's AdamW got its LRs. The peak of one group is a third of that of the other.
SCHEDULERS = {
    "constant": None,
    "step": lambda opt: lr_scheduler.StepLR(opt, 5, 0.3),
    "warmup": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: min(1.0, (step + 1) / 40)),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 50),
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(opt, [PEAK, PEAK / 3], 40, cycle_momentum=False),
}
SCHEDULES = {
    "cosine": Cosine(100, warmup_steps=4),
    "linear": Linear(100),
    "wsd": WSD(100, warmup_steps=10, decay_steps=20),
    "greedy": GreedyLR(patience=0, smooth=False),
    "greedy on cosine": GreedyLR(base=Cosine(100, warmup_steps=4)),
}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))


def optimizer(net, kind, lr, **options):
    parts = [{"params": list(net[0].parameters())}, {"params": list(net[1].parameters()), "lr": lr / 3}]
    return kind(parts, lr=lr, **options)


def train(net, opt, steps, scheduler=None, needs_loss=False):
    for _ in range(steps):
        loss = net(torch.ones(3, 4)).square().mean()
        loss.backward()
        opt.step(loss=loss) if needs_loss else opt.step()
        opt.zero_grad()
        if scheduler is not None:
            scheduler.step()


def direct(net, old, net2, new, folder):
    new.load_state_dict(copy.deepcopy(old.state_dict()))


def _by_template(flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def load(net, old, net2, new, folder):
        dcp.save({"opt": get_optimizer_state_dict(net, old, options=options)}, checkpoint_id=folder, no_dist=True)
        found = {"opt": get_optimizer_state_dict(net2, new, options=options)}
        dcp.load(found, checkpoint_id=folder, no_dist=True, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
        set_optimizer_state_dict(net2, new, found["opt"], options=options)

    return load


def full(net, old, net2, new, folder):
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    torch.save(get_optimizer_state_dict(net, old, options=options), folder / "file")
    set_optimizer_state_dict(net2, new, torch.load(folder / "file"), options=options)


def whole(net, old, net2, new, folder):
    """The optimizer's own state_dict, as a part of what distributed checkpointing saves and reads."""
    get_optimizer_state_dict(net2, new)  # creates the state
    dcp.save({"opt": old.state_dict()}, checkpoint_id=folder, no_dist=True)
    found = {"opt": new.state_dict()}
    dcp.load(found, checkpoint_id=folder, no_dist=True, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    new.load_state_dict(found["opt"])


def saved_again(net, old, net2, new, folder):
    """The filled template through another file, as a rank hands it to others."""
    third = optimizer(net2, FusedAdamW, PEAK / 2, schedule=new.schedule)
    dcp.save({"opt": get_optimizer_state_dict(net, old)}, checkpoint_id=folder, no_dist=True)
    found = {"opt": get_optimizer_state_dict(net2, third)}
    dcp.load(found, checkpoint_id=folder, no_dist=True, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    torch.save(found["opt"], folder / "again")
    set_optimizer_state_dict(net2, new, torch.load(folder / "again"))


ROADS = {
    "template": _by_template(False),
    "flattened": _by_template(True),
    "full": full,
    "whole": whole,
    "again": saved_again,
}


def taken_over(road, scheduler, schedule, folder, lr=PEAK):
    """LRs and steps of a schedule that takes over a run of torch's AdamW, and goes on for three steps."""
    net = network()
    old = optimizer(net, torch.optim.AdamW, PEAK)
    train(net, old, STEPS, scheduler and scheduler(old))
    net2 = copy.deepcopy(net)
    new = optimizer(net2, FusedAdamW, lr, schedule=schedule)
    road(net, old, net2, new, folder)
    found = [(new.metrics().step, new.read_lr(), [group["lr"] for group in new.param_groups])]
    train(net2, new, 3, needs_loss=isinstance(schedule, GreedyLR))
    return [*found, new.read_lr(), [param.detach().clone() for param in net2.parameters()]], net2, new


#: LR of the new optimizer: the run's own, which must not pass for a scheduler's peak, or another. On the road "full",
#: torch fails where a file has keys that the optimizer lacks, such as "min_lr" of OneCycleLR.
CASES = [
    (road, scheduler, schedule, lr)
    for road, scheduler, schedule in itertools.product(ROADS, SCHEDULERS, SCHEDULES)
    for lr in ((PEAK, 5e-4) if schedule == "cosine" else (PEAK,))
    if (road, scheduler) != ("full", "one cycle")
]


@functools.cache
def where_the_direct_road_leads(scheduler, schedule, lr):
    found, _, _ = taken_over(direct, SCHEDULERS[scheduler], SCHEDULES[schedule], None, lr)
    return found


@pytest.mark.parametrize("road, scheduler, schedule, lr", CASES)
def test_every_road_leads_to_the_same_place(road, scheduler, schedule, lr, tmp_path):
    wanted = where_the_direct_road_leads(scheduler, schedule, lr)
    found, _, _ = taken_over(ROADS[road], SCHEDULERS[scheduler], SCHEDULES[schedule], tmp_path, lr)
    assert found[:2] == wanted[:2]
    assert all(map(torch.equal, found[2], wanted[2]))


def test_where_the_direct_road_leads(tmp_path):
    """As `load_state_dict` documents it: a constant LR becomes the peak, a scheduler's peak and step go on."""
    (at, *_), _, _ = taken_over(direct, None, Linear(100), tmp_path)
    assert at == (0, [PEAK, PEAK / 3], [PEAK, PEAK / 3])
    for name in ("step", "warmup", "cosine", "one cycle"):
        (at, *_), _, _ = taken_over(direct, SCHEDULERS[name], Linear(100), tmp_path)
        assert at[:2] == (STEPS, [PEAK * (1 - STEPS / 100), PEAK / 3 * (1 - STEPS / 100)]), name


@pytest.mark.parametrize("road", [direct, *ROADS.values()], ids=["direct", *ROADS])
def test_such_a_run_resumes_where_it_was(road, tmp_path):
    """Its states have counted more steps than its schedule."""
    _, net, opt = taken_over(direct, None, Cosine(100, warmup_steps=4), tmp_path)
    assert opt.metrics().step == 3
    twin = copy.deepcopy(net)
    other = optimizer(twin, FusedAdamW, PEAK, schedule=Cosine(100, warmup_steps=4))
    road(net, opt, twin, other, tmp_path / "again") if road is not full else road(net, opt, twin, other, tmp_path)
    assert other.metrics() == opt.metrics() and other.read_lr() == opt.read_lr()
    train(net, opt, 5)
    train(twin, other, 5)
    assert other.read_lr() == opt.read_lr()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("road", [direct, *ROADS.values()], ids=["direct", *ROADS])
def test_such_a_run_counts_what_another_optimizer_trained_on(road, tmp_path):
    _, net, opt = taken_over(direct, None, Linear(100), tmp_path)
    between = optimizer(net, torch.optim.AdamW, PEAK)
    between.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(net, between, 7)
    net2 = copy.deepcopy(net)
    last = optimizer(net2, FusedAdamW, PEAK, schedule=Linear(100))
    road(net, between, net2, last, tmp_path)
    assert last.metrics().step == 3 + 7 and last.read_lr()[0] == PEAK * (1 - 10 / 100)


@pytest.mark.parametrize("road", [direct, *ROADS.values()], ids=["direct", *ROADS])
def test_a_schedule_that_never_ran_starts_where_torchs_adamw_was(road, tmp_path):
    """A checkpoint of its step 0, on which torch's AdamW trained at another constant LR."""
    net = network()
    first = optimizer(net, FusedAdamW, 2 * PEAK, schedule=Linear(100))
    between = optimizer(net, torch.optim.AdamW, PEAK)
    get_optimizer_state_dict(net, first)  # creates the state
    between.load_state_dict(copy.deepcopy(first.state_dict()))
    for group, lr in zip(between.param_groups, (PEAK, PEAK / 3), strict=True):
        group["lr"] = lr
    train(net, between, 5)
    net2 = copy.deepcopy(net)
    last = optimizer(net2, FusedAdamW, PEAK, schedule=Linear(100))
    road(net, between, net2, last, tmp_path)
    assert last.metrics().step == 0 and last.read_lr() == [PEAK, PEAK / 3]


def test_states_of_no_parameter_count_nothing(tmp_path):
    _, net, opt = taken_over(direct, None, Linear(100), tmp_path)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"] |= {"gone.weight": {"step": 500.0}, "note": {"step": "of another"}}
    opt.load_state_dict(saved)
    assert opt.metrics().step == 3
    opt.state["mine"] = {"step": "of nobody"}
    assert opt.state_dict()["param_groups"][0]["control"]["counted"] == STEPS + 3


def test_without_its_numbers_a_checkpoint_starts_the_schedule_anew(tmp_path):
    """As the messages of a damaged checkpoint advise."""
    _, net, opt = taken_over(direct, SCHEDULERS["cosine"], Linear(100), tmp_path)
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        del group["control"]
    other = optimizer(net, FusedAdamW, PEAK, schedule=Linear(50))
    other.load_state_dict(saved)
    assert other.metrics().step == 0 and other.read_lr() == opt.read_lr()


def test_a_plain_optimizer_keeps_no_peak_of_a_schedule(tmp_path):
    """One that a schedule by hand leaves in "initial_lr" counts, not that of the schedule before."""
    _, net, opt = taken_over(direct, None, Linear(100), tmp_path)
    plain = optimizer(net, FusedAdamW, PEAK)
    plain.load_state_dict(opt.state_dict())
    train(net, plain, 2)
    assert not {"initial_lr", "max_lr"} & plain.param_groups[0].keys()
    for group in plain.param_groups:
        group["initial_lr"] = 2 * PEAK
    last = optimizer(net, FusedAdamW, PEAK, schedule=Linear(100))
    last.load_state_dict(plain.state_dict())
    steps = STEPS + 3 + 2
    assert last.metrics().step == steps and last.read_lr() == [2 * PEAK * (1 - steps / 100)] * 2
