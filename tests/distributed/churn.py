"""Parameters and gradients of which nothing stays as it is from step to step, alike on every rank where it must be."""

import random

import torch
from support.tensors import generator
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

SHAPES = ((3,), (130,), (5, 3), (4,))
#: DTensors by their shape; other shapes are plain replicas. Two ranks cannot share 5 rows evenly.
PLACEMENTS = {(5, 3): [Shard(0)], (4,): [Replicate()]}
KINDS = ("new", "new", "in place", "gaps", "gone", "freed", "bfloat16", "frozen")


class Churn:
    """What happens is drawn from numbers that all ranks share; where it lies in memory, and what is in a shard, is not.

    Attributes:
        params: all of them, in the order of the optimizer.
        taken: by parameter, how many steps it must have taken.
        skipped: how many steps must have been skipped.
    """

    def __init__(self, rank, mesh, seed):
        self.rank, self.mesh = rank, mesh
        self.shared, self.own = random.Random(seed), random.Random(f"{seed} {rank}")
        self.numbers, self.own_numbers = generator(seed), generator(1000 * (rank + 1) + seed)
        self.garbage, self.taken, self.skipped, self.params, self._spoilt = [], {}, 0, [], None
        for shape in SHAPES:
            self.add(shape)

    def add(self, shape):
        value = torch.randn(shape, generator=self.numbers)
        if placements := PLACEMENTS.get(shape):
            value = distribute_tensor(value, self.mesh, placements)
        self.params.append(torch.nn.Parameter(value))
        self.taken[self.params[-1]] = 0
        return self.params[-1]

    def change(self):
        """Before a step: other gradients, or none, or a parameter that is frozen; a NaN on one rank now and then."""
        for param in self.params:
            self._change(param, self.shared.choice(KINDS))
        with_gradient = [param for param in self.params if param.grad is not None]
        skips = bool(with_gradient) and self.shared.random() < 0.02
        if skips and self.shared.randrange(self.mesh.size()) == self.rank:
            local(with_gradient[0].grad).view(-1)[0] = float("nan")
        self.skipped, self._spoilt = self.skipped + skips, with_gradient[0] if skips else None
        for param in with_gradient:
            self.taken[param] += not skips

    def settle(self):
        """Before a step: every parameter takes part in it, with a gradient like all."""
        self.garbage = []
        for param in self.params:
            self._change(param, "new")
            self.taken[param] += 1

    def alike(self, opt):
        """All parameters and moments that every rank holds."""
        params = [param for param in self.params if local(param).shape == param.shape]
        moments = [opt.state[p][name] for p in params if p in opt.state for name in ("exp_avg", "exp_avg_sq")]
        return [*params, *moments]

    def _change(self, param, kind):
        param.requires_grad_(kind != "frozen")
        if kind in ("frozen", "gone"):
            param.grad = None
        elif kind == "in place" and param.grad is not None and param is not self._spoilt:
            param.grad.mul_(0.5)
        else:
            if kind == "freed":  # what comes after may lie where the old gradient lay, or something else does
                param.grad = None
                self.garbage = [torch.empty(self.own.randrange(1, 200)) for _ in range(3)]
            narrow = kind == "bfloat16" and not isinstance(param, DTensor)
            self._put(param, torch.bfloat16 if narrow else torch.float32, gaps=kind == "gaps")

    def _put(self, param, dtype, gaps):
        part = local(param)
        numbers = self.numbers if part.shape == param.shape else self.own_numbers
        grad = torch.randn(*part.shape, 1 + gaps, generator=numbers).to(dtype)[..., 0]
        if isinstance(param, DTensor):
            grad = DTensor.from_local(grad, self.mesh, param.placements, shape=param.shape, stride=param.stride())
        elif hasattr(param, "grad_dtype"):
            param.grad = None
            param.grad_dtype = dtype
        else:  # before PyTorch 2.10 every gradient is of its parameter's dtype
            grad = grad.float()
        param.grad = grad


def local(tensor):
    """The part on this rank."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
