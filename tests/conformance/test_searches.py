"""The level searches on every backend against their specification, bit for bit."""

import copy
import math

import pytest
import torch
from support.search_traces import LRS, assert_same, trace, wanted
from support.searches import BASE, COMPARED, STEPS, golden, random_runs

from greedylr_fused import FusedAdamW, GreedyLR, Linear
from greedylr_fused.control import without_trial
from greedylr_fused.schedules import AdaLRS, Backup, Climb, Phase


@pytest.mark.parametrize("name", golden())
def test_golden_runs(backend, device, name):
    case = golden()[name]
    if backend == "triton" and device.type == "cpu":  # its interpreter: until shortly after the last decision
        case = case | {"losses": case["losses"][:110]}
    config, losses = case["config"], case["losses"]
    assert_same(trace(backend, device, config, losses), wanted(config, losses), config)


def test_random_runs(backend, device):
    for config, losses in random_runs(2, {"triton": 4, "reference": 8, "cuda": 8}.get(backend, 60)):
        assert_same(trace(backend, device, config, losses), wanted(config, losses), config)


def params():
    torch.manual_seed(3)
    return [{"params": [torch.nn.Parameter(torch.randn(5))], "lr": lr} for lr in LRS]


def optimizer(config, backend, device, **options):
    groups = [group | {"params": [torch.nn.Parameter(p.to(device)) for p in group["params"]]} for group in params()]
    return FusedAdamW(groups, schedule=config, backend=backend, skip_nonfinite=True, **options)


def step(opt, loss):
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, math.nan if loss is None else 0.5)
    opt.step(loss=3.0 if loss is None else loss)


def shown(opt):
    control = opt._control
    return [*opt.read_lr(), *(float(control.slot(name)) for name in COMPARED)]


@pytest.mark.parametrize("name", ["climb, a skipped step", "adalrs, not finite"])
def test_an_optimizer_decides_alike(backend, device, name):
    """With steps that are skipped for their gradients, in trials too, which no other way of skipping shows."""
    case = golden()[name]
    config, losses = case["config"], case["losses"][:60]
    opt, got = optimizer(config, backend, device), []
    for loss in losses:
        step(opt, loss)
        got.append(shown(opt))
    assert_same(got, wanted(config, losses), config)
    assert Phase.TRIAL in [row[2 + COMPARED.index("phase")] for row in got]


@pytest.mark.parametrize("name", ["climb, raises to the top", "climb, the first try fails", "adalrs, small"])
def test_numbers_go_on_from_a_checkpoint_at_every_phase(backend, device, name):
    """As without an interruption; within a trial, as the specification says. A deep copy goes on like a checkpoint."""
    if backend == "triton":
        pytest.skip("the interpreter takes too long, and what is saved is no kernel's business")
    case = golden()[name]
    config, losses = case["config"], case["losses"][:90]
    opt, others, phases = optimizer(config, backend, device), {}, set()
    for at, loss in enumerate(losses):
        step(opt, loss)
        if at % 7 == 3:
            phases.add(float(opt._control.slot("phase")))
            others[at] = copied = [copy.deepcopy(opt), optimizer(config, backend, device)]
            copied[1].load_state_dict(copy.deepcopy(opt.state_dict()))
    assert {Phase.TRIAL, Phase.CONTROL} <= phases
    for at, both in others.items():
        until = min(at + 16, len(losses))
        expected = wanted(config, losses[:until], at)[at + 1 :]
        for other in both:
            got = []
            for loss in losses[at + 1 : until]:
                step(other, loss)
                got.append(shown(other))
            assert_same(got, expected, (config, at))


def run_to(opt, case, phase, window_step):
    for loss in case["losses"]:
        step(opt, loss)
        if (float(opt._control.slot("phase")), float(opt._control.slot("window_step"))) == (phase, window_step):
            return
    raise AssertionError("not reached")


def test_a_saved_trial_has_no_verdict(backend, device):
    """The LR in the checkpoint is the trial's; after loading it is the level's, and the same trial begins anew."""
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], backend, device)
    run_to(opt, case, Phase.TRIAL, 4)
    numbers = opt._control.numbers()
    undone = without_trial(numbers)
    assert without_trial(undone) == undone, "without an open trial nothing changes"
    other = optimizer(case["config"], backend, device)
    other.load_state_dict(opt.state_dict())
    assert repr(other._control.numbers()) == repr(undone)
    level, tried = (numbers[0][name] for name in ("search_level", "trial_level"))
    value = numbers[0]["curve_value"]
    assert other.read_lr() == [lr * level * value for lr in LRS] != opt.read_lr()
    step(other, 1.0)
    assert float(other._control.slot("phase")) == Phase.TRIAL and float(other._control.slot("trial_level")) == tried
    assert float(other._control.slot("backup")) == Backup.TAKE, "of the parameters as they are"


@pytest.mark.parametrize("other", [dict(min_window=4), dict(min_window=12), dict(tail=1.0), dict(factor=2.0)])
def test_a_run_in_other_windows_measures_anew(other):
    """Losses of a window of another length, or of another part of it, do not compare."""
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], "cpu", torch.device("cpu"))
    run_to(opt, case, Phase.CONTROL, 9)
    goes_on = optimizer(Climb(base=BASE, **{"window": 0.0, "min_window": 10} | other), "cpu", torch.device("cpu"))
    goes_on.load_state_dict(opt.state_dict())
    again = optimizer(goes_on.schedule, "cpu", torch.device("cpu"))
    again.load_state_dict(copy.deepcopy(goes_on.state_dict()))
    assert repr(again._control.numbers()) == repr(goes_on._control.numbers())
    control = goes_on._control
    assert [float(control.slot(name)) for name in ("phase", "window_step", "search_losses")] == [Phase.WAIT, 0.0, 0.0]
    assert float(control.slot("multiplier")) == float(opt._control.slot("search_level"))
    step(goes_on, 1.0)
    assert float(control.slot("phase")) == Phase.TRIAL and float(control.slot("backup")) == Backup.TAKE


def test_a_level_above_the_top_is_refused_in_an_anneal_too():
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], "cpu", torch.device("cpu"))
    for loss in case["losses"]:
        step(opt, loss)
        if float(opt._control.slot("search_level")) == 3.0 and float(opt._control.slot("window_step")) == 9.0:
            break
    assert opt._control.level.tolist() < [1.5 * lr for lr in LRS]
    lower = optimizer(Climb(base=BASE, window=0.04, min_window=8, top=1.5), "cpu", torch.device("cpu"))
    with pytest.raises(ValueError, match="construct Climb with bounds that enclose it"):
        lower.load_state_dict(opt.state_dict())


def test_another_schedule_starts_from_the_level_outside_trials():
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], "cpu", torch.device("cpu"))
    run_to(opt, case, Phase.CONTROL, 9)
    level = float(opt._control.slot("search_level"))
    other = optimizer(Linear(STEPS, warmup_steps=12), "cpu", torch.device("cpu"))
    other.load_state_dict(opt.state_dict())
    assert other._control.level.tolist() == [lr * level for lr in LRS]
    assert other.read_lr() == [lr * level * BASE.curve()[int(other._control.slot("step"))] for lr in LRS]
    greedy = optimizer(GreedyLR(), "cpu", torch.device("cpu"))
    greedy.load_state_dict(opt.state_dict())
    assert greedy.read_lr() == other.read_lr()


at_any_phase = pytest.mark.parametrize(("phase", "at"), [(Phase.WAIT, 0), (Phase.TRIAL, 8), (Phase.CONTROL, 3)])


def reached(backend, device, phase, at):
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], backend, device)
    run_to(opt, case, phase, at)
    return opt


@at_any_phase
def test_half_the_lr_halves_all_that_follow(backend, device, phase, at):
    opt, other = (reached(backend, device, phase, at) for _ in range(2))
    opt.set_lr([lr / 2.0 for lr in opt.read_lr()])
    for loss in [1.0] * 12:
        assert opt.read_lr() == pytest.approx([lr / 2.0 for lr in other.read_lr()], rel=1e-12)
        step(opt, loss)
        step(other, loss)
    assert float(opt._control.slot("search_level")) == float(other._control.slot("search_level"))


@at_any_phase
def test_an_lr_of_0_holds_for_one_step(backend, device, phase, at):
    opt, other = (reached(backend, device, phase, at) for _ in range(2))
    opt.set_lr(0.0)
    assert opt.read_lr() == [0.0, 0.0]
    copy.deepcopy(opt)
    reached(backend, device, phase, at).load_state_dict(copy.deepcopy(opt.state_dict()))
    step(opt, 1.0)
    step(other, 1.0)
    assert opt.read_lr() == other.read_lr()


def test_an_lr_far_above_all_others_is_brought_down_to_the_top(backend, device):
    """In an anneal any usual LR is; the host does not know of the anneal, so that it cannot refuse it."""
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], backend, device)
    run_to(opt, case, Phase.CONTROL, 9)
    opt.set_lr(LRS)
    outside = [own["initial_lr"] * own["search_level"] for own in opt._control.numbers()]
    assert outside == pytest.approx([lr * 9.0 for lr in LRS])


@pytest.mark.parametrize("other", [{}, dict(tail=1.0)])
def test_a_resume_too_late_for_another_trial_keeps_the_word_of_the_first(other):
    """Each trial is worse by far. Within the second the run is saved, and there is no time to begin that anew."""
    config = Climb(base=Linear(250, warmup_steps=10))
    opt = optimizer(config, "cpu", torch.device("cpu"))
    at = {"again": 1.0, "phase": Phase.TRIAL, "window_step": 12.0}
    while any(float(opt._control.slot(name)) != value for name, value in at.items()):
        step(opt, 7.0 if float(opt._control.slot("phase")) == Phase.TRIAL else 2.0)
    resumed = optimizer(Climb(base=config.base, **other), "cpu", torch.device("cpu"))
    resumed.load_state_dict(opt.state_dict())
    for _ in range(20):
        step(resumed, 2.0)
    assert float(resumed._control.slot("phase")) == Phase.FROZEN
    assert float(resumed._control.slot("search_level")) == pytest.approx(1 / 3)


def test_a_group_added_later_has_the_level_too(backend, device):
    case = golden()["climb, raises to the top"]
    opt = optimizer(case["config"], backend, device)
    run_to(opt, case, Phase.TRIAL, 2)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, device=device))], "lr": 0.1})
    first, _, third = opt.read_lr()
    assert third == first
    step(opt, 1.0)
    first, _, third = opt.read_lr()
    assert third == first


def damage(opt, **changes):
    saved = copy.deepcopy(opt.state_dict())
    for group in saved["param_groups"]:
        own = dict(pair.split("=") for pair in group["control"]["window"].split())
        own |= {name: str(value) for name, value in changes.items()}
        group["control"]["window"] = " ".join(f"{name}={value}" for name, value in own.items() if value != "gone")
    return saved


@pytest.mark.parametrize(
    ("name", "value"),
    [("phase", 4.0), ("phase", 0.5), ("window_step", -1.0), ("search_level", 0.0), ("trial_level", math.inf)]
    + [("multiplier", -1.0), ("search_losses", 99.0), ("sum_y", math.nan), ("kept", math.inf), ("kept_var", -1.0)]
    + [("again", 2.0), ("gain", math.nan), ("rising", 3.0), ("faded", 0.0), ("worst_loss", math.nan)],
)
def test_damaged_numbers_are_refused(name, value):
    opt = optimizer(AdaLRS(base=BASE), "cpu", torch.device("cpu"))
    step(opt, 1.0)
    with pytest.raises((ValueError, TypeError), match=name):
        opt.load_state_dict(damage(opt, **{name: value}))
    for wrong in ("gone", "x", "1.0=2.0"):
        with pytest.raises(ValueError, match='"window".*expected a text of "name=number"'):
            opt.load_state_dict(damage(opt, **{name: wrong}))


def test_other_schedules_save_none_of_it():
    opt = optimizer(GreedyLR(), "cpu", torch.device("cpu"))
    step(opt, 1.0)
    searches = optimizer(AdaLRS(base=BASE), "cpu", torch.device("cpu"))
    step(searches, 1.0)
    saved, other = (each.state_dict()["param_groups"][0]["control"] for each in (opt, searches))
    assert "phase" not in saved["window"] and "phase=0.0" in other["window"]
    assert [*saved] == [*other], "distributed checkpointing reads by keys"


def test_every_copy_is_told_once(backend, device):
    """`backup` is 0 again after a step without a loss, and after one that is skipped outside trials."""
    opt = optimizer(Climb(base=BASE, min_window=8), backend, device)
    for _ in range(12):
        step(opt, 1.0)
    assert float(opt._control.slot("backup")) == Backup.TAKE
    for p in (p for group in opt.param_groups for p in group["params"]):
        p.grad = torch.zeros_like(p)
    opt.observe(2.0, weight=0.0)
    opt.step()
    assert float(opt._control.slot("backup")) == Backup.NONE and float(opt._control.slot("phase")) == Phase.TRIAL
    step(opt, None)
    assert float(opt._control.slot("backup")) == Backup.PUT_BACK
    step(opt, None)
    assert float(opt._control.slot("backup")) == Backup.NONE
