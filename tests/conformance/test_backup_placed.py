"""A backup and the tables that follow one another: what was kept stays, no more memory is taken than is stated."""

import weakref

import pytest
import torch
from support.backups import (
    CASES,
    F16,
    PUT_BACK,
    Trial,
    at_offset,
    numbers,
    of_layouts,
    params_of,
    train,
    with_copies,
)
from support.stored import STORAGES
from support.tensors import assert_same, assert_same_bits, bits, set_grad

from greedylr_fused.tensors import backup_bytes


def test_a_new_table_keeps_the_backup(backend, device):
    """A parameter gets its first gradient within a trial; then all go back, that one to its start."""
    opt = of_layouts(backend, device)
    params = params_of(opt)
    late, start = params[1], params[1].detach().clone()  # which is no flat memory
    late.requires_grad_(False)
    train_some = [param for param in params if param is not late]

    def step(number, of):
        for i, param in enumerate(of):
            set_grad(param, numbers(100 * number + i, *param.shape, dtype=param.dtype, device=param.device))
        opt.step()

    step(1, train_some)
    trial = Trial(opt)
    before, kept = trial.take(), {id(own) for _, own in trial.backup.table.pairs}
    step(2, train_some)
    late.requires_grad_(True)
    opt._engine.init_states(opt.param_groups, opt.state, of_all=True)
    trial.rebuild()
    assert kept < {id(own) for _, own in trial.backup.table.pairs}, "what was the same has moved"
    step(3, params)
    trial.run(PUT_BACK)
    found = trial.all()
    assert_same({name: found[name] for name in before}, before)
    assert_same_bits(late, start)
    own = opt.state[late]
    assert not own["exp_avg"].any() and not own["exp_avg_sq"].any() and float(own["step"]) == 0.0


def test_tensors_that_moved_go_back_to_their_values(backend, device):
    opt = with_copies(backend, device)
    train(opt, range(1, 3), skip=100)
    trial = Trial(opt)
    before = trial.take()
    train(opt, [3], skip=100)
    params, copies = params_of(opt), opt._engine.copies.of
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    params[1].data = at_offset(params[1].data, 1)
    params[2].data = params[2].data.contiguous()
    opt.state[params[1]]["exp_avg"] = at_offset(opt.state[params[1]]["exp_avg"], 3)
    halves = {param: copies[param] for param in params if param in copies} | {
        params[3]: torch.zeros_like(params[3], dtype=F16)  # instead of bfloat16
    }
    opt.keep_copies(halves.items())
    for param in params:
        param.grad = None
    trial.rebuild()
    train(opt, [4], skip=100)
    trial.run(PUT_BACK)
    found = trial.all()
    assert_same_bits(found.pop("copy 3"), before["param 3"].to(F16))
    before.pop("copy 3")
    assert_same(found, before)


@pytest.mark.parametrize("case", ["float32", "amsgrad", "layouts", "copies", *STORAGES])
def test_its_bytes_are_stated_and_no_more(backend, device, case):
    opt = CASES[case](backend, device)
    params = params_of(opt)
    stated = backup_bytes(opt.param_groups, opt._engine.state_dtype, opt._engine.copies.of)
    train(opt, range(1, 3), skip=100)
    trial = Trial(opt)
    tensors = [value for own in opt.state.values() for value in own.values()]
    tensors += [*params, *opt._engine.copies.of.values()]
    assert trial.backup.nbytes == stated == sum(bits(tensor).numel() for tensor in tensors)
    kept = [weakref.ref(own) for _, own in trial.backup.table.pairs]
    stored = [own().untyped_storage().nbytes() for own in kept]
    assert sum(stored) <= stated + 16 * len(stored)
    trial.rebuild()
    assert [own().untyped_storage().nbytes() for own in kept] == stored and trial.backup.nbytes == stated
    trial.backup.drop()
    assert trial.backup.table is None and trial.backup.nbytes == 0
    assert not any(own() is not None for own in kept)
