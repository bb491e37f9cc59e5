"""Two optimizers in the same state: one that is to refuse a checkpoint, and one that is left alone."""

import copy

import pytest
import torch

from greedylr_fused import FusedAdamW, GreedyLR
from support.tensors import assert_same, generator, parameter, snapshot, spread
from support.tensors import train as stepped

SCHEDULE = GreedyLR(patience=1, factor=0.7, smooth=True, window_size=4)
LOSSES = [3.0, 2.5, 2.7, 2.1, 2.0, 2.6, 2.9]
SIZES = (5, 3, 1)


def build(backend, device, schedule=SCHEDULE, **options):
    params = [parameter(spread(generator(n), n, -1, 0).to(device, torch.float32)) for n in SIZES]
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "lr": 0.01}]
    return FusedAdamW(groups, schedule=schedule, max_grad_norm=1.0, amsgrad=True, backend=backend, **options)


def train(opt, steps):
    device = opt.param_groups[0]["params"][0].device
    rows = [[spread(generator(9 * s + n), n, -2, 0).to(device, torch.float32) for n in SIZES] for s in steps]
    stepped(opt, rows, [LOSSES[s] for s in steps])


def groups(opt):
    return [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]


class Twins:
    """An optimizer that is to refuse, and one that is left alone."""

    def __init__(self, backend, device, **options):
        self.opt, self.twin = (build(backend, device, **options) for _ in range(2))
        for opt in (self.opt, self.twin):
            train(opt, range(4))
        self.saved = copy.deepcopy(self.opt.state_dict())
        for opt in (self.opt, self.twin):
            train(opt, range(4, 6))
            opt.observe(1.0, 2.0)
        self.table = self.opt._engine.table

    def refuse(self, loaded, error, match):
        with pytest.raises(error, match=match):
            self.opt.load_state_dict(loaded)
        self.check()

    def check(self):
        assert self.opt._engine.table is self.table
        assert groups(self.opt) == groups(self.twin) and self.opt._control.bounds == self.twin._control.bounds
        assert_same(snapshot(self.opt), snapshot(self.twin))
        for opt in (self.opt, self.twin):
            opt.step()
            opt.observe(3.0)
        assert_same(snapshot(self.opt), snapshot(self.twin))
        assert self.opt._engine.table is self.table and self.opt.read_lr() == self.twin.read_lr()
