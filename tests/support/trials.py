"""Trainings whose losses are written down, so that a level search decides what the test wants; and the same training by
hand: a plain AdamW whose LR the specification says, with copies of all it changes, taken and put back as that says.
"""

import torch

from greedylr_fused import FusedAdamW
from greedylr_fused.schedules import Backup, SearchSpec
from support.searches import take
from support.tensors import generator, parameter, set_grad, snapshot

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8
LRS = (0.02, 0.003)
#: Options of the optimizer, dtype of its parameters.
STORAGES = {
    "floats": (dict(max_grad_norm=1.0), F32),
    "amsgrad": (dict(amsgrad=True), F32),
    "codes and masters": (dict(state_dtype=I8, master_weights="int16"), BF16),
    "halves": ({}, BF16),
}
#: In 8 bits is the first, where anything is; the second is not flat.
SHAPES = ((64, 64), (2, 3, 4, 5), (7,))


def params(device, dtype=F32):
    found = [torch.randn(shape, generator=generator(i)).to(device, dtype) for i, shape in enumerate(SHAPES)]
    found[1] = torch.stack([found[1], found[1]], -1)[..., 0]
    return [parameter(value) for value in found]


def groups(found):
    return [{"params": found[:2], "lr": LRS[0]}, {"params": found[2:], "lr": LRS[1]}]


def copies(opt):
    """What `keep_copies` keeps, by name."""
    return {f"copy {i}": copy.detach().clone() for i, copy in enumerate(opt._engine.copies.of.values())}


def everything(opt):
    """All that a trial may change, by name, but the control vector."""
    return snapshot(opt, control=False) | copies(opt)


class Training:
    """Steps with given losses and gradients, by a search or, of the same steps, by hand.

    Args:
        opt: with two groups of the LRs `LRS`, with the search as its schedule or with none.
        config: the search, if it is to be by hand.
    """

    def __init__(self, opt, config=None):
        self.opt, self.number = opt, 0
        self.spec = None if config is None else SearchSpec(config)
        self._kept = None

    def params(self):
        return [param for group in self.opt.param_groups for param in group["params"]]

    def step(self, loss, without=()):
        """One step; None for a loss that is skipped, for its gradients; parameters with these indices have none."""
        for i, (param, grad) in enumerate(zip(self.params(), self.gradients(loss), strict=True)):
            set_grad(param, None if i in without else grad)
        if self.spec is None:
            self.opt.step(loss=1.0 if loss is None else loss)
        else:
            self._by_hand(loss)

    def gradients(self, loss):
        """Those of the next step."""
        scale = torch.nan if loss is None else 1.0
        made = [torch.randn(p.shape, generator=generator(1000 * self.number + i)) for i, p in enumerate(self.params())]
        self.number += 1
        return [scale * grad.to(param.device, param.dtype) for param, grad in zip(self.params(), made, strict=True)]

    def _by_hand(self, loss):
        spec = self.spec
        curve = spec.config.base.curve()
        for group, lr in zip(self.opt.param_groups, LRS, strict=True):
            group["lr"] = lr * spec.multiplier * curve[min(spec.step, len(curve) - 1)]
        self.opt.step()
        take(spec, loss)
        if spec.backup is Backup.TAKE:
            self._kept = [(tensor, tensor.detach().clone()) for tensor in self._live()]
        if spec.backup is Backup.PUT_BACK:
            with torch.no_grad():
                for tensor, values in self._kept:
                    tensor.copy_(values)

    def _live(self):
        states = [value for own in self.opt.state.values() for value in own.values()]
        return [*self.params(), *states, *self.opt._engine.copies.of.values()]


def pair(config, backend, device, storage="floats", *, copied=False, **more):
    """A search and the same training by hand."""
    options, dtype = STORAGES[storage]
    found = []
    for schedule in (config, None):
        own = params(device, dtype)
        options = dict(skip_nonfinite=True, backend=backend) | options | more
        opt = FusedAdamW(groups(own), schedule=schedule, **options)
        if copied:
            opt.keep_copies([(param, torch.empty_like(param, dtype=BF16)) for param in own])
        found.append(Training(opt, None if schedule else config))
    return found
