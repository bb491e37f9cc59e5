"""ZeroRedundancyOptimizer around a FusedAdamW without a schedule, alone and driven by a DeviceSchedule from outside."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn

from greedylr_fused import Cosine, DeviceSchedule, FusedAdamW, GreedyLR, Linear, SkipSpikes

WORLD, STEPS, SAVED = 2, 30, 12
SCHEDULES = {"cosine": Cosine(STEPS, warmup_steps=3), "greedy": GreedyLR(patience=0, factor=0.7, window_size=3)}
PLAIN = {"max_grad_norm": 1.0, "weight_decay": 0.1}


def model(dtype=torch.float32, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 2)).to(dtype)


def groups(net, lr):
    return [{"params": list(net[:2].parameters())}, {"params": list(net[2].parameters()), "lr": lr / 2}]


def zero(net, lr=0.01, kind=FusedAdamW, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it was not imported before

    if kind is FusedAdamW:
        options = PLAIN | {"partitions": WORLD} | options
    return ZeroRedundancyOptimizer(groups(net, lr), kind, lr=lr, **options)


def gradients(net, step):
    """Those of the whole batch, on every rank."""
    generator = torch.Generator().manual_seed(step)
    for param in net.parameters():
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def loss(step, rank):
    """Each rank tells of its own; the mean is that of one process."""
    return torch.tensor(3.0 - 0.1 * step + 0.5 * (step % 4) + (0.25 if rank else -0.25), dtype=torch.float64)


def driven(net, schedule):
    lr = torch.tensor(0.01, dtype=torch.float64)
    opt = zero(net, lr)
    return opt, DeviceSchedule(opt, schedule)


def train(net, opt, schedule, rank, steps):
    """The LRs of the steps, exactly."""
    lrs = []
    for step in steps:
        gradients(net, step)
        opt.step()
        lrs.append(schedule.read_lr())
        schedule.step(loss=loss(step, rank) if isinstance(schedule.schedule, GreedyLR) else None)
    return lrs


def consolidated(opt, rank):
    """The whole state through a file, as its documentation saves it: collected on one rank."""
    opt.consolidate_state_dict(to=0)
    file = io.BytesIO()
    if rank == 0:
        torch.save(opt.state_dict(), file)
    held = [file.getvalue()]
    dist.broadcast_object_list(held)
    return torch.load(io.BytesIO(held[0]), weights_only=True)


def values(net):
    return [param.detach().clone() for param in net.parameters()]


def driven_and_resumed(rank, name):
    net = model()
    opt, schedule = driven(net, SCHEDULES[name])
    first = train(net, opt, schedule, rank, range(SAVED))
    saved, numbers, at = consolidated(opt, rank), copy.deepcopy(schedule.state_dict()), copy.deepcopy(net.state_dict())
    rest = train(net, opt, schedule, rank, range(SAVED, STEPS))
    twin = model(seed=2)
    twin.load_state_dict(at)
    other, resumed = driven(twin, SCHEDULES[name])
    other.load_state_dict(saved)
    resumed.load_state_dict(numbers)
    again = train(twin, other, resumed, rank, range(SAVED, STEPS))
    assert again == rest
    assert all(map(torch.equal, values(net), values(twin)))
    return first + rest, values(net)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_from_outside_decides_as_within_one_process(ranks, name):
    """And goes on from a consolidated checkpoint to the bit."""
    net = model()
    opt = FusedAdamW(groups(net, 0.01), lr=0.01, schedule=SCHEDULES[name], **PLAIN)
    wanted = []
    for step in range(STEPS):
        gradients(net, step)
        wanted.append(opt.read_lr())
        opt.step(loss=(loss(step, 0) + loss(step, 1)) / 2)
    assert len({lr for lr, _ in wanted}) > 5
    for lrs, params in ranks(driven_and_resumed, name):
        assert lrs == wanted
        for ours, one in zip(params, net.parameters(), strict=True):
            # the norm is added up in another order: an ulp of the clip coefficient at each step
            torch.testing.assert_close(ours, one.detach(), rtol=STEPS * 2.0**-23, atol=STEPS * 2.0**-24)


def plain_and_resumed(rank, dtype, make=model, **options):
    """A checkpoint of the optimizer inside, which ZeRO reads and fills without a method of it; its dtypes."""
    net = make(dtype)
    opt = zero(net, **options)
    steps(net, opt, range(5))
    saved, at = consolidated(opt, rank), copy.deepcopy(net.state_dict())
    steps(net, opt, range(5, 9))
    twin = make(dtype, seed=2)
    twin.load_state_dict(at)
    other = zero(twin, **options)
    other.load_state_dict(saved)
    steps(twin, other, range(5, 9))
    assert all(map(torch.equal, values(net), values(twin)))
    return {value.dtype for own in other.optim.state.values() for value in own.values()}


def floats_resumed(rank, dtype):
    assert plain_and_resumed(rank, dtype, state_dtype=torch.float32) == {torch.float32}


def wide(dtype, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 128)).to(dtype)


def codes_resumed(rank, master):
    found = plain_and_resumed(rank, torch.bfloat16, wide, state_dtype=torch.int8, master_weights=master)
    assert found == {torch.float32, torch.int8, torch.uint8} | {torch.int16}  # which vectors have in any case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_schedule_it_goes_on_to_the_bit(ranks, dtype):
    ranks(floats_resumed, dtype)


@pytest.mark.parametrize("master", ["int16", "int8"])
def test_codes_and_masters_go_on_to_the_bit(ranks, master):
    ranks(codes_resumed, master)


def steps(net, opt, which):
    for step in which:
        gradients(net, step)
        opt.step()


def from_torch(rank):
    """Steps and moments of torch's AdamW; LRs as they stand there."""
    net = model()
    opt = zero(net, kind=torch.optim.AdamW, foreach=True)
    steps(net, opt, range(3))
    fresh = zero(model())
    fresh.load_state_dict(consolidated(opt, rank))
    own = [
        torch.equal(opt.optim.state[a][name], fresh.optim.state[b][name])
        for a, b in zip(*(o._all_params for o in (opt, fresh)), strict=True)
        if a in opt.optim.state
        for name in ("step", "exp_avg", "exp_avg_sq")
    ]
    assert all(own) and own
    assert [group["lr"] for group in fresh.param_groups] == [0.01, 0.005]


def test_adamw_of_torch_hands_over(ranks):
    ranks(from_torch)


def driven_from_torch(rank, lr, saved_lr):
    """A run of torch's AdamW goes on under a DeviceSchedule, as its `load_state_dict` documents it: the LRs of the
    groups are made tensors of the peak after the optimizer's state is loaded.
    """
    net = model()
    opt = zero(net, lr=saved_lr, kind=torch.optim.AdamW, foreach=True)
    steps(net, opt, range(3))
    saved = consolidated(opt, rank)
    other = zero(net, lr=torch.tensor(lr, dtype=torch.float64))
    other.load_state_dict(saved)
    for group, peak in zip(other.param_groups, (lr, lr / 2), strict=True):
        group["lr"] = torch.tensor(peak, dtype=torch.float64)
    schedule = DeviceSchedule(other, SCHEDULES["cosine"])
    assert schedule.metrics().step == 0
    lrs = train(net, other, schedule, rank, range(3, 9))
    counts = {float(own["step"]) for own in other.optim.state.values()}
    return lrs, values(net), counts


@pytest.mark.parametrize("saved_lr", [0.01, 0.002])
def test_a_schedule_from_outside_goes_on_from_torchs_adamw(ranks, saved_lr):
    """With the LRs and moments of FusedAdamW in one process that loaded the same."""
    net = model()
    old = torch.optim.AdamW(groups(net, saved_lr), lr=saved_lr, foreach=True)
    steps(net, old, range(3))
    opt = FusedAdamW(groups(net, 0.01), lr=0.01, schedule=SCHEDULES["cosine"], **PLAIN)
    saved = old.state_dict()
    for group, peak in zip(saved["param_groups"], (0.01, 0.005), strict=True):
        group["lr"] = peak
    opt.load_state_dict(saved)
    wanted = []
    for step in range(3, 9):
        gradients(net, step)
        wanted.append(opt.read_lr())
        opt.step()
    for lrs, params, counts in ranks(driven_from_torch, 0.01, saved_lr):
        assert lrs == wanted and counts == {9.0}
        for ours, one in zip(params, net.parameters(), strict=True):  # the norm's order of addition, as above
            torch.testing.assert_close(ours, one.detach(), rtol=STEPS * 2.0**-23, atol=STEPS * 2.0**-24)


def torch_under_a_schedule(rank):
    """Loaded under a DeviceSchedule that exists already: an LR that is not the schedule's is refused."""
    net = model()
    opt = zero(net, lr=0.002, kind=torch.optim.AdamW, foreach=True)
    steps(net, opt, range(3))
    other, schedule = driven(net, SCHEDULES["cosine"])
    other.load_state_dict(consolidated(opt, rank))
    steps(net, other, [3])
    with pytest.raises(
        RuntimeError, match=r"in parameter group 0, .*got lr=0\.002 written there.*construct another schedule"
    ):
        schedule.step()


def test_lrs_of_torchs_adamw_under_a_schedule_are_refused(ranks):
    ranks(torch_under_a_schedule)


def refused(rank):
    message = r"expected None within ZeroRedundancyOptimizer, got Linear.*DeviceSchedule\(zero, schedule\)"
    with pytest.raises(TypeError, match=message):
        zero(model(), schedule=Linear(9))
    with pytest.raises(TypeError, match="skip_spikes: expected None within ZeroRedundancyOptimizer.*fully_shard"):
        zero(model(), skip_spikes=SkipSpikes())


def test_what_its_checkpoints_would_not_have_is_refused(ranks):
    ranks(refused)
