"""Float32 masters that leave an optimizer and come back, and the memory that states take."""

import pytest
import torch
from support.stored import BF16, F32, I8, STORAGES, STORED, build, params_of, train, values
from support.tensors import assert_same, assert_same_bits, parameter, set_grad, snapshot

from greedylr_fused import FusedAdamW
from greedylr_fused.tensors import masters


@pytest.mark.parametrize("storage", STORED)
def test_masters_leave_and_come_back_to_the_bit(backend, device, storage):
    """In place, so that captured graphs go on with them."""
    opt = build(backend, device, storage)
    train(opt, range(3))
    kept, before = opt.master_weights(), snapshot(opt)
    assert list(kept) == [0, 1, 2, 3] and {value.dtype for value in kept.values()} == {F32}
    for i, param in enumerate(params_of(opt)):
        if "remainder" in opt.state[param]:
            assert_same_bits(kept[i], masters.join(param.detach(), opt.state[param]["remainder"]))
            assert not torch.equal(kept[i], param.float())
        else:
            assert_same_bits(kept[i], param.detach().float())
    memory = [t.data_ptr() for p in params_of(opt) for t in (p, *opt.state[p].values())]
    table = opt._engine.table
    opt.load_master_weights([torch.zeros_like(value) for value in kept.values()])
    assert not any(value.any() for value in opt.master_weights().values())
    opt.load_master_weights(kept)
    assert_same(snapshot(opt), before)
    train(opt, [3])
    assert [t.data_ptr() for p in params_of(opt) for t in (p, *opt.state[p].values())] == memory
    assert opt._engine.table is table


@pytest.mark.parametrize("storage", ["floats+16", "codes+16"])
def test_a_run_that_starts_from_float32_weights_is_the_float32_run(backend, device, storage):
    """Given the same gradients, masters of 16 bits more take the steps that float32 parameters take."""
    opt, named = build(backend, device, storage), values(7)
    opt.load_master_weights(iter(named))
    assert all(float(own["step"]) == 0.0 for own in opt.state.values()) and len(opt.state) == len(named)
    floats = build(backend, device, "codes", named, state_dtype=STORAGES[storage][1])
    assert_same(dict(enumerate(opt.master_weights().values())), dict(enumerate(floats.master_weights().values())))
    for step in range(4):
        for o in (opt, floats):
            for param, grad in zip(params_of(o), values(100 + step), strict=True):
                set_grad(param, grad.to(device))
            o.step()
    assert_same(opt.master_weights(), floats.master_weights())


def test_masters_by_the_names_of_parameters(backend, device):
    model = torch.nn.Linear(64, 64).to(device, BF16)
    wanted = {name: torch.randn_like(param, dtype=F32) for name, param in model.named_parameters()}
    opt = FusedAdamW(model.named_parameters(), backend=backend, state_dtype=I8, master_weights="int8")
    opt.load_master_weights(wanted.items())
    found = opt.master_weights()
    assert found.keys() == wanted.keys()
    assert_same_bits(found["bias"], wanted["bias"])  # in 16 bits, as ever outside the rule for 8
    error = (found["weight"] - wanted["weight"]).abs() / wanted["weight"].abs()
    assert 0 < error.max() <= 2.0**-16  # of 24 bits with sign and exponent the mantissa has 15, and one is implied


def test_autograd_and_copies_see_masters_that_are_loaded(backend, device):
    param = parameter(torch.ones(64, 64, device=device))
    half = torch.zeros(64, 64, dtype=BF16, device=device)
    opt = FusedAdamW([param], backend=backend, state_dtype=I8)
    opt.keep_copies([(param, half)])
    squares = (param * param).sum()
    opt.load_master_weights([torch.full((64, 64), 3.0, device=device)])
    assert (half == 3).all() and not opt.state
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize("storage", [*STORED, "amsgrad"])
def test_memory_is_known_before_the_first_step(backend, device, storage):
    options = {"amsgrad": True} if storage == "amsgrad" else {}
    storage = "floats+8" if options else storage
    opt = build(backend, device, storage, **options)
    found = opt.memory()
    assert not opt.state
    train(opt, [1])
    states = [{name: t for name, t in own.items() if name != "step"} for own in opt.state.values()]
    sizes = {name: sum(own[name].nbytes for own in states if name in own) for own in states for name in own}
    assert found.remainders == sizes.pop("remainder", 0) and found.moments == sum(sizes.values())
    assert found.parameters == sum(p.nbytes for p in params_of(opt)) == found.gradients
    assert found.total == found.parameters * 2 + found.moments + found.remainders
    assert found.elements == sum(p.numel() for p in params_of(opt)) and opt.memory() == found
    assert build(backend, torch.device("meta"), storage, **options).memory() == found


def test_memory_is_shown_by_element():
    opt = FusedAdamW([parameter(torch.zeros(64, 64, dtype=BF16))], state_dtype=I8, master_weights="int16")
    shown = repr(opt.memory())
    assert shown.startswith("Memory(0.03328 MB for 4,096 elements, 8.125 bytes each: 2 parameters, 2 gradients, ")
    assert shown.endswith("2.125 moments, 2 remainders)")
