"""What a tuner keeps, on every backend: through files, copies and other optimizers, and what it refuses."""

import copy
import pickle
import warnings

import pytest
import torch
from support import tuned
from support.stored import through_file
from support.tensors import assert_same, assert_same_bits, latest, parameter, snapshot
from support.tuned import BF16, F32, MIXES, gradients

from greedylr_fused import Cosine, FusedAdamW, GreedyLR, Mechanic

SHAPES = [(3, 5), (64, 64), (7,)]
KEPT = {"mechanic_offset", "mechanic_s"}
SCHEDULES = [None, Cosine(20, warmup_steps=2), GreedyLR(patience=0, factor=0.5, window_size=3)]


def build(backend, device, mix="f32", params=None, **options):
    dtype, _, state_dtype, master = MIXES[mix]
    options = tuned.OPTIONS | {"lr": 1.0, "tuner": Mechanic(), "max_grad_norm": 10.0} | options
    listed = [parameter(p) for p in params] if params else tuned.params(SHAPES, dtype, device)
    return FusedAdamW(listed, backend=backend, state_dtype=state_dtype, master_weights=master, **options)


def train(opt, steps, dtype=F32):
    for step in steps:
        grads = gradients(SHAPES, step, dtype)
        tuned.give(opt, [grad if (step + i) % 4 else None for i, grad in enumerate(grads)])
        opt.step(loss=3.0 - 0.1 * step) if opt.schedule is not None else opt.step()


def params_of(opt):
    return [p.detach().clone() for p in opt.param_groups[0]["params"]]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["no schedule", "cosine", "greedy"])
@pytest.mark.parametrize("mix", ["f32", "f64", "c64", "bf16+16", "bf16+8-codes"])
def test_resume_has_the_bits_of_never_having_stopped(backend, device, mix, schedule):
    opt = build(backend, device, mix, schedule=schedule)
    train(opt, range(4), MIXES[mix][1])
    saved = through_file(opt.state_dict())
    assert all(group["tuner"]["scale"] == latest(opt).tuner_scale for group in saved["param_groups"])
    other = build(backend, device, mix, params_of(opt), schedule=schedule)
    other.load_state_dict(saved)
    assert_same(snapshot(opt, control=False), snapshot(other, control=False))
    train(opt, range(4, 7), MIXES[mix][1])
    train(other, range(4, 7), MIXES[mix][1])
    assert_same(snapshot(opt, control=False), snapshot(other, control=False))
    assert other._control.tuned.learned() == opt._control.tuned.learned()
    assert latest(other) == latest(opt) or schedule is None  # without one, no checkpoint has the number of steps
    assert latest(other).tuner_scale == latest(opt).tuner_scale > 1e-6 and opt.param_groups[0]["tuner"] == {}


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies(backend, device, copier):
    opt = build(backend, device, "bf16+16")
    train(opt, range(3), BF16)
    twin = copier(opt)
    assert twin.tuner == opt.tuner
    train(opt, range(3, 5), BF16)
    train(twin, range(3, 5), BF16)
    assert_same(snapshot(opt), snapshot(twin))


def test_loaded_tensors_are_not_the_sources(backend, device):
    opt, other = build(backend, device), build(backend, device)
    train(opt, range(2))
    other.load_state_dict(opt.state_dict())
    before = snapshot(opt)
    train(other, range(2, 4))
    assert_same(snapshot(opt), before)


def test_a_checkpoint_without_a_tuner_starts_one(backend, device):
    """From where the parameters are by then, with the moments of the checkpoint."""
    plain = build(backend, device, tuner=None, lr=0.01)
    train(plain, range(3))
    saved = through_file(plain.state_dict())
    assert "tuner" not in saved["param_groups"][0] and not KEPT & set(saved["state"][0])
    opt = build(backend, device, params=params_of(plain))
    opt.load_state_dict(saved)
    opt.param_groups[0]["lr"] = 1.0
    before = params_of(opt)
    train(opt, [5])
    assert latest(opt).tuner_scale == pytest.approx(1e-6)
    for i, (param, start) in enumerate(zip(opt.param_groups[0]["params"], before, strict=True)):
        assert (param - start).abs().max() < 1e-4
        assert float(opt.state[param]["step"]) == float(plain.state[plain.param_groups[0]["params"][i]]["step"]) + (
            (5 + i) % 4 != 0
        )


def test_a_checkpoint_with_a_tuner_goes_on_without(backend, device):
    opt = build(backend, device)
    train(opt, range(3))
    saved = through_file(opt.state_dict())
    plain = build(backend, device, params=params_of(opt), tuner=None, lr=0.01)
    with pytest.warns(UserWarning, match="it has a tuner, .*; construct it with tuner=Mechanic"):
        plain.load_state_dict(saved)
    assert not any(KEPT & set(state) for state in plain.state.values()) and "tuner" not in plain.param_groups[0]
    train(plain, range(3, 5))


def test_torch_loads_what_is_exported(backend, device):
    opt = build(backend, device)
    train(opt, range(3))
    exported = opt.export_state_dict()
    theirs = torch.optim.AdamW(tuned.params(SHAPES, F32, device))
    theirs.load_state_dict(exported)
    assert set(theirs.state[theirs.param_groups[0]["params"][0]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert "tuner" not in theirs.param_groups[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learned": "0.5 0.5"}, r'\["learned"\]: expected 24 numbers, four for each .*, got 2; '),
        ({"learned": 3.0}, r'\["learned"\]: expected a text of numbers with blanks between them, got 3.0; '),
        ({"learned": " ".join(["-1.0"] * 24)}, r'\["learned"\]: expected s, m and v of 0 or more, .*, got '),
        ({"learned": " ".join(["nan"] * 24)}, r'\["learned"\]: expected finite numbers, got '),
        ({"version": 2}, r'\["version"\]: expected 1, got 2; update greedylr_fused'),
    ],
)
def test_damaged_numbers_are_refused_by_name(backend, device, change, match):
    opt, other = build(backend, device), build(backend, device)
    train(opt, range(2))
    train(other, range(1))
    saved, before = through_file(opt.state_dict()), snapshot(other)
    saved["param_groups"][0]["tuner"] |= change
    with pytest.raises(ValueError, match=r'checkpoint: param_groups\[0\]\["tuner"\]' + match):
        other.load_state_dict(saved)
    assert_same(snapshot(other), before)
    saved = through_file(opt.state_dict())
    saved["state"][0]["mechanic_s"] = -1.0
    with pytest.raises(ValueError, match=r'state\[0\]\["mechanic_s"\]: expected a finite number >= 0, got -1.0; '):
        other.load_state_dict(saved)
    assert_same(snapshot(other), before)


def test_state_that_is_replaced_is_followed(backend, device, watched):
    """New memory of an offset, or of the S beside it: the table is built anew."""
    opt, other = build(backend, device), build(backend, device)
    train(opt, range(3))
    train(other, range(3))
    for param in opt.param_groups[0]["params"]:
        state = opt.state[param]
        state["mechanic_offset"] = state["mechanic_offset"].clone()
        state["mechanic_s"] = state["mechanic_s"].clone()
    train(opt, range(3, 5))
    train(other, range(3, 5))
    assert_same(snapshot(opt), snapshot(other))


def test_masters_loaded_into_it_stay(backend, device):
    opt = build(backend, device, "bf16+16")
    train(opt, range(3), BF16)
    weights = {key: weight + 1.0 for key, weight in opt.master_weights().items()}
    opt.load_master_weights(weights)
    train(opt, range(3, 5), BF16)
    for key, weight in opt.master_weights().items():
        assert (weight - weights[key]).abs().max() < 1e-3


def test_memory_is_counted(backend, device):
    for mix, offset in (("f32", 4), ("f64", 8), ("bf16+16", 4), ("c64", 8)):
        opt = build(backend, device, mix)
        memory = opt.memory()
        assert memory.offsets == offset * memory.elements and f"{offset} offsets" in repr(memory)
        train(opt, range(1, 3), MIXES[mix][1])
        held = [state["mechanic_offset"] for state in opt.state.values()]
        assert sum(t.numel() * t.itemsize for t in held) == memory.offsets
    assert build(backend, device, tuner=None, lr=0.01).memory().offsets == 0


def test_groups_that_join_are_tuned_with_the_others(backend, device):
    opt = build(backend, device, "f64")
    train(opt, range(3), torch.float64)
    learned = opt._control.tuned.learned()
    late = parameter(torch.ones(5, dtype=torch.float64, device=device))
    opt.add_param_group({"params": [late], "lr": 0.5})
    assert latest(opt).tuner_scale == learned[0] + sum(learned[1:6]) and opt._control.tuned.learned() == learned
    late.grad = torch.ones(5, dtype=torch.float64, device=device)
    opt.step()
    assert float(opt.state[late]["mechanic_s"]) == latest(opt).tuner_scale
    moved = 1.0 - late.detach()
    assert torch.allclose(moved, torch.full_like(moved, 0.55 * latest(opt).tuner_scale), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "remedy"), [(BF16, 'pass master_weights="int16"'), (torch.float16, "to float32")])
def test_parameters_whose_moves_would_be_lost_are_refused(backend, device, dtype, remedy):
    params = tuned.params(SHAPES, dtype, device)
    with pytest.raises(TypeError, match=f"tuner=...\\): expected .*, got a {dtype} parameter.*{remedy}"):
        FusedAdamW(params, lr=1.0, tuner=Mechanic(), backend=backend)
    opt = build(backend, device)
    with pytest.raises(TypeError, match="whose first moves"):
        opt.add_param_group({"params": params})
    assert len(opt.param_groups) == 1


def test_other_mistakes():
    params = tuned.params(SHAPES, F32, "cpu")
    with pytest.raises(TypeError, match="tuner: expected Mechanic\\(\\) or None, got 'mechanic'; write"):
        FusedAdamW(params, lr=1.0, tuner="mechanic")
    with pytest.warns(UserWarning, match="expected a base lr of about 1, .* got 0.0003; write lr=1.0"):
        FusedAdamW(params, lr=3e-4, tuner=Mechanic())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = FusedAdamW(params, lr=0.01, tuner=Mechanic())
    plain = torch.optim.AdamW(params, lr=1e-3)
    for param in params:
        param.grad = torch.ones_like(param)
    plain.step()
    with pytest.warns(UserWarning, match="got 0.001 from the checkpoint; before loading delete"):
        opt.load_state_dict(plain.state_dict())


def test_repr_shows_it():
    opt = FusedAdamW(tuned.params(SHAPES, F32, "cpu"), lr=1.0, tuner=Mechanic(s_init=1e-8))
    assert "\ntuner: Mechanic(s_init=1e-08," in repr(opt) and "tuner: {}" not in repr(opt)


def test_recomputing_the_offset_would_lose_it():
    """Why float32 parameters keep one: weights of 1 in a warm-up of 1,000 steps. Recomputed from what float32 keeps of
    the parameter, the first offsets read nothing; those that are kept are right.
    """
    opt = FusedAdamW([parameter(torch.ones(1000))], lr=1.0, tuner=Mechanic(), weight_decay=0.0)
    (param,) = opt.param_groups[0]["params"]
    for step in range(3):
        opt.param_groups[0]["lr"] = (step + 1) / 1000
        param.grad = torch.ones(1000)
        opt.step()
    kept = opt.state[param]["mechanic_offset"]
    assert_same_bits(1.0 - param.detach(), torch.zeros(1000))
    truth = 0.0
    for update in (1e-3, 2e-3, 3e-3):  # D = dp - u, of which 1 % is lost to eps at each step
        truth = truth / 1.01 + update
    assert torch.allclose(kept, torch.full((1000,), truth * 1e-6), rtol=1e-5)
