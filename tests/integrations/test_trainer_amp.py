"""A Trainer in mixed precision: the loss is observed unscaled, and a step that overflows decides nothing."""

import pytest
import torch
from trainer_support import LR, SCHEDULE, assert_follows, inner, logged, oracle_lrs, trainer_of

from greedylr_fused.integrations.transformers import use_fused_adamw


def test_bfloat16(tmp_path):
    trainer, record = trainer_of("language", tmp_path, bf16=True)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert_follows(trainer, record, [float(out["loss"]) for ((_, out),) in record.windows])


def with_scaler(folder, limit, **options):
    """As accelerate does it for float16, which it does on GPUs only: the scale is too high for some of the steps."""
    trainer, record = trainer_of("net", folder, max_grad_norm=limit, max_steps=12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1)
    trainer.accelerator.scaler = scaler
    trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(inner(trainer.optimizer))
    use_fused_adamw(trainer, schedule=SCHEDULE, **options)
    trainer.train()
    return trainer, record, [float(out["loss"]) for ((_, out),) in record.windows]


@pytest.mark.parametrize("limit", (0, 0.5))
def test_a_step_that_overflows_decides_nothing(tmp_path, limit):
    trainer, record, losses = with_scaler(tmp_path, limit)
    skips = [now > before for before, now in zip([0, *record.skipped], record.skipped, strict=False)]
    assert 0 < sum(skips) < 6
    expected, lrs = oracle_lrs(loss for loss, skip in zip(losses, skips, strict=True) if not skip), [LR]
    for skip in skips:
        lrs.append(lrs[-1] if skip else expected.pop(0))
    assert record.lrs == lrs[1:] and logged(trainer, "learning_rate") == lrs[:-1]
    assert len(set(lrs)) > 2
    assert inner(trainer.optimizer).metrics().step == 12 - sum(skips)
    assert trainer.state.global_step == 12


def test_the_norm_is_that_of_the_unscaled_gradients(tmp_path):
    trainer, record, _ = with_scaler(tmp_path, 0.5)
    plain, reference = trainer_of("net", tmp_path, max_grad_norm=0.5, max_steps=12)
    use_fused_adamw(plain, schedule=SCHEDULE)
    plain.train()
    scaled, norm = record.grads[0], logged(trainer, "grad_norm")[0]
    assert scaled > 1e37 and norm == reference.norms[0]


def test_ranks_with_parts_learn_of_an_overflow_elsewhere(tmp_path, monkeypatch):
    """Under FSDP the scaler looks at the gradients before the step, which clipping made it do so far."""
    trainer, _ = trainer_of("net", tmp_path, max_grad_norm=0.5, max_steps=3)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    calls = []
    monkeypatch.setattr(trainer.accelerator, "unscale_gradients", lambda: calls.append(trainer.state.global_step))
    trainer.create_optimizer()
    trainer.create_scheduler(3)
    for fsdp in (False, True):
        trainer.is_fsdp_enabled = fsdp
        norm = trainer._clip_grad_norm(trainer.model)
        assert trainer._get_grad_norm(trainer.model, grad_norm=norm) is norm
    assert calls == [0]
