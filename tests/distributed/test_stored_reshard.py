"""Checkpoints of 8-bit moments and remainders: three ranks save, others load and go on to the bit of never stopping, or
have other storage than the file.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from resharding import END, SAVED, differences, load_sharded, save_sharded, seen
from storing import I8, optimizer, placed, plain, sharded, train_placed
from support.foreign_warnings import TYPED_STORAGE
from support.ranks import run
from test_checkpoint_reshard import FLAT, FULL, SPREAD, load_full, load_full_everywhere, save_full
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

BEFORE, AFTER = 3, (1, 2, 5)
pytestmark = TYPED_STORAGE
WAYS = {
    "sharded": (save_sharded, load_sharded),
    "flat": (lambda *of: save_sharded(*of, FLAT), lambda *of: load_sharded(*of, FLAT)),
    "full": (save_full, load_full),
    "everywhere": (None, lambda net, opt, path: load_full_everywhere(net, opt, path.with_name("full"))),
}


def train(net, opt, steps):
    for step in steps:
        net(step).backward()
        opt.step()
        opt.zero_grad()


def places(net, opt, wanted):
    return differences(seen(net, opt), wanted, dist.get_rank(), dist.get_world_size())


def save(rank, folder, wanted):
    net, opt = sharded()
    train(net, opt, range(SAVED))
    for way, (saving, _) in WAYS.items():
        if saving is not None:
            saving(net, opt, Path(folder) / way)
    train(net, opt, range(SAVED, END))
    assert places(net, opt, wanted[END]) == []


def load(rank, folder, wanted):
    for way, (_, loading) in WAYS.items():
        net, opt = sharded(seed=1)
        loading(net, opt, Path(folder) / way)
        assert places(net, opt, wanted[SAVED]) == [], way
        train(net, opt, range(SAVED, END))
        assert places(net, opt, wanted[END]) == [], way
        assert {value.dtype for own in opt.state.values() for value in own.values()} >= {I8, torch.uint8, torch.int16}


@pytest.fixture(scope="module")
def wanted():
    """One process that never stopped."""
    net, opt = plain()
    train(net, opt, range(SAVED))
    saved = seen(net, opt)
    train(net, opt, range(SAVED, END))
    return {SAVED: saved, END: seen(net, opt)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("saved")
    run(save, BEFORE, str(path), wanted)
    return str(path)


@pytest.mark.parametrize("world", AFTER)
def test_resumed_on_any_number_of_ranks_as_never_stopped(folder, wanted, world):
    run(load, world, folder, wanted)


def whole(net, opt):
    """float32 moments and masters, as one process has them."""
    exported = opt.export_state_dict()["state"]
    found = {}
    for i, (name, master) in enumerate(opt.master_weights().items()):
        moments = {key: exported[i][key].float() for key in ("exp_avg", "exp_avg_sq")}
        for key, value in {"master": master, **moments}.items():
            found[f"{name} {key}"] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def same(found, wanted, names):
    return [name for name in names if not torch.equal(found[name], wanted[name])]


def other_layout(rank, folder, wanted):
    """Where columns are no groups, moments are decoded, and encoded again where they are."""
    mesh = init_device_mesh("cpu", (4,))
    path = Path(folder) / "full"
    net, opt = placed(mesh, [Shard(1)], seed=1)
    load_full_everywhere(net, opt, path)
    assert opt.state[net.wide]["exp_avg"].dtype == torch.float32 and "exp_avg_q" in opt.state[net.cube]
    assert opt.state[net.wide]["remainder"].dtype == torch.int16
    assert same(whole(net, opt), wanted, wanted) == []
    again = get_optimizer_state_dict(net, opt, options=StateDictOptions(full_state_dict=True))
    rows, back = placed(mesh, [Shard(0)], seed=1)
    set_optimizer_state_dict(rows, back, again, options=StateDictOptions(full_state_dict=True))
    assert back.state[rows.wide]["exp_avg_q"].placements == (Shard(0),)
    assert back.state[rows.wide]["remainder"].dtype == I8
    found = whole(rows, back)
    assert same(found, wanted, [name for name in wanted if "master" not in name and "wide" not in name]) == []
    error = (found["wide exp_avg"] - wanted["wide exp_avg"]).abs().max() / wanted["wide exp_avg"].abs().max()
    assert error < 1e-5  # decoded and encoded again, which finds the same codes
    train_placed(rows, back, [SAVED])


@pytest.mark.filterwarnings("ignore:state_dtype=torch.int8. expected row-major parameters")
def test_another_layout_has_other_storage(folder):
    net, opt = plain(seed=1)
    load_plain(net, opt, Path(folder) / "full")
    run(other_layout, 4, folder, whole(net, opt))


def read_by_one(rank):
    """Rank 0 alone would have the moments that are stored otherwise in this optimizer."""
    mesh, options = init_device_mesh("cpu", (4,)), {"master_weights": None}
    (net, opt), (rows, other) = placed(mesh, [Shard(1)], **options), placed(mesh, [Shard(0)], **options)
    train_placed(rows, other, range(2))
    state = get_optimizer_state_dict(rows, other, options=FULL)
    if rank:
        set_optimizer_state_dict(net, opt, {}, options=SPREAD)
        return
    with pytest.raises(ValueError, match="leave broadcast_from_rank0 out and load the file on every rank"):
        set_optimizer_state_dict(net, opt, state, options=SPREAD)


@pytest.mark.filterwarnings("ignore:state_dtype=torch.int8. expected row-major parameters")
def test_other_storage_read_by_one_rank_is_refused():
    run(read_by_one, 4)


def load_plain(net, opt, path):
    state = torch.load(path, weights_only=True)
    net.load_state_dict(state["model"])
    names = {name: i for i, name in enumerate(dict(net.named_parameters()))}
    groups = [group | {"params": [names[name] for name in group["params"]]} for group in state["optim"]["param_groups"]]
    opt.load_state_dict(
        {"state": {names[name]: own for name, own in state["optim"]["state"].items()}, "param_groups": groups}
    )


def other_storage(rank, folder):
    """Files are read by the names and dtypes of the optimizer that loads; from there its state_dict goes anywhere."""
    path = Path(folder) / "torch"
    net, ours = sharded()
    torchs = torch.optim.AdamW(net.named_parameters(), lr=0.01)
    train(net, torchs, range(3))
    dcp.save({"optim": get_optimizer_state_dict(net, torchs)}, checkpoint_id=path)
    target = {"optim": get_optimizer_state_dict(net, ours)}
    with pytest.raises(dcp.CheckpointException, match="Missing key"):
        dcp.load(target, checkpoint_id=path)
    same_as_file = optimizer(net, state_dtype=None, master_weights=None)
    target = {"optim": get_optimizer_state_dict(net, same_as_file)}
    dcp.load(target, checkpoint_id=path)
    set_optimizer_state_dict(net, same_as_file, target["optim"])
    ours.load_state_dict(same_as_file.state_dict())
    for param in net.parameters():
        moment, own = torchs.state[param]["exp_avg"].to_local().float(), ours.state[param]
        assert float(own["step"]) == 3 and not own["remainder"].to_local().any()
        if "exp_avg_q" in own:
            assert own["exp_avg_q"].placements == own["exp_avg_scale"].placements == param.placements
            largest = moment.view(-1, 64).abs().amax(1)
            assert torch.equal(own["exp_avg_scale"].to_local().reshape(-1), largest)
    train(net, ours, [3])


def other_masters(rank, folder):
    """A remainder of 16 bits is not read into one of 8, whose bits mean something else."""
    (net, exact), (other, coarse) = sharded(master_weights="int16"), sharded()
    train(net, exact, range(3))
    path = Path(folder) / "exact"
    dcp.save({"optim": get_optimizer_state_dict(net, exact)}, checkpoint_id=path)
    target = {"optim": get_optimizer_state_dict(other, coarse)}
    with pytest.raises(dcp.CheckpointException, match="Size mismatch"):
        dcp.load(target, checkpoint_id=path)
    again = optimizer(net)
    again.load_state_dict(exact.state_dict())
    for master, theirs in zip(again.master_weights().values(), exact.master_weights().values(), strict=True):
        error = (master - theirs).to_local().abs() / theirs.to_local().abs()
        assert not error.numel() or error.max() <= 2.0**-15


@pytest.mark.parametrize("case", [other_storage, other_masters])
def test_a_file_of_other_storage(case, tmp_path):
    run(case, 2, str(tmp_path))
