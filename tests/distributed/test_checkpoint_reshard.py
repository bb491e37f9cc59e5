"""torch.distributed.checkpoint: FSDP2 on N ranks saves, on M ranks loads and goes on, to the bit of never stopping."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from resharding import (
    END,
    SAVED,
    VARIANTS,
    differences,
    load_sharded,
    reference,
    save_sharded,
    seen,
    sharded,
    train,
)
from support.foreign_warnings import TYPED_STORAGE
from support.ranks import run
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

WORLDS = (1, 2, 3, 4)
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
pytestmark = TYPED_STORAGE


def save_full(net, opt, path):
    state = {
        "model": get_model_state_dict(net, options=FULL),
        "optim": get_optimizer_state_dict(net, opt, options=FULL),
    }
    if dist.get_rank() == 0:
        torch.save(state, path)


def load_full(net, opt, path):
    """Read by rank 0 alone."""
    state = torch.load(path, weights_only=True) if dist.get_rank() == 0 else {"model": {}, "optim": {}}
    set_model_state_dict(net, state["model"], options=SPREAD)
    set_optimizer_state_dict(net, opt, state["optim"], options=SPREAD)


def load_full_everywhere(net, opt, path):
    state, options = torch.load(path, weights_only=True), StateDictOptions(full_state_dict=True)
    set_model_state_dict(net, state["model"], options=options)
    set_optimizer_state_dict(net, opt, state["optim"], options=options)


#: name: how it is saved, how it is loaded, and of each variant by which ranks: by `M - N` more, modulo 4.
WAYS = {
    "sharded": (save_sharded, load_sharded, {"float32": (0, 1, 2, 3), "bfloat16": (0, 1, 2, 3), "plain": (1,)}),
    "flat": (
        lambda net, opt, path: save_sharded(net, opt, path, FLAT),
        lambda net, opt, path: load_sharded(net, opt, path, FLAT),
        {"float32": (2,), "plain": (3,)},
    ),
    "full": (save_full, load_full, {"float32": (0, 1), "bfloat16": (3,)}),
    "everywhere": (save_full, load_full_everywhere, {"float32": (3,)}),
}


def places(net, opt, wanted):
    return differences(seen(net, opt), wanted, dist.get_rank(), dist.get_world_size())


def save(rank, folder, wanted):
    for variant in VARIANTS:
        net, opt = sharded(variant)
        train(net, opt, range(SAVED))
        for way, (saving, _, variants) in WAYS.items():
            if variant in variants:
                saving(net, opt, Path(folder) / f"{dist.get_world_size()} {variant} {way}")
        train(net, opt, range(SAVED, END))
        assert places(net, opt, wanted[variant, END]) == [], variant


def load(rank, folder, wanted):
    """Each is as in the run that never stopped, after loading and at the end."""
    loaded = 0
    for way, (_, loading, variants) in WAYS.items():
        for variant, further in variants.items():
            for before in WORLDS:
                if (dist.get_world_size() - before) % 4 not in further:
                    continue
                net, opt = sharded(variant, seed=1)
                loading(net, opt, Path(folder) / f"{before} {variant} {way}")
                assert places(net, opt, wanted[variant, SAVED]) == [], (variant, way, before)
                train(net, opt, range(SAVED, END))
                opt.check_ranks_agree()
                assert places(net, opt, wanted[variant, END]) == [], (variant, way, before)
                loaded += 1
    assert loaded == 15


@pytest.fixture(scope="module")
def wanted():
    return {(variant, end): reference(variant, end) for variant in VARIANTS for end in (SAVED, END)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("saved")
    for world in WORLDS:
        run(save, world, str(path), wanted)
    return str(path)


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_on_any_number_of_ranks_as_never_stopped(folder, wanted, world):
    run(load, world, folder, wanted)
