"""What ObserveLoss says when a fit starts that would train wrongly in silence, and what FusedAdamW says without it."""

import importlib
import sys

import lightning.pytorch as lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_support import BATCHES, Batches, Net, Recorder, assert_traced, fit, half, trainer
from support.foreign_warnings import LEAF_SPEC, NO_LOSS
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from greedylr_fused import Cosine, FusedAdamW, GreedyLR, ReduceOnPlateau
from greedylr_fused.integrations import lightning as integration
from greedylr_fused.integrations.lightning import ObserveLoss

pytestmark = LEAF_SPEC


def refused(tmp_path, net, match, **options):
    """Before the first batch."""
    with pytest.raises(ValueError, match=match):
        fit(net, tmp_path, ObserveLoss(), **options)
    assert net.calls == 0


def test_to_clip_twice(tmp_path):
    match = r"gradient_clip_val=0\.5\) and FusedAdamW\(max_grad_norm=1\.0\).*drop gradient_clip_val"
    refused(tmp_path, Net(max_grad_norm=1.0), match, gradient_clip_val=0.5)
    refused(tmp_path, Net(max_grad_norm=1.0, schedule=None), match, gradient_clip_val=0.5)


def test_to_clip_what_is_scaled(tmp_path):
    match = r"with a loss scale.*FusedAdamW\(\.\.\., max_grad_norm=0\.5\)"
    refused(tmp_path, Net(), match, gradient_clip_val=0.5, **half())


@pytest.mark.parametrize("clip", [{"gradient_clip_val": 0.5}, {"gradient_clip_val": 0.0}])
def test_one_clipping_is_fine(tmp_path, clip):
    net = Net(max_grad_norm=None if clip["gradient_clip_val"] else 1.0)
    assert_traced(net, fit(net, tmp_path, ObserveLoss(), **clip), 2 * BATCHES)


class Scheduled(Net):
    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return [opt], [{"scheduler": torch.optim.lr_scheduler.StepLR(opt, 5), "interval": "step"}]


@pytest.mark.parametrize("schedule", [GreedyLR(), Cosine(20)])
def test_a_scheduler_beside_a_schedule(tmp_path, schedule):
    match = f"got a StepLR for a FusedAdamW whose {type(schedule).__name__} also decides"
    refused(tmp_path, Scheduled(schedule=schedule), match)


class Several(Net):
    def __init__(self, *schedules):
        super().__init__(manual="callback")
        self.schedules = schedules

    def configure_optimizers(self):
        return [FusedAdamW(self.parameters(), schedule=schedule) for schedule in self.schedules]


@pytest.mark.parametrize("schedules", [(GreedyLR(), ReduceOnPlateau()), (None, GreedyLR()), (GreedyLR(), Cosine(9))])
def test_several_optimizers(tmp_path, schedules):
    match = r"got 2 optimizers \(FusedAdamW, FusedAdamW\).*opt\.step\(loss=loss\)"
    refused(tmp_path, Several(*schedules), match)


class StepsByItself(SingleDeviceStrategy):
    handles_gradient_accumulation = True


def test_a_strategy_that_steps_by_itself(tmp_path):
    match = "the strategy StepsByItself, which accumulates, scales and steps by itself"
    refused(tmp_path, Net(), match, strategy=StepsByItself("cpu"))


def test_a_scale_on_which_ranks_do_not_agree(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=ShardedGradScaler("cpu"))
    refused(tmp_path, Net(), 'without a loss scale .*different ones.*precision="bf16-mixed"', plugins=[plugin])


@pytest.mark.parametrize("schedule", [None, Cosine(2 * BATCHES)])
def test_a_callback_without_a_use_is_told_of_once(tmp_path, schedule):
    net = Net(schedule=schedule)
    with pytest.warns(UserWarning, match="expected a FusedAdamW that needs the loss, .*got FusedAdamW") as said:
        opt = fit(net, tmp_path, ObserveLoss(), accumulate_grad_batches=2)
    assert len([w for w in said if "ObserveLoss" in str(w.message)]) == 1
    assert opt.metrics().step == 8


def test_another_optimizer_is_named(tmp_path):
    class Plain(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    with pytest.warns(UserWarning, match="expected a FusedAdamW .*got SGD"):
        fit(Plain(), tmp_path, ObserveLoss(), max_epochs=1)


def test_a_loss_that_was_given_twice(tmp_path):
    with pytest.raises(ValueError, match="expected the loss once, got it more than once"):
        fit(Net(manual="loss"), tmp_path, ObserveLoss())


def test_without_the_callback_a_loss_scale_leaves_no_loss(tmp_path):
    with pytest.raises(RuntimeError, match="expected a loss, from which its schedule GreedyLR decides, got none"):
        fit(Net(), tmp_path, **half())


@NO_LOSS
def test_without_the_callback_a_training_step_must_return_a_loss(tmp_path):
    with pytest.raises(RuntimeError, match="expected a loss, from which its schedule GreedyLR decides, got none"):
        fit(Net(none_at=(3,)), tmp_path)


def test_one_callback_serves_one_fit_after_the_other(tmp_path):
    callback = ObserveLoss()
    with pytest.warns(UserWarning, match="no effect"):
        fit(Net(schedule=None), tmp_path, callback)
    for _ in range(2):
        net = Net()
        assert_traced(net, fit(net, tmp_path, callback, accumulate_grad_batches=3), 6)
        assert callback._optimizer is None  # kept no longer than the fit


class OtherNet(Recorder, pytorch_lightning.LightningModule):
    pass


def test_the_other_package_takes_the_same_callback(tmp_path):
    """The class was made for `lightning.pytorch`, which was imported before."""
    net = OtherNet()
    run = trainer(tmp_path, ObserveLoss(), of=pytorch_lightning, max_epochs=2, accumulate_grad_batches=3)
    run.fit(net, Batches())
    assert_traced(net, run.optimizers[0], 6)


PACKAGES = {package.__name__: package for package in (lightning, pytorch_lightning)}


def bases(monkeypatch, loaded, installed=tuple(PACKAGES)):
    """What the callback derives from where these packages are loaded, and these can be."""
    for name in set(PACKAGES) - set(loaded):
        monkeypatch.delitem(sys.modules, name)

    def importing(name):
        if name.removesuffix(".callbacks") not in installed:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return PACKAGES[name.removesuffix(".callbacks")].callbacks

    monkeypatch.setattr(importlib, "import_module", importing)
    return integration._bases()


@pytest.mark.parametrize("loaded", [*((name,) for name in PACKAGES), tuple(PACKAGES)], ids=str)
def test_the_callback_is_one_of_the_packages_that_are_loaded(monkeypatch, loaded):
    assert bases(monkeypatch, loaded) == tuple(PACKAGES[name].Callback for name in loaded)


@pytest.mark.parametrize("name", PACKAGES)
def test_one_installed_package_is_enough(monkeypatch, name):
    assert bases(monkeypatch, (), (name,)) == (PACKAGES[name].Callback,)


def test_without_either_package_it_says_what_to_install(monkeypatch):
    with pytest.raises(ImportError, match="expected lightning or .*got no Lightning .*No module named.*pip install"):
        bases(monkeypatch, (), ())
