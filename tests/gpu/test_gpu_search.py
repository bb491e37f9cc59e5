"""A level search whose steps are replays of a graph: the bits of a training by hand, copied here or to the host."""

from dataclasses import replace

import pytest
import torch
from support.searches import golden
from support.tensors import assert_same
from support.trials import everything, pair

from greedylr_fused.schedules import Backup


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("name", ["climb, a skipped step", "adalrs, not finite"])
def test_replays_make_the_whole_search(machine, name, where):
    case = golden()[name]
    config, losses = replace(case["config"], snapshot=where), case["losses"]
    ours, by_hand = pair(config, machine.backend, machine.device)
    for loss in losses[:3]:
        for training in (ours, by_hand):
            training.step(loss)
    given = torch.empty((), dtype=torch.float64, device=machine.device)
    ours.opt.step(loss=given.fill_(losses[3]))  # compiles what reads it there
    by_hand.number -= 1
    by_hand.step(losses[3])
    ours.number = by_hand.number
    run = step = lambda: ours.opt.step(loss=given)
    if machine.on_gpu:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    slot, actions = ours.opt._control.slot("backup"), set()
    for loss in losses[4:100]:
        for param, grad in zip(ours.params(), ours.gradients(loss), strict=True):
            param.grad.copy_(grad)
        given.fill_(1.0 if loss is None else loss)
        with machine.refusing_to_wait():
            run()
        by_hand.step(loss)
        assert_same(everything(ours.opt), everything(by_hand.opt))
        actions.add(float(slot))
    assert actions == {*Backup} and machine.metrics(ours.opt).phase == "frozen"
