"""One Trainer, several trainings: again, after one that broke off, with another batch size or other arguments."""

import copy
import pickle
import weakref

import pytest
import torch
from accelerate.state import GradientState
from support.tensors import assert_same_bits
from torch.optim.lr_scheduler import LRScheduler
from trainer_support import LR, SCHEDULE, Net, arguments, assert_follows, inner, logged, points, trainer_of
from transformers import Trainer, TrainerCallback

from greedylr_fused import FusedAdamW, Linear
from greedylr_fused.integrations.transformers import use_fused_adamw


def losses(windows):
    return [float(out["loss"]) for ((_, out),) in windows]


class Again(TrainerCallback):
    """Forgets what was recorded of an earlier training."""

    def __init__(self):
        self.record = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.record is not None:
            self.record.__init__()


def test_training_again_begins_anew(tmp_path):
    again = Again()
    trainer, record = trainer_of("net", tmp_path, callbacks=[again])
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    first, shown = weakref.ref(inner(trainer.optimizer)), trainer.lr_scheduler
    again.record = record
    trainer.train()
    assert_follows(trainer, record, losses(record.windows))
    assert inner(trainer.optimizer).metrics().step == 8
    assert trainer.lr_scheduler is not shown and trainer.lr_scheduler.last_epoch == 8
    del shown
    assert first() is None, "the states of an earlier training take memory"


def test_a_window_that_broke_off_is_forgotten(tmp_path):
    class Breaks(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1 and again.record is None

    again = Again()
    trainer, record = trainer_of("net", tmp_path, callbacks=[again, Breaks()], gradient_accumulation_steps=2)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert [len(window) for window in record.windows] == [2, 1] and len(record.observed) == 1
    again.record = record
    trainer.train()
    expected = [sum(float(out["loss"] / len(window)) for _, out in window) for window in record.windows]
    assert_follows(trainer, record, expected)


def test_a_smaller_batch_that_the_trainer_finds(tmp_path):
    """It has more steps; nothing is left of the attempt that failed."""

    class NoRoom(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["x"]) > 2 and self.state.global_step == 1:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    asked, again = [], Again()

    def schedule(steps):
        asked.append(steps)
        return Linear(steps)

    options = dict(auto_find_batch_size=True, per_device_train_batch_size=3, max_steps=-1, num_train_epochs=2)
    trainer, record = trainer_of("net", tmp_path, NoRoom, callbacks=[again], **options)
    again.record = record
    use_fused_adamw(trainer, schedule=schedule)
    trainer.train()
    assert asked == [8, 10]
    assert logged(trainer, "learning_rate") == [LR * share for share in Linear(10).curve()[:-1]]
    assert record.observed == losses(record.windows)


def test_arguments_are_read_when_training_begins(tmp_path):
    """As a hyper-parameter search needs it, which makes a new model, too, and a new accelerator."""
    trainer, _ = trainer_of("net", tmp_path)
    trainer.model_init = Net
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    trainer.args.learning_rate, trainer.args.max_grad_norm = 0.03, 0.1
    trainer.create_accelerator_and_postprocess()
    trainer.train()
    opt = inner(trainer.optimizer)
    assert logged(trainer, "learning_rate")[0] == 0.03
    assert opt.max_grad_norm == 0.1
    assert {id(p) for group in opt.param_groups for p in group["params"]} == {id(p) for p in trainer.model.parameters()}


def test_an_optimizer_that_was_made_before_training_is_used(tmp_path):
    trainer, record = trainer_of("net", tmp_path)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.create_optimizer_and_scheduler(num_training_steps=8)
    made = trainer.optimizer
    made.param_groups[0]["lr"] = made.param_groups[1]["lr"] = 0.02
    trainer.train()
    assert type(made) is FusedAdamW and inner(trainer.optimizer) is made
    assert logged(trainer, "learning_rate")[0] == 0.02
    assert record.observed == losses(record.windows)


def test_without_a_schedule_the_trainers_scheduler_decides(tmp_path):
    plain, _ = trainer_of("net", tmp_path, lr_scheduler_type="cosine", warmup_steps=2)
    plain.train()
    trainer, record = trainer_of("net", tmp_path, lr_scheduler_type="cosine", warmup_steps=2, max_grad_norm=0.05)
    use_fused_adamw(trainer, schedule=None)
    trainer.train()
    assert logged(trainer, "learning_rate") == logged(plain, "learning_rate")
    assert type(trainer.lr_scheduler) is type(plain.lr_scheduler)
    assert record.observed == losses(record.windows)
    made = inner(trainer.optimizer)
    assert made.max_grad_norm == 0.05
    trainer.train()  # as the Trainer does it: a new scheduler for the same optimizer
    assert inner(trainer.optimizer) is made and made.metrics().step == 16


def test_callbacks_find_a_scheduler_of_torchs_kind(tmp_path):
    class Looks(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
            self.before = lr_scheduler.get_last_lr()

        def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
            self.scheduler, self.groups = lr_scheduler, optimizer.param_groups

    looks = Looks()
    trainer, record = trainer_of("net", tmp_path, callbacks=[looks])
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert isinstance(looks.scheduler, LRScheduler) and looks.before == [LR, LR]
    assert looks.scheduler.base_lrs == [LR, LR]
    assert looks.scheduler.get_last_lr() == [record.lrs[-2]] * 2  # what the last step used
    assert looks.scheduler.get_lr() == [group["lr"] for group in looks.groups] == [record.lrs[-1]] * 2
    assert looks.scheduler.get_last_lr() is not looks.scheduler.get_last_lr()


def test_accelerate_wraps_the_scheduler(tmp_path):
    trainer, record = trainer_of("net", tmp_path)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    wrapped = trainer.accelerator.prepare(trainer.lr_scheduler)
    assert wrapped.scheduler is trainer.lr_scheduler and wrapped.optimizers == [trainer.optimizer]
    wrapped.step()
    assert trainer.lr_scheduler.last_epoch == 9
    assert wrapped.get_last_lr() == trainer.lr_scheduler.get_last_lr() == [record.lrs[-2]] * 2


def test_the_arguments_can_be_copied(tmp_path):
    trainer, _ = trainer_of("net", tmp_path)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    for copied in (copy.deepcopy(trainer.args), pickle.loads(pickle.dumps(trainer.args))):
        assert copied.to_dict() == trainer.args.to_dict()


@pytest.mark.parametrize("copied", (copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))))
def test_a_copy_of_the_trainer_trains_for_itself(tmp_path, copied):
    """As it does in a hyper-parameter search over several processes."""
    GradientState._reset_state()  # one for the whole process; after a training it cannot be pickled
    trainer = Trainer(Net(), arguments(tmp_path), train_dataset=points())
    use_fused_adamw(trainer, schedule=SCHEDULE)
    other = copied(trainer)
    trainer.train()
    assert other.optimizer is None
    other.train()
    assert inner(other.optimizer) is not inner(trainer.optimizer)
    assert logged(other, "learning_rate") == logged(trainer, "learning_rate")
    for ours, theirs in zip(other.model.parameters(), trainer.model.parameters(), strict=True):
        assert ours is not theirs
        assert_same_bits(ours, theirs)


def test_a_method_that_the_object_had_before_is_called(tmp_path):
    trainer, record = trainer_of("net", tmp_path)
    inputs_seen = []

    def training_step(model, inputs, *args, **kwargs):
        inputs_seen.append(inputs)
        return Trainer.training_step(trainer, model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert len(inputs_seen) == 8 and torch.is_tensor(inputs_seen[0]["x"])
    assert_follows(trainer, record, losses(record.windows))
