"""ZeroRedundancyOptimizer copies its own parameter groups over those of the FusedAdamW in it before each step, and back
afterwards. What it copies may be old; it must not count as written by hand, and the schedule must come back through it.
"""

import copy
import io

import pytest
import torch
from lagging import install
from ranks import run
from torch.nn.parallel import DistributedDataParallel
from training import OPTIONS, network, samples, whole

from greedylr_fused import FusedAdamW

WORLD = 2
SAVED = 4  # the LR has just changed, which a mirror that lags does not show


def batches(count, rank):
    generator = torch.Generator().manual_seed(rank)
    for _ in range(count):
        x = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
        yield x, x.sum(2, keepdim=True)


def build():
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it was not imported before

    net = DistributedDataParallel(network())
    return net, ZeroRedundancyOptimizer(net.parameters(), optimizer_class=FusedAdamW, partitions=WORLD, **OPTIONS)


def train(net, opt, rank, steps, between=lambda opt: None):
    """The LR of each step, exactly."""
    found = []
    for step, (x, target) in enumerate(batches(max(steps) + 1, rank)):
        if step not in steps:
            continue
        between(opt)
        opt.zero_grad()
        loss = samples(net, x, target).mean()
        loss.backward()
        found.append(opt.optim.last_lr()[0])
        opt.step(loss=loss)
    return found


def read(opt):
    for _ in range(3):
        opt.optim.metrics()


def set_lr(opt):
    opt.optim.set_lr(0.02)


def write(opt):
    opt.param_groups[0]["lr"] = 0.02


def grow(opt):
    """Add a group, after a checkpoint: neither has changed the LR of the others."""
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]})


def save(net, opt, rank):
    """As in its documentation: collected on one rank, and through a file."""
    opt.consolidate_state_dict(to=0)
    file = io.BytesIO()
    if rank == 0:
        torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, file)
    shared = [file.getvalue()]
    torch.distributed.broadcast_object_list(shared)
    return shared[0]


def load(saved):
    net, opt = build()
    state = torch.load(io.BytesIO(saved), weights_only=True)
    net.load_state_dict(state["net"])
    opt.load_state_dict(state["opt"])
    return net, opt


def resumed(rank):
    net, opt = build()
    train(net, opt, rank, range(SAVED))
    saved = save(net, opt, rank)
    lrs = train(net, opt, rank, range(SAVED, 12))
    twin_net, twin = load(saved)
    twin_lrs = train(twin_net, twin, rank, range(SAVED, 12))
    control = opt.optim._control.numbers() == twin.optim._control.numbers()
    twin.optim.check_ranks_agree()
    same = [torch.equal(a, b) for a, b in zip(whole(net).values(), whole(twin_net).values(), strict=True)]
    return {"lrs": lrs, "twin": twin_lrs, "control": control, "same": same}


def rolled_back(rank):
    """To a state_dict that stayed in memory: its numbers must not have changed meanwhile."""
    net, opt = build()
    train(net, opt, rank, range(SAVED))
    for other in range(WORLD):
        opt.consolidate_state_dict(to=other)
        if other == rank:
            saved = opt.state_dict()
    parameters = {name: value.clone() for name, value in net.state_dict().items()}
    moments = copy.deepcopy(saved["state"])
    lrs = train(net, opt, rank, range(SAVED, 12))
    opt.consolidate_state_dict(to=0)
    net.load_state_dict(parameters)
    opt.load_state_dict(saved | {"state": moments})
    return lrs, train(net, opt, rank, range(SAVED, 12))


def cases(rank):
    found = {}
    for lagging in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if lagging:
                install(patch)
            own = found[lagging] = {}
            own["plain"] = train(*build(), rank, range(12))
            own["read"] = train(*build(), rank, range(12), read)
            for change in (write, set_lr):
                net, opt = build()
                first = train(net, opt, rank, range(SAVED))
                change(opt)
                own[change.__name__] = first + train(net, opt, rank, range(SAVED, 12))
            net, opt = build()
            first = train(net, opt, rank, range(SAVED))
            saved = save(net, opt, rank)
            grow(opt)
            own["grown"] = first + train(net, opt, rank, range(SAVED, 12))
            net, opt = load(saved)
            assert opt.optim.last_lr() != [0.02]
            set_lr(opt)
            own["loaded"] = first + train(net, opt, rank, range(SAVED, 12))
            own["resumed"], own["rolled_back"] = resumed(rank), rolled_back(rank)
    return found


@pytest.fixture(scope="module")
def ranks():
    return run(cases, WORLD)


@pytest.fixture(params=[False, True], ids=["shown at once", "shown later"])
def results(request, ranks):
    """Of each rank. On a GPU the groups show an LR later than it is decided."""
    return [rank[request.param] for rank in ranks]


@pytest.fixture
def wanted(ranks):
    lrs = ranks[0][False]["plain"]
    assert len(set(lrs)) > 4
    return lrs


def test_what_it_copies_back_is_not_written(results, wanted):
    for rank in results:
        assert rank["plain"] == wanted
        assert rank["read"] == wanted, "metrics() refreshes the inner groups, not those that are copied over them"
        assert rank["grown"] == wanted, "neither does a new group count as new LRs of the others"


def test_what_is_written_counts(results, wanted):
    for rank in results:
        for name in ("write", "set_lr"):
            assert rank[name][:SAVED] == wanted[:SAVED] and rank[name][-1] < wanted[-1], name
        assert rank["set_lr"][SAVED] == 0.02 < wanted[SAVED]
        assert rank["loaded"] == rank["set_lr"], "a checkpoint that was loaded is not loaded again"
        after = SAVED + 1  # until it steps, the optimizer inside knows nothing of what is written outside
        assert rank["write"][after:] == rank["set_lr"][after:] == results[0]["write"][after:]


def test_the_schedule_comes_back_from_a_consolidated_checkpoint(results, wanted):
    for rank in results:
        found = rank["resumed"]
        assert found["lrs"] == found["twin"] == wanted[SAVED:]
        assert found["control"] and all(found["same"])


def test_the_schedule_comes_back_from_a_state_dict_in_memory(results, wanted):
    for rank in results:
        lrs, again = rank["rolled_back"]
        assert lrs == again == wanted[SAVED:]
