"""A backup of DTensors: each rank keeps its part and goes back to it, whatever it has of each parameter."""

import pytest
from storing import I8, network, train_placed
from support.backups import NOTHING, PUT_BACK, TAKE, Trial
from support.tensors import same_bits
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from greedylr_fused import FusedAdamW

WORLD = 2
MIXES = {"floats": {}, "codes and masters": dict(state_dtype=I8, master_weights="int8")}


def parts(trial):
    """The parts that lie here."""
    found = trial.all()
    assert any(isinstance(value, DTensor) for value in found.values())
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in found.items()}


def there_and_back(rank, options):
    net = fully_shard(network())
    opt = FusedAdamW(net.parameters(), lr=0.01, **options)
    train_placed(net, opt, range(2))
    trial = Trial(opt)
    assert trial.backup.nbytes == sum(value.nbytes for value in parts(trial).values())
    before = parts(trial)
    trial.run(TAKE)
    train_placed(net, opt, range(2, 4))
    trial.run(NOTHING)
    after = parts(trial)
    assert not any(same_bits(after[name], before[name]) for name in before if name.startswith(("param", "step")))
    trial.run(PUT_BACK)
    assert [name for name, value in parts(trial).items() if not same_bits(value, before[name])] == []
    train_placed(net, opt, range(2, 4))
    assert [name for name, value in parts(trial).items() if not same_bits(value, after[name])] == []


@pytest.mark.parametrize("mix", MIXES)
def test_each_part_comes_back(ranks, mix):
    ranks(there_and_back, MIXES[mix])
