"""A small LightningModule that keeps what happened to it, and the trace that transformers' GreedyLR makes of that."""

import lightning.pytorch as lightning
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from support.oracle import Case, upstream_trace

from greedylr_fused import FusedAdamW, GreedyLR

LR = 0.05
#: Raises or cuts at every step.
SCHEDULE = GreedyLR(factor=0.8, patience=0, window_size=2)
BATCHES = 7


class Recorder:
    """The body of the module, for `LightningModule` of either package.

    Attributes:
        micro: raw losses since the last step; `sums`: their sum and number, for each step; `lrs`: the LR after it.
    """

    def __init__(self, manual="", none_at=(), infinite_at=(), **options):
        super().__init__()
        torch.manual_seed(5)
        self.net = torch.nn.Linear(6, 1)
        self.manual, self.none_at, self.infinite_at = manual, none_at, infinite_at
        self.automatic_optimization = not manual
        self.options = dict(lr=LR, schedule=SCHEDULE) | options
        self.calls, self.micro, self.sums, self.lrs = 0, [], [], []

    def configure_optimizers(self):
        opt = FusedAdamW(self.parameters(), **self.options)
        opt.register_step_post_hook(self._stepped)
        return opt

    def _stepped(self, opt, args, kwargs):
        total = 0.0
        for loss in self.micro:
            total += float(loss)
        self.sums.append((total, len(self.micro)))
        self.lrs.append(opt.param_groups[0]["lr"])
        self.micro = []

    @property
    def losses(self):
        """The mean of each step, in the order of the additions on the device."""
        return [total / n for total, n in self.sums]

    def loss_of(self, batch):
        x, y = batch
        return (self.net(x) - y).square().mean().float()

    def training_step(self, batch, batch_idx):
        self.calls += 1
        if self.calls - 1 in self.none_at:
            return None
        loss = self.loss_of(batch)
        self.micro.append(loss.detach().clone())
        if self.calls - 1 in self.infinite_at:
            loss = Unbounded.apply(loss)
        if self.manual:
            self.by_hand(loss)
        return loss

    def by_hand(self, loss):
        opt = self.optimizers()
        opt.zero_grad()
        if self.manual == "closure":
            opt.step(lambda: self.manual_backward(loss))
            return
        self.manual_backward(loss)
        if self.manual == "observe":
            opt.optimizer.observe(loss)
        opt.step(**({"loss": loss} if self.manual == "loss" else {}))


class Unbounded(torch.autograd.Function):
    """A finite loss with infinite gradients."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


class Net(Recorder, lightning.LightningModule):
    pass


class Batches:
    """The same batches in each pass; neither a DataLoader, which Lightning would have comments on, nor a list, which
    would be one of several loaders.
    """

    def __init__(self, n=BATCHES, seed=3):
        generator = torch.Generator().manual_seed(seed)
        xs = torch.randn(n, 4, 6, generator=generator)
        self.batches = [(x, x.sum(1, keepdim=True) + torch.randn(4, 1, generator=generator)) for x in xs]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def trainer(tmp_path, *callbacks, of=lightning, **options):
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=False)
    where = dict(accelerator="cpu", devices=1, default_root_dir=tmp_path)
    return of.Trainer(callbacks=list(callbacks), **(quiet | where | options))


def fit(net, tmp_path, *callbacks, data=None, resume=None, **options):
    """Train for two passes, unless the options say otherwise; returns the optimizer."""
    if "max_steps" not in options:
        options.setdefault("max_epochs", 2)
    run = trainer(tmp_path, *callbacks, **options)
    run.fit(net, Batches() if data is None else data, ckpt_path=resume)
    return run.optimizers[0]


def half(**options):
    """The options of a Trainer that trains in float16 with a loss scale, which the flag allows on GPUs alone."""
    scaler = torch.amp.GradScaler("cpu", **(dict(init_scale=256.0, growth_interval=3) | options))
    return dict(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])


def greedy(losses, config=SCHEDULE):
    """The LR after each of these losses, by transformers."""
    return [row[0] for row in upstream_trace(Case(config, [LR], losses))]


def assert_traced(net, opt, steps):
    """Every step used the mean of its raw losses, and the LR moved both ways."""
    assert len(net.lrs) == steps
    assert net.lrs == greedy(net.losses)
    assert opt.metrics().loss == net.losses[-1]
    assert len(set(net.lrs)) > 2
