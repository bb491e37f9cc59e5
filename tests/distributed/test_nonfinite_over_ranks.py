"""NaN and infinity in losses and gradients, at random steps on random ranks: nothing stays of them, on any rank."""

import hashlib
import itertools
import math
import random
from dataclasses import dataclass

import pytest
import torch
from support.oracle import Case, spec_trace, upstream_trace
from torch.distributed.fsdp import fully_shard

from greedylr_fused import FusedAdamW, GreedyLR

WORLD, STEPS, SCALE = 2, 80, 4.0
BAD = (math.nan, math.inf, -math.inf)
LRS = [0.02, 0.005]
SMOOTH = GreedyLR(patience=0, factor=0.7, smooth=True, window_size=4, cooldown=1, max_lr=[0.03, 0.04], reset_start=3)
SUDDEN = GreedyLR(patience=0, factor=0.8, smooth=False, warmup=1, min_lr=[0.001, 0.003], reset_start=2)
#: What lets a step be skipped. The last one does nothing: gradients are finite, and only losses are not.
GUARDS = {"clip": dict(max_grad_norm=0.5), "skip": dict(skip_nonfinite=True), "amp": {}, "none": {}}


@dataclass(frozen=True)
class Step:
    """What happens in one step; the same on every rank, which takes its part of it."""

    losses: list[list[tuple[float, int]]]
    """By rank: loss and weight of each micro-batch."""
    gradients: list[float | None]
    """By rank: what one element of its gradients becomes."""
    batch: int | None
    """The rank whose batch has a NaN in it: losses are as above, but its backward spreads to all ranks."""

    @property
    def skipped(self):
        return self.batch is not None or any(bad is not None for bad in self.gradients)

    @property
    def mean(self):
        """The loss that is to decide, None without any. Of two ranks, the order does not matter to the sum."""
        sums = [sum((loss * n for loss, n in own if n), 0.0) for own in self.losses]
        weight = sum(n for own in self.losses for _, n in own)
        return sum(sums) / weight if weight else None


def plan(guard, losses):
    """Losses in float32 with whole weights, so that their products are exact."""
    rng = random.Random(f"{guard} {losses}")

    def loss(step):
        if losses == "not finite" and rng.random() < 0.08:
            return rng.choice(BAD), rng.choice((0, 1, 3))
        return float(torch.tensor(3 * math.exp(-0.02 * step) + rng.gauss(0, 0.3))), rng.choice((0, 1, 1, 2, 5))

    steps = []
    for step in range(STEPS):
        each = [[loss(step) for _ in range(rng.choice((1, 1, 2)))] for _ in range(WORLD)]
        bad = [rng.choice(BAD) if guard != "none" and rng.random() < 0.1 else None for _ in range(WORLD)]
        steps.append(Step(each, bad, rng.randrange(WORLD) if guard != "none" and rng.random() < 0.05 else None))
    return steps


class Replicas:
    """Plain tensors with the same gradient on every rank, as DistributedDataParallel leaves them."""

    def __init__(self, rank):
        generator = torch.Generator().manual_seed(1)
        self.params = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (5, 130, 1)]
        self.generator = generator

    def backward(self, nan, anywhere):
        for param in self.params:
            param.grad = torch.randn(param.shape, generator=self.generator)
            if anywhere:
                param.grad[0] = math.nan


class Sharded:
    """A network under `fully_shard`, of which the second rank holds nothing in some places."""

    def __init__(self, rank):
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
        fully_shard(self.net)
        self.params = list(self.net.parameters())
        self.generator = torch.Generator().manual_seed(rank)

    def backward(self, nan, anywhere):
        for param in self.params:
            param.grad = None
        x = torch.randn(6, 4, generator=self.generator)
        if nan:
            x[1, 2] = math.nan
        self.net(x).square().mean().backward()


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def injected(rank, kind, guard, losses, schedule):
    """Train through all of it; what each step left behind, as seen on this rank."""
    model, seen = kind(rank), []
    options = dict(schedule=schedule, betas=(0.9, 0.95), **GUARDS[guard])
    groups = [{"params": model.params[:1], "lr": LRS[0]}, {"params": model.params[1:], "lr": LRS[1]}]
    opt = FusedAdamW(groups, **options)
    rng = random.Random(rank)
    for number, step in enumerate(plan(guard, losses)):
        model.backward(step.batch == rank, step.batch is not None)
        gradients = [grad for grad in (local(param.grad) for param in model.params) if grad.numel()]
        if (bad := step.gradients[rank]) is not None:
            grad = rng.choice(gradients)
            grad.view(-1)[rng.randrange(grad.numel())] = bad
        if guard == "amp":
            finite = all(grad.isfinite().all() for grad in gradients)
            opt.grad_scale, opt.found_inf = torch.tensor(SCALE), torch.tensor(0.0 if finite else 1.0)
        for loss, weight in step.losses[rank]:
            opt.observe(torch.tensor(loss), weight)
        before = state(model, opt)
        opt.step()
        after = state(model, opt)
        assert all(tensor.isfinite().all() for tensor in after)
        if number % 10 == 0:
            opt.check_ranks_agree()
        changed = not all(map(torch.equal, before, after))
        seen.append((opt.read_lr(), opt.metrics().skipped, changed, digest(model, opt)))
    opt.check_ranks_agree()
    assert all(opt.state[param]["step"] == STEPS - seen[-1][1] for param in model.params)
    return seen


def state(model, opt):
    """Copies of parameters and moments, the part that lies on this rank."""
    found = [param.detach() for param in model.params]
    found += [opt.state[p][name] for p in model.params if p in opt.state for name in ("exp_avg", "exp_avg_sq")]
    return [local(tensor).clone() for tensor in found]


def digest(model, opt):
    """The bits of what every rank must hold alike."""
    replicated = [] if isinstance(model, Sharded) else [tensor.numpy().tobytes() for tensor in state(model, opt)]
    return hashlib.sha256(b"".join([*replicated, opt._control.vector.numpy().tobytes()])).hexdigest()


def name(kind, guard, losses, schedule):
    return f"{kind.__name__}, {guard}, losses {losses}, {'smooth' if schedule.smooth else 'sudden'}"


CASES = {
    name(kind, guard, losses, schedule): (kind, guard, losses, schedule)
    for kind in (Replicas, Sharded)
    for guard in GUARDS
    for losses, schedule in (("not finite", SMOOTH), ("not finite", SUDDEN), ("finite", SMOOTH))
    if kind is Replicas or (guard != "none" and schedule is SMOOTH)  # each takes five times as long
}


def expected(steps, schedule):
    """LRs after each step by transformers, for which what is not finite is as bad as infinity; its mean over a window
    with that in it would be infinite for good, so that there this package's specification takes its place.
    """
    losses = [step.mean for step in steps if not step.skipped and step.mean is not None]
    finite = all(map(math.isfinite, losses))
    oracle = spec_trace if schedule.smooth and not finite else upstream_trace
    given = losses if oracle is spec_trace else [loss if math.isfinite(loss) else math.inf for loss in losses]
    trace, lrs = iter(oracle(Case(schedule, LRS, given))), []
    for step in steps:
        moves = not step.skipped and step.mean is not None
        lrs.append(next(trace)[: len(LRS)] if moves else lrs[-1] if lrs else LRS)
    return lrs


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_finite_leaves_no_trace(ranks, case):
    _, guard, losses, schedule = CASES[case]
    steps = plan(guard, losses)
    first, second = ranks(injected, *CASES[case])
    assert first == second, "the ranks differ"
    lrs, skipped, changed, _ = zip(*first, strict=True)
    assert list(skipped) == [sum(step.skipped for step in steps[: n + 1]) for n in range(STEPS)]
    assert [not step.skipped for step in steps] == list(changed)
    assert list(lrs) == expected(steps, schedule)
    for group, lr in enumerate(LRS):
        low, high = schedule.bounds(lr, group)
        assert all(low <= own[group] <= high for own in lrs)
        changes = sum(a[group] != b[group] for a, b in itertools.pairwise(lrs))
        assert changes > 10, "the schedule had little to say"
    assert guard == "none" or 10 < skipped[-1] < STEPS / 2
