"""Two ranks for a long time: they never drift apart, decide what transformers decides, and leave nothing behind."""

import gc
import hashlib
import random

import pytest
import torch
from churn import Churn, local
from support.growth import check, least_growth, settled
from support.oracle import Case, random_losses, upstream_trace
from support.ranks import run
from torch.distributed.device_mesh import init_device_mesh

from greedylr_fused import FusedAdamW, GreedyLR

pytestmark = pytest.mark.slow
WORLD, LR = 2, 0.01
SCHEDULE = GreedyLR(patience=2, factor=0.9, smooth=True, window_size=20, cooldown=1, warmup=1, reset_start=3)
WARM_UP, STRETCHES = 500, 2
#: Full steps: how often the optimizer is made anew, and the steps of each.
GENERATIONS, STEPS = 3, 1700
#: Where all is counted. From the first of these on, an optimizer has all its groups; the first stretches of the first
#: one do not count: PyTorch keeps a record of the last 2000 collectives, which has to fill.
STRETCH = 350
COUNTED = range(STEPS % STRETCH - 1, STEPS, STRETCH)


def bits(tensors):
    return hashlib.sha256(b"".join(local(tensor).numpy().tobytes() for tensor in tensors)).hexdigest()


def losses(rank, steps):
    """What a rank sees: numbers of float32, the sum of which is the same in any order."""
    return torch.tensor(random_losses(random.Random(rank), steps)).double()


def control(rank, steps):
    """As little as a step can be: one number to update, and the losses of both ranks to decide from."""
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    opt = FusedAdamW([param], lr=LR, schedule=SCHEDULE)
    given, trace = losses(rank, steps), torch.empty(steps, dtype=torch.float64)
    cuts = {WARM_UP + k * (steps - WARM_UP) // STRETCHES for k in range(STRETCHES)}
    found = []
    gc.collect()
    gc.freeze()
    for step in range(steps):
        if step in cuts:
            opt.check_ranks_agree()
            found.append(settled())
        opt.step(loss=given[step])
        trace[step] = opt._control.lr[0]
    opt.check_ranks_agree()
    found.append(settled())
    return trace.tolist(), least_growth(found), bits([param, opt.state[param]["exp_avg"], opt._control.vector])


def test_control_steps(request):
    """100,000 with `--control-steps 100000 --timeout 0`: gloo takes longer to wake its threads than a step takes. In
    much less than 8,000 the noise of a count hides a step in a hundred.
    """
    usual = 12_000 if request.config.getoption("--exhaustive") else 8_000
    steps = request.config.getoption("--control-steps") or usual
    (trace, growth, last), (other_trace, other_growth, other_last) = run(
        control, WORLD, steps, timeout=100 + steps / 500
    )
    means = ((losses(0, steps) + losses(1, steps)) / 2).tolist()
    assert trace == other_trace == [lr for lr, *_ in upstream_trace(Case(SCHEDULE, [LR], means))]
    assert last == other_last
    assert len(set(trace)) > 20
    for found in (growth, other_growth):
        check(found, (steps - WARM_UP) // STRETCHES)


def generation(churn, opt, seen):
    """The steps of one optimizer. Returns a checkpoint of it, and the growth from stretch to stretch."""
    churn.taken = {param: int(opt.state[param]["step"]) if param in opt.state else 0 for param in churn.params}
    churn.skipped = opt.metrics().skipped
    found = []
    for step in range(STEPS):
        churn.change()
        opt.step(loss=churn.shared.random() + (step % 40 < 20))
        if step % 100 == 50:
            opt.load_state_dict(opt.state_dict())
        if step == 100:
            saved = opt.state_dict()
        if step in (150, 200, 250):
            opt.add_param_group({"params": [churn.add(((5, 3), (7,), (4,))[step // 50 - 3])], "lr": 2 * LR})
        if step % 50 == 49:
            assert opt.metrics().skipped == churn.skipped
            assert all(opt.state[param]["step"] == taken for param, taken in churn.taken.items() if taken)
            opt.check_ranks_agree()
            seen.update(bits(churn.alike(opt)).encode())
        if step in COUNTED:
            churn.settle()
            opt.step(loss=1.0)
            found.append(settled())
    return saved, least_growth(found)


def generations(rank):
    """Optimizers one after another, each with new parameters and in the state in which the one before was saved."""
    mesh = init_device_mesh("cpu", (WORLD,))
    gc.collect()
    gc.freeze()
    within, after, seen, saved = [], [], hashlib.sha256(), None
    for number in range(GENERATIONS):
        churn = Churn(rank, mesh, number)
        opt = FusedAdamW(churn.params, lr=LR, schedule=SCHEDULE, max_grad_norm=1.0)
        if saved is not None:
            opt.load_state_dict(saved)
        saved, growth = generation(churn, opt, seen)
        within.append(growth)
        del churn, opt
        after.append(settled())
    return within, least_growth(after), seen.hexdigest()


def test_full_steps():
    (within, after, seen), (other_within, other_after, other_seen) = run(generations, WORLD, timeout=110.0)
    assert seen == other_seen, "the ranks drift apart"
    for growths in (within, other_within):
        check({name: min(growth[name] for growth in growths) for name in growths[0]}, STRETCH)
    for growth in (after, other_after):
        check({name: growth[name] for name in ("objects", "tensors", "layouts", "files", "threads")}, STEPS)
