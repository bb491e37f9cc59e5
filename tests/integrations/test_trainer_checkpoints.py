"""Checkpoints of the Trainer: resumed to the bit, and shared with the Trainer as it is without us."""

import torch
from support.tensors import assert_same, snapshot
from trainer_support import SCHEDULE, assert_follows, inner, logged, trainer_of

from greedylr_fused import Cosine, GreedyLR, Linear
from greedylr_fused.integrations.transformers import use_fused_adamw

SAVED = dict(save_strategy="steps", save_steps=5)


def test_resuming_is_bit_equal_to_never_having_stopped(tmp_path):
    schedule = GreedyLR(factor=0.5, patience=0, window_size=3, max_lr_ratio=4, base=Cosine(8, warmup_steps=1))
    options = dict(gradient_accumulation_steps=2, max_grad_norm=0.5, **SAVED)
    whole, record = trainer_of("language", tmp_path / "whole", **options)
    use_fused_adamw(whole, schedule=schedule)
    whole.train()
    resumed, after = trainer_of("language", tmp_path / "resumed", **options)
    with torch.no_grad():
        for param in resumed.model.parameters():
            param.zero_()  # all of it has to come from the checkpoint
    use_fused_adamw(resumed, schedule=schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert len(record.lrs) == 8 and after.lrs == record.lrs[5:] and after.observed == record.observed[5:]
    for name in ("loss", "learning_rate", "grad_norm"):
        assert logged(resumed, name) == logged(whole, name)  # the first five entries are the checkpoint's
    ours, theirs = inner(resumed.optimizer), inner(whole.optimizer)
    assert_same(snapshot(ours, control=False), snapshot(theirs, control=False))
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()


def test_a_schedule_takes_over_from_the_trainers_scheduler(tmp_path):
    """And goes on with its curve: `lr_scheduler_type` was "linear", as it is unasked."""
    whole, _ = trainer_of("net", tmp_path / "torch", **SAVED)
    whole.train()
    resumed, _ = trainer_of("net", tmp_path / "ours")
    use_fused_adamw(resumed, schedule=lambda steps: Linear(steps))
    resumed.train(resume_from_checkpoint=str(tmp_path / "torch" / "checkpoint-5"))
    assert logged(resumed, "learning_rate") == logged(whole, "learning_rate")


def test_the_trainers_scheduler_takes_over(tmp_path):
    """Without us, in other words, a checkpoint is not lost."""
    whole, _ = trainer_of("net", tmp_path / "ours", **SAVED)
    use_fused_adamw(whole, schedule=lambda steps: Linear(steps))
    whole.train()
    resumed, _ = trainer_of("net", tmp_path / "torch")
    resumed.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-5"))
    assert type(inner(resumed.optimizer)) is torch.optim.AdamW
    assert logged(resumed, "learning_rate") == logged(whole, "learning_rate")
    step = next(iter(inner(resumed.optimizer).state.values()))["step"]
    assert float(step) == 8


def test_another_number_of_steps_on_resume(tmp_path):
    """Of a schedule that is a function of them: the same step of a longer curve."""
    first, _ = trainer_of("net", tmp_path, **SAVED)
    use_fused_adamw(first, schedule=lambda steps: Linear(steps))
    first.train()
    longer, _ = trainer_of("net", tmp_path, max_steps=16)
    use_fused_adamw(longer, schedule=lambda steps: Linear(steps))
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    curve = Linear(16).curve()
    assert logged(longer, "learning_rate")[5:] == [0.01 * curve[t] for t in range(5, 16)]


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    """Which the Trainer does to the model alone; the trace is that of a run without evaluation."""
    data = {"eval_dataset": [{"x": torch.ones(3), "labels": torch.ones(1)}]}
    best = dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer, record = trainer_of("net", tmp_path, init=data, **best)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    assert_follows(trainer, record, [float(out["loss"]) for ((_, out),) in record.windows])
