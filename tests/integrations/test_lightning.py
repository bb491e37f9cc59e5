"""Lightning's Trainer drives FusedAdamW by itself, and with ObserveLoss where it accumulates or scales the loss."""

import contextlib
import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning_support import BATCHES, LR, Batches, Net, assert_traced, fit, greedy, half, trainer
from support.foreign_warnings import LEAF_SPEC, NO_LOSS
from support.host_reads import as_of_a_device, no_host_read
from support.tensors import assert_same, snapshot

from greedylr_fused import Cosine
from greedylr_fused.integrations.lightning import ObserveLoss

pytestmark = LEAF_SPEC


def test_nothing_at_all_is_needed(tmp_path):
    net = Net()
    assert_traced(net, fit(net, tmp_path), 2 * BATCHES)


def test_a_step_schedule_needs_no_callback(tmp_path):
    schedule = Cosine(2 * BATCHES, warmup_steps=3)
    net = Net(schedule=schedule)
    fit(net, tmp_path, accumulate_grad_batches=2)
    assert net.lrs == [LR * share for share in schedule.curve()[1 : len(net.lrs) + 1]]


def test_the_callback_changes_nothing_where_it_is_not_needed(tmp_path):
    plain, observed = Net(), Net()
    a, b = fit(plain, tmp_path), fit(observed, tmp_path, ObserveLoss())
    assert plain.lrs == observed.lrs
    assert_same(snapshot(a), snapshot(b))


@pytest.mark.parametrize("parts, steps", [(3, 6), (4, 4)])  # of 7 batches: 3, 3, 1, and 4, 3
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_accumulation(tmp_path, parts, steps, precision):
    net = Net()
    opt = fit(net, tmp_path, ObserveLoss(), accumulate_grad_batches=parts, precision=precision)
    assert_traced(net, opt, steps)
    assert {n for _, n in net.sums} == {parts, BATCHES % parts}


def test_accumulation_that_changes_between_passes(tmp_path):
    net = Net()
    opt = fit(net, tmp_path, ObserveLoss(), GradientAccumulationScheduler({0: 1, 1: 2}))
    assert_traced(net, opt, BATCHES + 4)


@pytest.mark.parametrize("parts, steps", [(1, 14), (3, 6)])
def test_a_loss_scale(tmp_path, parts, steps):
    net = Net()
    options = half()
    opt = fit(net, tmp_path, ObserveLoss(), accumulate_grad_batches=parts, **options)
    assert_traced(net, opt, steps)
    assert options["plugins"][0].scaler.get_scale() > 256.0  # it grew on the way


class Watched(Net):
    """Keeps a copy of everything after each step."""

    def _stepped(self, opt, args, kwargs):
        super()._stepped(opt, args, kwargs)
        vars(self).setdefault("kept", []).append(snapshot(opt))


def test_an_overflow_is_skipped_on_the_device(tmp_path):
    net = Watched(infinite_at=(4, 9))
    opt = fit(net, tmp_path, ObserveLoss(), **half())
    for step in (4, 9):
        changed = {name for name, value in net.kept[step].items() if not torch.equal(value, net.kept[step - 1][name])}
        assert changed == {"control"}  # the number of skipped steps, and what was found
        assert net.lrs[step] == net.lrs[step - 1]
    del net.sums[9], net.sums[4], net.lrs[9], net.lrs[4]
    assert_traced(net, opt, 2 * BATCHES - 2)
    assert (opt.metrics().step, opt.metrics().skipped) == (2 * BATCHES - 2, 2)


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("manual", ["loss", "callback", "closure", "observe"])
def test_manual_optimization(tmp_path, manual, scaled):
    callbacks = [ObserveLoss()] if manual in ("callback", "closure") else []
    net = Net(manual=manual)
    opt = fit(net, tmp_path, *callbacks, **(half() if scaled else {}))
    assert_traced(net, opt, 2 * BATCHES)


class Evaluated(Net):
    """Its losses of validation are far above those of training."""

    def validation_step(self, batch, batch_idx):
        return 1e6 * self.loss_of(batch)


@pytest.mark.parametrize("callbacks", [[], [ObserveLoss()]], ids=["alone", "callback"])
def test_losses_of_validation_are_not_observed(tmp_path, callbacks):
    net = Evaluated()
    run = trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=2)
    run.fit(net, Batches(), Batches(2))
    run.validate(net, Batches(2), verbose=False)
    assert_traced(net, run.optimizers[0], 2 * BATCHES)


@NO_LOSS
@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_step_without_a_loss_decides_nothing(tmp_path, parts):
    net = Watched(none_at=(0, 5, 8))  # 8 and 9 are the first window of the second pass
    opt = fit(net, tmp_path, ObserveLoss(), accumulate_grad_batches=parts)
    if parts == 1:
        for step in (5, 8):
            assert_same(*({k: v for k, v in net.kept[i].items() if k != "control"} for i in (step - 1, step)))
            assert net.lrs[step] == net.lrs[step - 1]
        assert net.lrs[0] == LR
        for step in (8, 5, 0):
            del net.sums[step], net.lrs[step]
    assert_traced(net, opt, {1: 11, 2: 8}[parts])


class Guarded(Callback):
    """Refuses host reads from the second batch, by when there are a table and a scale, to the sixth."""

    def __init__(self, stack, monkeypatch):
        self.stack, self.monkeypatch = stack, monkeypatch
        as_of_a_device(monkeypatch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            device_memory = [trainer.optimizers[0]._control.vector, trainer.precision_plugin.scaler._scale]
            self.stack.enter_context(no_host_read(self.monkeypatch, device_memory))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 5:
            self.stack.close()


class Silent(Net):
    """Reads no loss itself."""

    def _stepped(self, opt, args, kwargs):
        self.lrs.append(opt.param_groups[0]["lr"])


def test_nothing_waits(tmp_path, monkeypatch):
    net = Silent(max_grad_norm=1.0)
    with contextlib.ExitStack() as stack:
        callbacks = [ObserveLoss(), Guarded(stack, monkeypatch)]
        fit(net, tmp_path, *callbacks, accumulate_grad_batches=2, max_epochs=1, **half())
    assert len(set(net.lrs)) > 2


def test_the_monitor_logs_the_lr_that_each_step_uses(tmp_path):
    net, monitor = Net(), LearningRateMonitor(logging_interval="step")
    logger = CSVLogger(tmp_path)
    fit(net, tmp_path, monitor, logger=logger, log_every_n_steps=1)
    assert monitor.lrs == {"lr-FusedAdamW": [LR, *net.lrs[:-1]]}
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        assert [float(row["lr-FusedAdamW"]) for row in csv.DictReader(file)] == monitor.lrs["lr-FusedAdamW"]


class ByIndex(Net):
    """Takes the batches by number: a pass that is resumed begins a loader anew that has no state of its own."""

    def training_step(self, batch, batch_idx):
        return super().training_step(Batches().batches[batch_idx], batch_idx)


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable:UserWarning")
@pytest.mark.parametrize("kind", ["alone", "callback", "float16", "manual"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path, kind):
    def go(net, steps, resume=None):
        callbacks = [] if kind == "alone" else [ObserveLoss()]
        options = half() if kind == "float16" else {}
        run = trainer(tmp_path, *callbacks, max_steps=steps, **options)
        run.fit(net, Batches(), ckpt_path=resume)
        return run

    def net():
        return ByIndex(manual="callback" if kind == "manual" else "", max_grad_norm=1.0)

    whole, first, second = net(), net(), net()
    uninterrupted = go(whole, 12).optimizers[0]
    go(first, 5).save_checkpoint(tmp_path / "five.ckpt")  # in the middle of a pass
    resumed = go(second, 12, tmp_path / "five.ckpt").optimizers[0]
    assert first.lrs + second.lrs == whole.lrs == greedy(whole.losses)
    assert_same(*(snapshot(opt, control=False) for opt in (uninterrupted, resumed)))
    assert repr(uninterrupted.state_dict()["param_groups"]) == repr(resumed.state_dict()["param_groups"])
