"""State that leaves an optimizer and comes back: resumed training has the bits of training that never stopped."""

import copy
import io
import pickle

import pytest
import torch
from support.tensors import (
    FLOATS,
    assert_same,
    assert_same_bits,
    generator,
    latest,
    parameter,
    set_grad,
    short,
    snapshot,
    spread,
)

from greedylr_fused import FusedAdamW, GreedyLR, available_backends
from greedylr_fused.control.slots import SLOT, ring_begin

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
MIXES = [*((t, t) for t in FLOATS), (BF16, F32), (F16, F32), (F32, BF16)]
SCHEDULE = GreedyLR(patience=1, factor=0.7, smooth=True, window_size=4, warmup=1, cooldown=1, reset_start=2)
LOSSES = [3.0, 2.5, 2.7, 2.1, 2.0, 2.6, 2.9, 3.5, 3.3, 3.1, 1.5, 1.4]


def ids(mix):
    return "-".join(map(short, mix))


def build(backend, device, mix=(F32, F32), params=None, **options):
    params = params or [parameter(spread(generator(n), n, -1, 0).to(device, mix[0])) for n in (129, 20, 1)]
    options = {"amsgrad": True, "schedule": SCHEDULE, "max_grad_norm": 1.0, "backend": backend} | options
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "lr": 0.01, "weight_decay": 0.1}]
    return FusedAdamW(groups, state_dtype=None if mix[0] == mix[1] else mix[1], **options)


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def numbers(opt):
    """The control state by name, the window oldest loss first; as text, since NaN does not equal itself."""
    return [repr(sorted(group.items())) for group in opt._control.numbers()]


def train(opt, steps, schedule=True):
    for step in steps:
        for i, param in enumerate(params_of(opt)):
            grad = spread(generator(100 * step + i), param.numel(), -2, 0).reshape(param.shape)
            set_grad(param, None if (step + i) % 5 == 0 else grad.to(param.device, param.dtype))
        opt.step(loss=LOSSES[step]) if schedule else opt.step()


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(opt, backend, device, mix=(F32, F32), **options):
    """A new optimizer over copies of the parameters, from the saved state."""
    state = through_file(opt.state_dict())
    other = build(backend, device, mix, [parameter(p.detach().clone()) for p in params_of(opt)], **options)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("mix", MIXES, ids=ids)
def test_resume_has_the_bits_of_never_having_stopped(backend, device, mix):
    opt = build(backend, device, mix)
    train(opt, range(7))
    other = resumed(opt, backend, device, mix)
    assert other.read_lr() == opt.read_lr() and latest(opt)
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in opt.param_groups]
    train(opt, range(7, 12))
    train(other, range(7, 12))
    a, b = snapshot(opt), snapshot(other)
    ring = slice(ring_begin(2), None)  # it may be rotated: compared through numbers(), which lists it in order
    assert numbers(opt) == numbers(other)
    for state in (a, b):
        state["control"][ring] = 0.0
        state["control"][SLOT["window_head"]] = 0.0
    assert_same(a, b)


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 10])
def test_resume_at_every_step(backend, device, stop):
    """Before the first loss, while waiting, right after a change, with the window half full."""
    opt = build(backend, device, amsgrad=False, max_grad_norm=None)
    train(opt, range(stop))
    other = resumed(opt, backend, device, amsgrad=False, max_grad_norm=None)
    for step in range(stop, 12):
        train(opt, [step])
        train(other, [step])
        assert opt.read_lr() == other.read_lr()
        assert numbers(opt) == numbers(other)
    assert_same(snapshot(opt, control=False), snapshot(other, control=False))


@pytest.mark.parametrize("other", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("direction", ["save", "load"])
def test_save_on_one_backend_and_load_on_another(backend, device, other, direction):
    if reason := available_backends(device)[other]:
        pytest.skip(f"{other}: {reason}")
    source, target = (backend, other) if direction == "save" else (other, backend)
    opt = build(source, device)
    train(opt, range(6))
    loaded = resumed(opt, target, device)
    assert_same(snapshot(opt, control=False), snapshot(loaded, control=False))
    assert numbers(opt) == numbers(loaded)
    train(opt, range(6, 9))
    train(loaded, range(6, 9))
    assert opt.read_lr() == loaded.read_lr()
    for a, b in zip(params_of(opt), params_of(loaded), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=short)
@pytest.mark.parametrize("asked", [True, False], ids=["state_dtype", "from_the_checkpoint"])
def test_float32_moments_survive_unrounded(backend, device, dtype, asked):
    opt = build(backend, device, (dtype, F32))
    train(opt, range(3))
    other = resumed(opt, backend, device, (dtype, F32 if asked else dtype))
    for a, b in zip(params_of(opt), params_of(other), strict=True):
        for name, moment in opt.state[a].items():
            assert moment.dtype == F32
            assert_same_bits(other.state[b][name], moment)
    assert not torch.equal(
        opt.state[params_of(opt)[0]]["exp_avg"], opt.state[params_of(opt)[0]]["exp_avg"].to(dtype).float()
    )
    train(opt, [3])
    train(other, [3])
    assert_same(snapshot(opt, control=False), snapshot(other, control=False))


PLAIN = {"schedule": None, "max_grad_norm": None}


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"capturable": True}], ids=str)
def test_from_torch_and_on(backend, device, options):
    if options.get("capturable") and device.type == "cpu":
        options = {}
    ours = build(backend, device, **PLAIN)
    twins = [parameter(p.detach().clone()) for p in params_of(ours)]
    torchs = torch.optim.AdamW(
        [{"params": twins[:1], "lr": 0.02}, {"params": twins[1:], "lr": 0.01, "weight_decay": 0.1}],
        amsgrad=True,
        **options,
    )
    train(torchs, range(3), schedule=False)
    for p, twin in zip(params_of(ours), twins, strict=True):
        p.data.copy_(twin.data)
    ours.load_state_dict(through_file(torchs.state_dict()))
    train(torchs, range(3, 6), schedule=False)
    train(ours, range(3, 6), schedule=False)
    for p, twin in zip(params_of(ours), twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-5, atol=1e-7)
        assert float(ours.state[p]["step"]) == float(torchs.state[twin]["step"])


@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["plain", "greedy"])
def test_to_torch_and_back(backend, device, schedule):
    ours = build(backend, device, schedule=schedule, max_grad_norm=None)
    train(ours, range(3))
    twins = [parameter(p.detach().clone()) for p in params_of(ours)]
    torchs = torch.optim.AdamW([{"params": twins[:1]}, {"params": twins[1:]}], lr=0.5)
    torchs.load_state_dict(through_file(ours.state_dict()))
    assert [g["lr"] for g in torchs.param_groups] == ours.read_lr()
    back = build(
        backend, device, params=[parameter(t.detach().clone()) for t in twins], schedule=schedule, max_grad_norm=None
    )
    back.load_state_dict(through_file(torchs.state_dict()))
    for p, b in zip(params_of(ours), params_of(back), strict=True):
        for name, value in ours.state[p].items():
            assert_same_bits(back.state[b][name], value)
    if schedule is None:
        train(ours, range(3, 5))
        train(torchs, range(3, 5), schedule=False)
        for p, twin in zip(params_of(ours), twins, strict=True):
            torch.testing.assert_close(p, twin, rtol=1e-5, atol=1e-7)
    else:  # torch keeps every key of a group: the schedule comes back as well
        assert numbers(back) == numbers(ours)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_model_and_optimizer_together(backend, device, copier):
    model = torch.nn.Linear(20, 30, device=device)
    opt = FusedAdamW(model.parameters(), lr=0.01, schedule=SCHEDULE, max_grad_norm=1.0, backend=backend)
    train(opt, range(5))
    before = snapshot(opt)
    twin_model, twin = copier((model, opt))
    assert params_of(twin)[0] is twin_model.weight and params_of(twin)[0] is not model.weight
    train(twin, range(5, 8))
    assert_same(snapshot(opt), before)
    train(opt, range(5, 8))
    assert opt.read_lr() == twin.read_lr()
    assert numbers(opt) == numbers(twin)
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))
    assert latest(twin) == latest(opt) and repr(twin) == repr(opt)


def test_copy_of_an_optimizer_that_never_stepped(backend, device):
    opt = build(backend, device)
    twin = copy.deepcopy(opt)
    train(opt, range(2))
    train(twin, range(2))
    assert_same(snapshot(opt), snapshot(twin))


def test_load_into_itself(backend, device):
    opt, other = build(backend, device), build(backend, device)
    train(opt, range(4))
    train(other, range(4))
    opt.load_state_dict(opt.state_dict())
    train(opt, range(4, 8))
    train(other, range(4, 8))
    assert numbers(opt) == numbers(other)
    assert_same(snapshot(opt, control=False), snapshot(other, control=False))


def test_loaded_tensors_are_not_the_sources(backend, device):
    opt = build(backend, device)
    train(opt, range(4))
    other = build(backend, device)
    for p, q in zip(params_of(opt), params_of(other), strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(opt.state_dict())
    memory = {t.untyped_storage().data_ptr() for s in opt.state.values() for t in s.values() if t.numel()}
    assert not any(t.untyped_storage().data_ptr() in memory for s in other.state.values() for t in s.values())
    before = snapshot(opt)
    train(other, range(4, 7))
    assert_same(snapshot(opt), before)


def test_a_state_dict_is_a_snapshot_of_the_numbers(backend, device):
    """As in torch its tensors are the live ones; the numbers of the schedule stay what they were."""
    opt = build(backend, device)
    train(opt, range(3))
    saved = opt.state_dict()
    kept = copy.deepcopy([group["control"] for group in saved["param_groups"]])
    kinds = {"window": str, "version": int}
    assert all(isinstance(value, kinds.get(key, float)) for own in kept for key, value in own.items())
    train(opt, range(3, 8))
    assert [group["control"] for group in saved["param_groups"]] == kept


def test_load_goes_into_the_memory_of_the_control_vector(backend, device):
    """A captured graph keeps reading there."""
    opt = build(backend, device)
    train(opt, range(4))
    address = opt._control.vector.data_ptr()
    saved = through_file(opt.state_dict())
    train(opt, range(4, 8))
    opt.load_state_dict(saved)
    assert opt._control.vector.data_ptr() == address


def test_load_before_the_first_step_and_unfinished_observations(backend, device):
    opt = build(backend, device)
    train(opt, range(4))
    other = build(backend, device)
    other.observe(100.0)
    other.load_state_dict(through_file(opt.state_dict()))
    for p, q in zip(params_of(opt), params_of(other), strict=True):
        q.data.copy_(p.data)
    train(opt, [4])
    train(other, [4])
    assert opt.read_lr() == other.read_lr() and latest(other).loss == LOSSES[4]
