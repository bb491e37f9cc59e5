"""Lightning's fine-tuning callbacks, which add groups in a run and assign `param_groups` when one is resumed."""

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from lightning_support import Batches, trainer
from support.foreign_warnings import LEAF_SPEC

from greedylr_fused import Cosine, FusedAdamW, GreedyLR

EPOCHS, UNFROZEN, BATCHES = 4, 1, 5
#: BackboneFinetuning raises the LR of the backbone at each pass, which a step schedule says.
pytestmark = [LEAF_SPEC, pytest.mark.filterwarnings("ignore:.* raises its peak from:UserWarning")]


class Net(lightning.LightningModule):
    """A backbone and a head; the optimizer begins with what is trained then, as Lightning's documentation has it."""

    def __init__(self, kind, options):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
        self.head = torch.nn.Linear(4, 1)
        self.kind, self.options, self.lrs = kind, options, []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.head(self.backbone(x)) - y).square().mean()

    def on_train_start(self):
        """Lightning itself leaves frozen what was unfrozen before the checkpoint, whatever the optimizer."""
        for group in self.optimizers().param_groups:
            for param in group["params"]:
                param.requires_grad_(True)

    def on_train_batch_end(self, *_):
        self.lrs.append([group["lr"] for group in self.optimizers().param_groups])

    def configure_optimizers(self):
        trained = [param for param in self.parameters() if param.requires_grad]
        return self.kind(trained, lr=0.02, **self.options)


class ByPart(BaseFinetuning):
    """One part of the backbone after the other."""

    def freeze_before_training(self, module):
        self.freeze(module.backbone)

    def finetune_function(self, module, epoch, optimizer):
        if epoch in (1, 2):
            self.unfreeze_and_add_param_group(module.backbone[2 - epoch], optimizer, lr=0.01 / epoch)


def backbone():
    return BackboneFinetuning(UNFROZEN, lambda_func=lambda epoch: 1.2, initial_denom_lr=2.0)


def go(tmp_path, callback, net, epochs, resume=None):
    run = trainer(tmp_path, callback(), max_epochs=epochs)
    run.fit(net, Batches(BATCHES), ckpt_path=resume)
    return run


def state(run, net):
    opt = run.optimizers[0]
    values = [param.detach().clone() for param in net.parameters()]
    for group in opt.param_groups:
        for param in group["params"]:
            values += [opt.state[param][name].clone() for name in ("step", "exp_avg", "exp_avg_sq")]
    return values


OPTIONS = {
    "plain": {},
    "greedy": {"schedule": GreedyLR(patience=0, factor=0.9, smooth=False, max_lr_ratio=20.0)},
    "cosine": {"schedule": Cosine(40)},
}


@pytest.mark.parametrize("saved", [1, 3])
@pytest.mark.parametrize("callback", [backbone, ByPart])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resumed_it_has_the_bits_of_a_run_that_never_stopped(tmp_path, options, callback, saved):
    whole, first, second = (Net(FusedAdamW, options) for _ in range(3))
    uninterrupted = go(tmp_path, callback, whole, EPOCHS)
    go(tmp_path, callback, first, saved).save_checkpoint(tmp_path / "saved.ckpt")
    resumed = go(tmp_path, callback, second, EPOCHS, tmp_path / "saved.ckpt")
    assert first.lrs + second.lrs == whole.lrs
    assert len(resumed.optimizers[0].param_groups) == (2 if callback is backbone else 3)
    assert all(map(torch.equal, state(uninterrupted, whole), state(resumed, second)))


@pytest.mark.parametrize("callback", [backbone, ByPart])
def test_without_a_schedule_it_does_what_torchs_adamw_does(tmp_path, callback):
    found = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        net = Net(kind, {})
        go(tmp_path, callback, net, 2).save_checkpoint(tmp_path / f"{kind.__module__}.ckpt")
        other = Net(kind, {})
        run = go(tmp_path, callback, other, EPOCHS, tmp_path / f"{kind.__module__}.ckpt")
        found.append((net.lrs + other.lrs, state(run, other)))
    assert found[0][0] == found[1][0]
    for ours, torchs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
