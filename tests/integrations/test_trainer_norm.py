"""`max_grad_norm` of a Trainer: applied once, in the update; the norm is logged, and nobody waits for it."""

import contextlib

import pytest
import torch
from support.host_reads import as_of_a_device, no_host_read
from support.tensors import assert_same_bits, latest
from trainer_support import LR, SCHEDULE, Net, inner, logged, trainer_of
from transformers import Trainer, TrainerCallback

from greedylr_fused import FusedAdamW
from greedylr_fused.integrations.transformers import use_fused_adamw

#: Clips in every step.
SMALL = 0.05


def by_hand(windows, **options):
    """A loop of one's own over these micro-batches: the parameters, the optimizer, and the norm of each step."""
    net, norms = Net(), []
    groups = [
        {"params": [net.up.weight, net.down.weight], "weight_decay": 0.1},
        {"params": [net.up.bias, net.down.bias], "weight_decay": 0.0},
    ]
    opt = FusedAdamW(groups, lr=LR, schedule=SCHEDULE, **options)
    for window in windows:
        total = 0.0
        for given, _ in window:
            loss = net(**given)["loss"] / len(window)
            loss.backward()
            total = total + loss.detach().double()
        opt.step(loss=total)
        opt.zero_grad()
        norms.append(opt.metrics().grad_norm)
    return list(net.parameters()), opt, norms


def clips(*args, **kwargs):
    raise AssertionError("the gradients are clipped by the Trainer")


def test_clipping_is_applied_once(tmp_path, monkeypatch):
    trainer, record = trainer_of("net", tmp_path, gradient_accumulation_steps=2, max_grad_norm=SMALL)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", clips)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clips)
    trainer.train()
    assert min(record.grads) > 2 * SMALL  # as they are after the Trainer's turn: as they were before it
    expected, opt, norms = by_hand(record.windows, max_grad_norm=SMALL)
    for param, want in zip(trainer.model.parameters(), expected, strict=True):
        assert_same_bits(param, want)
    assert inner(trainer.optimizer).metrics() == opt.metrics()
    assert logged(trainer, "grad_norm") == record.norms == norms


def test_without_a_limit_the_trainer_measures_as_before(tmp_path):
    trainer, record = trainer_of("net", tmp_path, max_grad_norm=0)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert inner(trainer.optimizer).max_grad_norm is None
    assert logged(trainer, "grad_norm") == record.grads
    for param, want in zip(trainer.model.parameters(), by_hand(record.windows)[0], strict=True):
        assert_same_bits(param, want)


def test_without_a_limit_a_norm_that_is_known_is_logged(tmp_path, monkeypatch):
    trainer, record = trainer_of("net", tmp_path, max_grad_norm=0)
    use_fused_adamw(trainer, schedule=SCHEDULE, skip_nonfinite=True)
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", clips)
    trainer.train()
    assert logged(trainer, "grad_norm") == record.norms == by_hand(record.windows, skip_nonfinite=True)[2]


def test_a_limit_that_is_written_after_the_optimizer_was_made_is_the_trainers(tmp_path, monkeypatch):
    trainer, _ = trainer_of("net", tmp_path, max_grad_norm=0)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.create_optimizer()
    trainer.args.max_grad_norm = SMALL
    limits, clip = [], trainer.accelerator.clip_grad_norm_
    monkeypatch.setattr(
        trainer.accelerator, "clip_grad_norm_", lambda params, limit: (limits.append(limit), clip(params, limit))[1]
    )
    trainer.train()
    assert limits == [SMALL] * 8


def test_options_reach_the_optimizer(tmp_path):
    beta = dict(adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6)
    trainer, record = trainer_of("net", tmp_path, max_grad_norm=SMALL, **beta)
    use_fused_adamw(trainer, schedule=SCHEDULE, amsgrad=True, state_dtype=torch.bfloat16)
    trainer.train()
    options = dict(amsgrad=True, state_dtype=torch.bfloat16, max_grad_norm=SMALL)
    expected, opt, _ = by_hand(record.windows, betas=(0.8, 0.9), eps=1e-6, **options)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    for param, want in zip(trainer.model.parameters(), expected, strict=True):
        assert_same_bits(param, want)
    assert latest(inner(trainer.optimizer)).grad_norm == latest(opt).grad_norm


def test_the_norm_is_shown_where_the_step_will_write_it(tmp_path, monkeypatch):
    """FSDP2 moves the parameters once the optimizer is there; the optimizer follows before training begins."""
    trainer, _ = trainer_of("net", tmp_path)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    opt, moved = trainer.create_optimizer(), []
    monkeypatch.setattr(opt._control, "to", moved.append)
    monkeypatch.setattr(opt, "_device", lambda: torch.device("meta"))
    trainer.create_scheduler(8)
    assert moved == [torch.device("meta")]


class Guard(TrainerCallback):
    """Refuses every read of the host, from the beginning of a step to its end."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.steps, self.guards = monkeypatch, 0, contextlib.ExitStack()
        as_of_a_device(monkeypatch)

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step:  # the first builds tables
            params = [param for group in optimizer.param_groups for param in group["params"]]
            self.guards.enter_context(no_host_read(self.monkeypatch, [*params, inner(optimizer)._control.vector]))

    def on_step_end(self, args, state, control, **kwargs):
        self.guards.close()
        self.steps += state.global_step > 1


def test_nothing_is_read_back(tmp_path, monkeypatch):
    """Neither by us nor, with its filter off, by the Trainer: from the first micro-batch to the scheduler's step."""
    guard = Guard(monkeypatch)
    options = dict(gradient_accumulation_steps=2, logging_nan_inf_filter=False, max_grad_norm=SMALL, logging_steps=5)
    trainer, record = trainer_of("net", tmp_path, callbacks=[guard], **options)
    record.on_pre_optimizer_step = record.on_optimizer_step = lambda *args, **kwargs: None  # they read
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert guard.steps == 7
    assert len(logged(trainer, "learning_rate")) == 1


def test_a_read_would_be_noticed(tmp_path, monkeypatch):
    class Reads(Trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            loss.item()
            return loss

    guard = Guard(monkeypatch)
    trainer, _ = trainer_of("net", tmp_path, Reads, callbacks=[guard], logging_nan_inf_filter=False)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    with guard.guards, pytest.raises(AssertionError, match="host read"):
        trainer.train()
