"""Every block of docs/distributed.md runs, on several ranks, after the first, which all of them start with."""

import re
from pathlib import Path

import torch
import torch.distributed as dist
from support.foreign_warnings import FSDP1, FSDP2_VIEW, TYPED_STORAGE
from support.ranks import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
TEXT = PAGE.read_text()
BLOCKS = [
    (TEXT[: found.start()].count("\n") + 2, found[1])
    for found in re.finditer(r"^```python\n(.*?)^```", TEXT, re.S | re.M)
]
pytestmark = [FSDP1, TYPED_STORAGE, FSDP2_VIEW]


def execute(rank, blocks):
    """Run blocks one after the other, in fresh names each, after the first; returns what their optimizers say."""
    dist.init_process_group, original = lambda *_: None, dist.init_process_group  # the harness has done it
    found = []
    for line, source in blocks:
        names = {"__name__": "page"}
        for at, text in (BLOCKS[0], (line, source)):
            exec(compile("\n" * (at - 1) + text, str(PAGE), "exec"), names)  # errors show the page's line
        opt = getattr(names["opt"], "optim", names["opt"])  # ZeroRedundancyOptimizer's own
        opt.check_ranks_agree()
        metrics = names.get("fresh", opt).metrics()
        found.append((line, metrics.step, metrics.grad_norm, opt._engine.ranks.size))
    dist.init_process_group = original
    return found


def test_blocks_run():
    ranks = run(execute, 4, BLOCKS[1:])
    assert all(found == ranks[0] for found in ranks)
    assert len(ranks[0]) == len(BLOCKS) - 1 >= 9
    for line, step, norm, size in ranks[0]:
        assert step == {"observe": 1, "fresh": 6}.get(kind(line), 3), line
        assert torch.isfinite(torch.tensor(norm)) and size == 4, line


def kind(line):
    source = dict(BLOCKS)[line]
    return next((word for word in ("observe", "fresh") if word in source), "")
