"""8-bit moments and remainders that leave an optimizer and come back: as they are, or converted."""

import copy
import pickle

import pytest
import torch
from support.stored import BF16, F32, I8, STORAGES, STORED, build, loaded, params_of, through_file, train
from support.tensors import assert_same, assert_same_bits, parameter, same_bits, snapshot

from greedylr_fused import Cosine, FusedAdamW
from greedylr_fused.tensors import EIGHT_BIT, eight_bit


@pytest.mark.parametrize("storage", STORED)
def test_resume_has_the_bits_of_never_having_stopped(backend, device, storage):
    opt = build(backend, device, storage)
    train(opt, range(3))
    other = loaded(opt, backend, device, storage)
    assert_same(snapshot(opt), snapshot(other))
    train(opt, range(3, 6))
    train(other, range(3, 6))
    assert_same(snapshot(opt), snapshot(other))
    names = {name for own in opt.state.values() for name in own}
    assert (set(EIGHT_BIT) <= names) == ("codes" in storage) and ("remainder" in names) == ("+" in storage)
    for group in opt.state_dict()["param_groups"]:
        assert group["state_dtype"] == str(STORAGES[storage][1]).removeprefix("torch.")
        assert (group["state_version"], group["state_group_size"]) == (1, 64)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("storage", ["codes+8", "floats+16"])
def test_copies(backend, device, storage, copier):
    opt = build(backend, device, storage)
    train(opt, range(2))
    twin = copier(opt)
    train(opt, range(2, 4))
    train(twin, range(2, 4))
    assert_same(snapshot(opt), snapshot(twin))


def test_loaded_tensors_are_not_the_sources(backend, device):
    opt, other = (build(backend, device, "codes+8") for _ in range(2))
    train(opt, range(2))
    other.load_state_dict(opt.state_dict())
    memory = {t.untyped_storage().data_ptr() for s in opt.state.values() for t in s.values()}
    assert not any(t.untyped_storage().data_ptr() in memory for s in other.state.values() for t in s.values())
    before = snapshot(opt)
    train(other, range(2, 4))
    assert_same(snapshot(opt), before)


def dtypes(opt):
    return [{name: value.dtype for name, value in opt.state[p].items()} for p in params_of(opt)]


def moments(state):
    """float32, flat."""
    if EIGHT_BIT[0] in state:
        return eight_bit.decode_moments(*(state[name].reshape(-1) for name in EIGHT_BIT))
    return [state[name].float().reshape(-1) for name in ("exp_avg", "exp_avg_sq")]


def assert_moments(found, wanted, storage):
    """Those of the parameters that have them in 8 bits within half a code of the largest, others as they were."""
    for i, (own, other) in enumerate(zip(found, wanted, strict=True)):
        exact = "codes" not in storage or i > 1
        for name, mine, theirs in zip("mv", moments(own), moments(other), strict=True):
            if exact:
                assert_same_bits(mine, theirs.to(BF16).float() if storage == "halves" else theirs, f"{name} {i}")
            else:
                error = (mine - theirs).abs() / theirs.abs().view(-1, 64).amax(1).repeat_interleave(64)
                assert 0 < error.max() < 0.017, (name, i)


@pytest.mark.parametrize("before", STORED)
@pytest.mark.parametrize("after", STORAGES)
@pytest.mark.filterwarnings("ignore:checkpoint. its bfloat16 parameters had float32 masters")
def test_from_any_storage_into_any_other(backend, device, before, after):
    opt = build(backend, device, before)
    train(opt, range(3))
    options = {"state_dtype": BF16} if after == "halves" else {}
    other = loaded(opt, backend, device, after, **options)
    fresh = build(backend, device, after, **options)
    train(fresh, [1])
    assert dtypes(other) == dtypes(fresh)
    states = [[o.state[p] for p in params_of(o)] for o in (other, opt)]
    if "codes" in before and "codes" in after:
        assert all(same_bits(a[name], b[name]) for a, b in zip(*states, strict=True) for name in EIGHT_BIT if name in a)
    else:
        assert_moments(*states, after)
    for own, theirs in zip(*states, strict=True):
        if "remainder" in own:
            start = theirs.get("remainder", torch.zeros_like(own["remainder"], dtype=torch.int16))
            assert_same_bits(own["remainder"], as_stored(start, own["remainder"].dtype))
    train(other, [3])
    assert all(param.isfinite().all() for param in params_of(other))
    counts = [[float(own["step"]) for own in [o.state[p] for p in params_of(o)]] for o in (opt, other)]
    assert counts == [[2.0, 3.0, 3.0, 3.0], [3.0, 4.0, 4.0, 4.0]]


def as_stored(remainder, dtype):
    """Written apart from the package: by floats, in which a part of 16 bits is exact."""
    in_16_bits = remainder.double() * (256 if remainder.dtype == I8 else 1)
    return in_16_bits.to(dtype) if dtype == torch.int16 else (in_16_bits / 256 + 0.5).floor().clamp(max=127).to(I8)


@pytest.mark.parametrize("storage", STORED)
def test_from_torchs_adamw(backend, device, storage):
    """Moments to the nearest code, remainders 0."""
    ours = build(backend, device, storage)
    torchs = torch.optim.AdamW(
        [{"params": g["params"], "lr": g["lr"]} for g in build(backend, device, storage).param_groups]
    )
    train(torchs, range(3))
    ours.load_state_dict(through_file(torchs.state_dict()))
    states = [[o.state[p] for p in params_of(o)] for o in (ours, torchs)]
    assert_moments(*states, storage)
    assert not any(own["remainder"].any() for own in states[0] if "remainder" in own)
    assert [float(own["step"]) for own in states[0]] == [float(own["step"]) for own in states[1]]
    assert [group["lr"] for group in ours.param_groups] == [0.02, 0.01]
    assert ours.param_groups[0]["state_dtype"] == STORAGES[storage][1]
    train(ours, [3])
    assert all(param.isfinite().all() for param in params_of(ours))


@pytest.mark.parametrize("storage", STORED)
def test_exported_to_torchs_adamw_and_back(backend, device, storage):
    ours = build(backend, device, storage)
    train(ours, range(3))
    exported = through_file(ours.export_state_dict())
    plain = torch.optim.AdamW([torch.zeros(1)]).param_groups[0].keys()
    assert all(group.keys() <= plain for group in exported["param_groups"])
    assert all(own.keys() == {"step", "exp_avg", "exp_avg_sq"} for own in exported["state"].values())
    twins = [parameter(p.detach().clone()) for p in params_of(ours)]
    torchs = torch.optim.AdamW([{"params": twins[:1]}, {"params": twins[1:]}])
    torchs.load_state_dict(exported)
    for i, (p, twin) in enumerate(zip(params_of(ours), twins, strict=True)):
        own = exported["state"][i]
        for mine, theirs in zip(moments(ours.state[p]), (own["exp_avg"], own["exp_avg_sq"]), strict=True):
            assert_same_bits(mine, theirs.reshape(-1))
        assert_same_bits(torchs.state[twin]["exp_avg"], own["exp_avg"].to(p.dtype))
    back = build(backend, device, storage, [p.detach().clone() for p in params_of(ours)])
    back.load_state_dict(exported)
    assert_same(
        {name: value for name, value in snapshot(back).items() if "_q" in name},
        {name: value for name, value in snapshot(ours).items() if "_q" in name},
    )
    train(torchs, [3])


def test_torchs_adamw_does_not_take_codes_for_moments(backend, device):
    ours = build(backend, device, "codes+8")
    train(ours, range(2))
    torchs = torch.optim.AdamW([{"params": g["params"]} for g in build(backend, device, "codes+8").param_groups])
    torchs.load_state_dict(through_file(ours.state_dict()))
    with pytest.raises(KeyError, match="exp_avg"):
        train(torchs, [2])


def test_a_group_with_storage_of_its_own(backend, device):
    opt = build(backend, device, "halves")
    train(opt, [1])
    more = parameter(torch.ones(64, 64, dtype=BF16, device=device), torch.ones(64, 64, dtype=BF16, device=device))
    opt.add_param_group({"params": [more], "state_dtype": I8, "master_weights": "int8"})
    assert opt.state_dict()["param_groups"][-1]["state_version"] == 1
    opt.step()
    assert opt.state[more]["remainder"].dtype == I8 and set(EIGHT_BIT) < opt.state[more].keys()
    assert not any(EIGHT_BIT[0] in opt.state[p] for p in params_of(opt)[:-1])
    twin = copy.deepcopy(opt)
    twin.load_state_dict(through_file(opt.state_dict()))
    for o in (opt, twin):
        for param in params_of(o):
            param.grad = torch.ones_like(param)
        o.step()
    assert_same(snapshot(opt), snapshot(twin))
    assert twin.param_groups[-1]["state_version"] == 1 and "state_version" not in twin.param_groups[0]


def test_a_parameter_that_changes_its_dtype(backend, device):
    """To float32 it has no remainder, back in bfloat16 one of 0; to float32 by `master_weights` nothing is lost."""
    model = torch.nn.Linear(64, 64, bias=False).to(device, BF16)
    opt = FusedAdamW(model.parameters(), backend=backend, state_dtype=I8, master_weights="int8")
    for step, dtype in enumerate((BF16, F32, BF16)):
        kept = opt.master_weights()
        model.to(dtype)
        if dtype == F32:
            assert not torch.equal(model.weight, kept[0])
            opt.load_master_weights(kept)
            assert torch.equal(model.weight, kept[0])
        model.weight.grad = torch.ones_like(model.weight)
        opt.step()
        own = opt.state[model.weight]
        assert ("remainder" in own) == (dtype == BF16) and float(own["step"]) == step + 1
        opt.zero_grad(set_to_none=True)
    assert own["remainder"].any()
    model.to(F32)
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.warns(UserWarning, match="master_weights: expected parameters that stay bfloat16"):
        opt.step()


def test_a_parameter_that_changes_its_strides(backend, device):
    """Groups of 64 lie in rows: there is an error that says how to go on, with float32 moments."""
    param = parameter(torch.ones(64, 16, 2, 2, device=device))
    opt = FusedAdamW([param], backend=backend, state_dtype=I8)
    param.grad = torch.ones_like(param)
    opt.step()
    before = moments(opt.state[param])
    param.data = param.data.contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=r"row-major .*load_state_dict\(state_dict\(\)\), which converts"):
        opt.step()
    with pytest.warns(UserWarning, match="state_dtype=torch.int8: expected row-major parameters"):
        opt.load_state_dict(opt.state_dict())
    for name, value in zip(("exp_avg", "exp_avg_sq"), before, strict=True):
        assert_same_bits(opt.state[param][name].contiguous().reshape(-1), value)
    opt.step()
    assert float(opt.state[param]["step"]) == 2


def test_groups_that_are_replaced_keep_their_storage(backend, device):
    opt = build(backend, device, "codes+8")
    train(opt, range(2))
    twin = loaded(opt, backend, device, "codes+8")
    opt.param_groups = [dict(group) for group in opt.param_groups]
    for one in (opt, twin):
        train(one, range(2, 4))
    assert_same(snapshot(opt, control=False), snapshot(twin, control=False))


def test_amsgrad_beside_masters(backend, device):
    opt = build(backend, device, "floats+8", amsgrad=True)
    train(opt, range(3))
    other = loaded(opt, backend, device, "floats+8", amsgrad=True)
    for one in (opt, other):
        train(one, range(3, 5))
    assert_same(snapshot(opt), snapshot(other))
    exported = opt.export_state_dict()["state"][0]
    assert exported.keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}


def test_what_is_exported_has_no_schedule(backend, device):
    opt = build(backend, device, "codes+8", schedule=Cosine(10, warmup_steps=2))
    train(opt, range(3))
    exported, plain = opt.export_state_dict(), torch.optim.AdamW([torch.zeros(1)]).param_groups[0].keys()
    assert [group["lr"] for group in exported["param_groups"]] == opt.read_lr()
    assert all(group.keys() <= plain for group in exported["param_groups"])
    with_torchs = build(backend, device, "codes+8")
    torch.optim.lr_scheduler.LambdaLR(with_torchs, lambda step: 0.5)
    assert with_torchs.export_state_dict()["param_groups"][0]["initial_lr"] == 0.02
