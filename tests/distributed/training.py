"""A small network trained for 50 steps: by one process on the whole batch, or by one rank of an engine on its share.

Rounding is the only difference that is allowed between the two. So everything is in float64, and losses keep a margin
at each decision of the schedule, which makes the LR the same to the bit.
"""

import contextlib

import torch

from greedylr_fused import FusedAdamW, GreedyLR

STEPS, BATCH, LENGTH = 50, 20, 12
SCHEDULE = GreedyLR(patience=1, factor=0.7, smooth=True, window_size=3)
#: Clips in some steps, not in all.
MAX_GRAD_NORM = 1.0
OPTIONS = dict(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, schedule=SCHEDULE, max_grad_norm=MAX_GRAD_NORM)


class Net(torch.nn.Module):
    """A block as in a transformer, in sizes that 2, 3 and 4 ranks cannot share evenly; some get nothing of `head`."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(4, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.up = torch.nn.Linear(6, 12)
        self.down = torch.nn.Linear(12, 6)
        self.head = torch.nn.Linear(6, 1)

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        h = h + self.down(torch.tanh(self.up(self.norm(h))))
        return self.head(h)


def network():
    torch.manual_seed(3)
    return Net().double()


def batches():
    """`(x, target)` of each step, float64 [BATCH, LENGTH, 4] and [BATCH, LENGTH, 1]; the last targets lead away."""
    generator = torch.Generator().manual_seed(7)
    for step in range(STEPS):
        x = torch.randn(BATCH, LENGTH, 4, generator=generator, dtype=torch.float64)
        yield x, torch.sin(x.sum(2, keepdim=True)) * (1.0 if step < 30 else 1.0 + 0.1 * (step - 30))


def shares(data_ranks):
    """Which samples of the batch each data-parallel rank takes: more from rank to rank, all of them together."""
    cuts = [BATCH * k * (k + 1) // (data_ranks * (data_ranks + 1)) for k in range(data_ranks + 1)]
    return [range(low, high) for low, high in zip(cuts, cuts[1:], strict=False)]


def samples(net, x, target):
    """The loss of each sample, float64 [batch]."""
    return (net(x) - target).square().mean((1, 2))


def train(net, opt, parts, data_ranks=1, accumulate=None, finish=None, order=None):
    """STEPS steps on the parts of each batch, one micro-batch each.

    Args:
        parts: lists of sample numbers.
        data_ranks: over how many ranks the engine averages gradients.
        accumulate: given whether the last micro-batch follows, a context for its forward and backward.
        finish: called between backward and step.
        order: of the samples; the result is the same but for rounding.

    Returns:
        What the optimizer says after each step.
    """
    found = []
    for x, target in batches():
        if order is not None:
            x, target = x[order], target[order]
        opt.zero_grad()
        for k, part in enumerate(parts):
            with accumulate(k == len(parts) - 1) if accumulate else contextlib.nullcontext():
                each = samples(net, x[list(part)], target[list(part)])
                # The engine's mean over ranks, for which shares differ, becomes the mean over samples.
                (each.sum() * data_ranks / BATCH).backward()
            opt.observe(each.detach().mean(), weight=len(part))
        if finish is not None:
            finish()
        opt.step()
        found.append(opt.metrics())
    return found


def whole(net):
    """All parameters in full, by name."""
    return {name: full(param) for name, param in net.named_parameters()}


def full(tensor):
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def halves(part):
    """Two micro-batches, of different sizes from three samples on."""
    return [part[: max(1, len(part) // 3)], part[max(1, len(part) // 3) :]]


def alone(order=None):
    """What one process does with the whole batch: `(steps, parameters, norms by torch)`."""
    net, norms = network(), []
    opt = FusedAdamW(net.parameters(), **OPTIONS)

    def finish():
        norms.append(torch.nn.utils.get_total_norm([param.grad for param in net.parameters()]).item())

    return train(net, opt, [range(BATCH)], finish=finish, order=order), whole(net), norms
