"""What `use_fused_adamw` refuses, and what it warns of before it is lost in silence."""

import math
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR
from trainer_support import LR, SCHEDULE, Net, arguments, logged, points, trainer_of
from transformers import SchedulerType, Trainer

import greedylr_fused
from greedylr_fused import Cosine, GreedyLR, OneCycle, ReduceOnPlateau, Table
from greedylr_fused.integrations.transformers import use_fused_adamw


def refused(trainer, error, *words, **options):
    with pytest.raises(error) as caught:
        use_fused_adamw(trainer, **options)
    for word in ("expected", ", got", *words):
        assert word in str(caught.value), caught.value
    return str(caught.value)


def test_no_trainer(tmp_path):
    refused(Net(), TypeError, "Net(", "transformers.Trainer")
    refused(Trainer, TypeError, "class", "transformers.Trainer")


def test_a_trainer_with_an_optimizer(tmp_path):
    sgd = torch.optim.SGD(Net().parameters(), lr=1.0)
    for given in ({"optimizers": (sgd, None)}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0})}):
        refused(trainer_of("net", tmp_path, init=given)[0], RuntimeError, "optimizers=", "before train()")
    only_scheduler = {"optimizers": (None, ConstantLR(sgd))}
    refused(trainer_of("net", tmp_path, init=only_scheduler)[0], RuntimeError, "scheduler")
    trained, _ = trainer_of("net", tmp_path, max_steps=1)
    trained.train()
    refused(trained, RuntimeError, "before train()")


def test_a_second_call(tmp_path):
    trainer, _ = trainer_of("net", tmp_path, max_steps=1)
    use_fused_adamw(trainer)
    refused(trainer, RuntimeError, "second call")
    trainer.train()
    refused(trainer, RuntimeError, "second call")


@pytest.mark.parametrize("name, word", (("is_deepspeed_enabled", "DeepSpeed"), ("is_model_parallel", "devices")))
def test_engines_that_step_otherwise(tmp_path, name, word):
    trainer, _ = trainer_of("net", tmp_path)
    setattr(trainer, name, True)
    refused(trainer, RuntimeError, word)


@pytest.mark.parametrize("optim", ("adafactor", "adamw_bnb_8bit", "lomo"))
def test_another_optimizer_in_the_arguments(tmp_path, optim):
    refused(trainer_of("net", tmp_path, optim=optim)[0], RuntimeError, f"optim='{optim}'", "leave optim out")


def test_torchs_adamw_in_the_arguments_is_what_is_replaced(tmp_path):
    trainer, _ = trainer_of("net", tmp_path, optim="adamw_torch", max_steps=1)
    use_fused_adamw(trainer)
    trainer.train()


def test_an_older_trainer(tmp_path, monkeypatch):
    trainer, _ = trainer_of("net", tmp_path)
    monkeypatch.delattr(Trainer, "_get_grad_norm")
    refused(trainer, RuntimeError, "_get_grad_norm", "upgrade transformers")


def test_options_of_the_arguments(tmp_path):
    trainer, _ = trainer_of("net", tmp_path)
    refused(trainer, TypeError, "lr=", "learning_rate", lr=0.1)
    refused(trainer, TypeError, "betas=", "adam_beta1 and adam_beta2", betas=(0.9, 0.99))
    refused(trainer, TypeError, "max_grad_norm=", "TrainingArguments", max_grad_norm=1.0)
    message = refused(trainer, TypeError, "fused=", "state_dtype", fused=True)
    assert " weight_decay" not in message and "differentiable" not in message
    use_fused_adamw(trainer)  # nothing of the refused calls is left


def test_no_schedule(tmp_path):
    trainer, _ = trainer_of("net", tmp_path)
    refused(trainer, TypeError, "class GreedyLR", schedule=GreedyLR)
    refused(trainer, TypeError, "str", schedule="cosine")


@pytest.mark.parametrize("schedule, word", ((lambda steps: None, "returned None"), (lambda steps: "cosine", "got str")))
def test_a_function_that_returns_no_schedule(tmp_path, schedule, word):
    trainer, _ = trainer_of("net", tmp_path)
    use_fused_adamw(trainer, schedule=schedule)
    with pytest.raises(TypeError, match=word):
        trainer.train()


def test_a_number_of_steps_that_is_not_known(tmp_path):
    trainer, _ = trainer_of("net", tmp_path)
    use_fused_adamw(trainer, schedule=lambda steps: Cosine(steps))
    with pytest.raises(RuntimeError, match="before train.*not yet known"):
        trainer.create_optimizer()


def test_a_subclass_that_makes_another_optimizer(tmp_path):
    class Own(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
            return self.optimizer

    trainer, _ = trainer_of("net", tmp_path, Own)
    use_fused_adamw(trainer)
    with pytest.raises(RuntimeError, match=r"Own.create_optimizer\(\): expected the FusedAdamW .*, got a SGD"):
        trainer.train()


def test_a_subclass_with_groups_of_its_own(tmp_path):
    class Own(Trainer):
        def create_optimizer(self, model=None):
            super().create_optimizer(model)
            self.optimizer.add_param_group({"params": [self.extra], "lr": 5 * LR})
            return self.optimizer

    trainer, record = trainer_of("net", tmp_path, Own, max_steps=4)
    trainer.extra = torch.nn.Parameter(torch.ones(2))
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    lrs = trainer.lr_scheduler.get_last_lr()
    assert lrs[0] == logged(trainer, "learning_rate")[-1] != LR and lrs[2] == pytest.approx(5 * lrs[0])
    assert trainer.lr_scheduler.base_lrs == [LR, LR, 5 * LR]


def test_a_step_whose_loss_nobody_saw(tmp_path):
    trainer, _ = trainer_of("net", tmp_path)
    use_fused_adamw(trainer)
    del trainer.training_step
    with pytest.raises(RuntimeError, match="expected a loss, .*got none"):
        trainer.train()


def warned(folder, schedule, **options):
    """What is said of these arguments when training begins."""
    trainer = Trainer(Net(), arguments(folder, max_steps=100, **options), train_dataset=points())
    use_fused_adamw(trainer, schedule=schedule)
    trainer.state.max_steps = 100
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.create_optimizer()
    return [str(warning.message) for warning in caught]


def test_a_scheduler_that_would_be_lost(tmp_path):
    (message,) = warned(tmp_path, GreedyLR(), lr_scheduler_type="cosine", warmup_steps=10)
    assert "lr_scheduler_type='cosine' and warmup_steps=10 of the TrainingArguments: not used" in message
    assert "schedule=lambda steps: GreedyLR(base=Cosine(steps, warmup_steps=10)))" in message
    (message,) = warned(tmp_path, ReduceOnPlateau(), warmup_steps=0.05)
    assert "lr_scheduler_type" not in message
    assert "lambda steps: GreedyLR(base=Linear(steps, warmup_steps=math.ceil(0.05 * steps)))" in message
    (message,) = warned(tmp_path, Cosine(100), warmup_steps=10)
    assert "warmup_steps=10" in message and "since Cosine decides" in message
    (message,) = warned(tmp_path, lambda steps: GreedyLR(), lr_scheduler_type="constant_with_warmup", warmup_steps=10)
    assert "GreedyLR(base=Constant(warmup_steps=10))" in message


@pytest.mark.parametrize(
    "schedule",
    (
        Cosine(100, warmup_steps=10),
        GreedyLR(base=Cosine(100, warmup_steps=10)),
        lambda steps: ReduceOnPlateau(base=Cosine(steps, warmup_steps=10)),
        Table([0.0, 1.0], warmup_steps=10),
        OneCycle(100),
        None,
    ),
)
def test_a_schedule_that_has_what_was_asked_for(tmp_path, schedule):
    assert not warned(tmp_path, schedule, lr_scheduler_type="cosine", warmup_steps=10)


#: Every scheduler that TrainingArguments take without an evaluation, but for what stands there unasked.
ASKED = [
    (kind.value, warmup)
    for kind in SchedulerType
    for warmup in (0, 0.1, 10)
    if kind.value not in ("reduce_lr_on_plateau", "greedy") and (kind.value, warmup) != ("linear", 0)
]


@pytest.mark.parametrize("kind, warmup", ASKED)
def test_what_is_proposed_can_be_written(tmp_path, kind, warmup):
    (message,) = warned(tmp_path, GreedyLR(), lr_scheduler_type=kind, warmup_steps=warmup)
    source = message.split("schedule=")[1].split(", or leave")[0].removesuffix(")")
    proposed = eval(source, {"math": math, "values": [1.0], **vars(greedylr_fused)})(100)
    assert proposed.base.warmup_steps == (10 if warmup else 0)


def test_methods_of_a_subclass_that_would_be_lost(tmp_path):
    class Own(Trainer):
        def create_scheduler(self, *args, **kwargs):
            return super().create_scheduler(*args, **kwargs)

        def _clip_grad_norm(self, model):
            return super()._clip_grad_norm(model)

    trainer, _ = trainer_of("net", tmp_path, Own)
    use_fused_adamw(trainer)
    with pytest.warns(UserWarning) as caught:
        trainer.create_optimizer()
    said = " ".join(str(warning.message) for warning in caught)
    assert "Own.create_scheduler(): not used" in said and "Own._clip_grad_norm(): not used" in said
    other, _ = trainer_of("net", tmp_path, Own, max_grad_norm=0, max_steps=1)
    use_fused_adamw(other, schedule=None)
    other.train()  # both are used
