"""A backup of parameters and states, taken and put back on the device as the slot says: every bit, and nothing else."""

import pytest
import torch
from support.backups import (
    BF16,
    CASES,
    NOTHING,
    PUT_BACK,
    TAKE,
    Trial,
    numbers,
    of_layouts,
    of_sizes,
    params_of,
    poison,
    rooms,
    train,
    with_copies,
)
from support.host_reads import no_host_read
from support.tensors import assert_same, parameter, same_bits

from greedylr_fused import FusedAdamW
from greedylr_fused.tensors import Backup, BackupTable


@pytest.mark.parametrize("case", CASES)
def test_every_bit_comes_back(backend, device, case):
    opt = CASES[case](backend, device)
    train(opt, range(1, 3))
    trial = Trial(opt)
    before = trial.take()
    train(opt, range(3, 5))
    after = trial.all()
    for name in before:
        changed = before[name].numel() > 0 and name.split()[0] in ("param", "step", "copy")
        assert not (changed and same_bits(before[name], after[name])), f"{name} would come back without a copy"
    trial.run(PUT_BACK)
    assert_same(trial.all(), before)
    train(opt, range(3, 5))
    assert_same(trial.all(), after)


@pytest.mark.parametrize("where", ["device", "host"])
def test_without_being_asked_nothing_is_touched(backend, device, where):
    opt = with_copies(backend, device)
    train(opt, range(1, 3))
    trial = Trial(opt, where)
    memory, before = poison(trial.backup), trial.all()
    trial.run(NOTHING)
    assert_same(trial.all(), before)
    assert all(map(torch.equal, rooms(trial.backup), memory))
    train(opt, range(3, 4))
    before = trial.take()
    train(opt, range(4, 5))
    trial.run(PUT_BACK)
    assert_same(trial.all(), before)


@pytest.mark.parametrize("build", [of_layouts, with_copies])
def test_the_last_one_that_was_taken_counts(backend, device, build):
    opt = build(backend, device)
    train(opt, range(1, 3))
    trial = Trial(opt)
    for step in range(3, 5):
        train(opt, [step])
        before = trial.take()
    for step in range(5, 7):
        train(opt, [step])
        trial.run(PUT_BACK)
        assert_same(trial.all(), before)


def test_nothing_beside_the_tensors_is_written(backend, device):
    """Views at every offset of one memory, between bytes that must stay; and memory on each side of what is kept."""
    flat = torch.full((40 * 64,), 7.0, dtype=BF16, device=device)
    views = [flat[i * 64 + i : i * 64 + 2 * i + 9] for i in range(20)]
    params = [parameter(view.fill_(1.0)) for view in views]
    opt = FusedAdamW(params, lr=0.01, backend=backend)
    train(opt, range(1, 3), skip=100)
    trial = Trial(opt)
    memory = poison(trial.backup)
    trial.run(TAKE)
    for (_, own), new, old in zip(trial.backup.table.pairs, rooms(trial.backup), memory, strict=True):
        begin = own.data_ptr() - own.untyped_storage().data_ptr()
        changed = torch.nonzero(new != old).reshape(-1)
        assert changed.numel() and begin <= changed[0] and changed[-1] < begin + own.nbytes
    train(opt, [3], skip=100)
    trial.run(PUT_BACK)
    assert int((flat == 7.0).sum()) == flat.numel() - sum(view.numel() for view in views)


@pytest.mark.parametrize("apart", [1, 2, 4, 8, 15])
def test_memory_that_lies_otherwise(backend, device, apart):
    """Kept memory that is no multiple of 16 bytes away from what lives, as it is never placed, but might be."""
    opt = FusedAdamW([parameter(numbers(1, 70, device=device))], lr=0.01, backend=backend)
    train(opt, [1])
    trial = Trial(opt)
    live = [torch.arange(n, dtype=torch.uint8, device=device) for n in (100, 33, 16, 3, 0)]
    spaces = [torch.zeros(n.numel() + 32, dtype=torch.uint8, device=device) for n in live]
    kept = [room[apart : apart + own.numel()] for room, own in zip(spaces, live, strict=True)]
    trial.backup.table = BackupTable([(own, None) for own in live], kept, [], opt._engine.table)
    trial.run(TAKE)
    for own, room in zip(live, spaces, strict=True):
        end = apart + own.numel()
        assert torch.equal(room[apart:end], own) and not room[:apart].any() and not room[end:].any()
        room += 1
    trial.run(PUT_BACK)
    assert all(own.tolist() == list(range(1, own.numel() + 1)) for own in live)


def test_no_host_read(backend, device, monkeypatch):
    opt = with_copies(backend, device)
    train(opt, range(1, 3))
    trial = Trial(opt)
    trial.run(TAKE)  # compiles what is compiled at the first call
    with no_host_read(monkeypatch, [opt._control.vector, *(own for _, own in trial.backup.table.pairs)]):
        for action in (NOTHING, TAKE, PUT_BACK):
            trial.run(action)


def test_several_threads_copy_all(backend, device):
    if backend != "cpu":
        pytest.skip("the others have threads of their own")
    opt = FusedAdamW([parameter(numbers(n, n)) for n in (3_000_000, 5)], lr=0.01, backend=backend)
    train(opt, [1])
    trial = Trial(opt)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        before = trial.take()
        train(opt, [2])
        trial.run(PUT_BACK)
    finally:
        torch.set_num_threads(threads)
    assert_same(trial.all(), before)


def test_autograd_is_told(backend, device):
    opt = of_sizes(backend, device)
    train(opt, range(1, 3))
    trial = Trial(opt)
    params = params_of(opt)
    loss = sum((param * param).sum() for param in params)
    for param in params:
        param.grad = None
    trial.run(PUT_BACK)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_table_of_nothing(backend, device):
    opt = FusedAdamW([parameter(numbers(1, 0, device=device))], lr=0.01, backend=backend)
    train(opt, [1])
    trial = Trial(opt)
    trial.backup.table = BackupTable([], [], [], opt._engine.table)
    for action in (TAKE, PUT_BACK):
        trial.run(action)


def test_where(backend, device):
    with pytest.raises(ValueError, match='expected where="device" or "host", got \'disk\'; choose one of them'):
        Backup("disk")
