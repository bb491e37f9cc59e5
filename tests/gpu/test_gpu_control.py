"""GreedyLR on the GPU against its specification in Python floats, bit for bit, many observations per graph."""

import random

import pytest
import torch
from support.tensors import parameter

pytest.importorskip("transformers", reason="the module with the random cases needs it")

from support.oracle import COMPARED, Case, random_case, spec_trace, with_nonfinite  # noqa: E402

from greedylr_fused import FusedAdamW  # noqa: E402

#: Observations per graph, and replays per case: the traces are as long as the product.
BATCH, REPLAYS = 50, 8
CASES = {"cuda": 40, "cpu": 4}


def trace(machine, case):
    """LRs and counters after every observation, through `FusedAdamW.step`, read back once at the end."""
    device = machine.device
    groups = [{"params": [parameter(torch.zeros(3, device=device))], "lr": lr} for lr in case.lrs]
    opt = FusedAdamW(groups, schedule=case.config, backend=machine.backend)
    slots = [opt._control.slot(name) for name in COMPARED]
    losses = torch.tensor(case.losses, dtype=torch.float64, device=device).view(-1, BATCH)
    current = torch.empty_like(losses[0])
    rows = torch.empty(BATCH, len(case.lrs) + len(slots), dtype=torch.float64, device=device)

    def observe_all():
        for i in range(BATCH):
            opt.step(loss=current[i])
            torch.cat([opt._control.lr, torch.stack(slots)], out=rows[i])

    for group in groups:
        group["params"][0].grad = torch.zeros(3, device=device)
    current.copy_(losses[0])
    observe_all()  # eager
    found = [rows.clone()]
    run = observe_all
    if machine.on_gpu:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            observe_all()
        run = graph.replay
    for batch in losses[1:]:
        current.copy_(batch)
        run()
        found.append(rows.clone())
    return torch.cat(found).tolist()


def cases(seed, count, bad):
    rng = random.Random(seed)
    for _ in range(count):
        case = random_case(rng, BATCH * REPLAYS)
        yield Case(case.config, case.lrs, with_nonfinite(rng, case.losses)) if bad else case


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "with_nonfinite"])
def test_random_traces(machine, bad):
    changes, count = 0, CASES[machine.device.type]
    for case in cases(31 + bad, count, bad):
        got, want = trace(machine, case), spec_trace(case)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert a == b, f"observation {i} of {case.losses[max(0, i - 4) : i + 1]}: {a} != {b}; {case.config}"
        rates = [row[: len(case.lrs)] for row in want]
        changes += sum(a != b for a, b in zip(rates, rates[1:], strict=False))
    assert changes > count  # the traces go somewhere
