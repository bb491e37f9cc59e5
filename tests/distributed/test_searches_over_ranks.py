"""A level search over two ranks: one decision from the losses of both, and each rank puts back what it has."""

import pytest
import torch
from storing import I8, network, train_placed, unlike
from support.searches import golden
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from greedylr_fused import FusedAdamW
from greedylr_fused.schedules import Backup

WORLD = 2
CASE = "climb, the first try fails"
MIXES = {"floats": {}, "codes and masters": dict(state_dtype=I8, master_weights="int8")}


def parts(opt):
    """All that a trial may change, of this rank."""
    found = []
    for param in (p for group in opt.param_groups for p in group["params"]):
        values = [param.detach(), *opt.state[param].values()]
        found += [(value.to_local() if isinstance(value, DTensor) else value).clone() for value in values]
    return found


def over_ranks(rank, mix):
    """Beside one process, which has the mean of both losses."""
    case, taken, actions = golden()[CASE], None, []
    nets = [fully_shard(network()), network()]
    options = dict(lr=0.01, schedule=case["config"]) | MIXES[mix]
    opts = [FusedAdamW(net.parameters(), **options) for net in nets]
    for number, loss in enumerate(case["losses"][:60]):
        for apart, net, opt in zip(((0.25, -0.25)[rank], 0.0), nets, opts, strict=True):
            train_placed(net, opt, [number], loss=loss + apart)
        ours, alone = (opt._control.slot("backup").item() for opt in opts)
        assert ours == alone and opts[0].read_lr() == opts[1].read_lr()
        opts[0].check_ranks_agree()
        if ours == Backup.TAKE:
            taken = parts(opts[0])
        if ours == Backup.PUT_BACK:
            assert all(map(torch.equal, parts(opts[0]), taken))
        actions.append(ours)
    assert unlike(*zip(nets, opts, strict=True)) == [] and {*actions} == {*Backup}


@pytest.mark.parametrize("mix", MIXES)
def test_ranks_decide_and_go_back_together(ranks, mix):
    ranks(over_ranks, mix)
