"""Each step's loss reaches the optimizer of a Trainer, whatever divides it: the LR is the oracle's to the bit."""

import pytest
import torch
from torch.nn import functional
from trainer_support import SCHEDULE, assert_follows, logged, trainer_of
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from transformers.trainer_pt_utils import LabelSmoother

from greedylr_fused.integrations.transformers import use_fused_adamw


def added(values):
    total = 0.0
    for value in values:
        total += float(value)
    return total


def means(windows):
    """The mean over micro-batches of losses that are means themselves: each is divided in its own type."""
    return [added(out["loss"] / len(window) for _, out in window) for window in windows]


def shifted(given, out):
    labels = given["labels"] if "labels" in given else out["labels"]
    return out["logits"][:, :-1].reshape(-1, out["logits"].shape[-1]), labels[:, 1:].reshape(-1)


def over_tokens(windows):
    """The mean over all tokens of a step."""
    losses = []
    for window in windows:
        tokens = sum((given["labels"][:, 1:] != -100).sum() for given, _ in window)
        sums = [functional.cross_entropy(*shifted(given, out), reduction="sum") for given, out in window]
        losses.append(added(total / tokens for total in sums))
    return losses


@pytest.mark.parametrize("accumulation", (1, 3))
def test_a_loss_that_is_a_mean_over_its_micro_batch(tmp_path, accumulation):
    """Five micro-batches make a pass over the data: of 3 and 2."""
    trainer, record = trainer_of("net", tmp_path, gradient_accumulation_steps=accumulation)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert [len(window) for window in record.windows] == ([1] * 8 if accumulation == 1 else [3, 2] * 4)
    assert_follows(trainer, record, means(record.windows))


@pytest.mark.parametrize("accumulation", (1, 3))
def test_a_loss_over_the_tokens_of_all_micro_batches(tmp_path, accumulation):
    trainer, record = trainer_of("language", tmp_path, gradient_accumulation_steps=accumulation)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert all("num_items_in_batch" in given for window in record.windows for given, _ in window)
    assert_follows(trainer, record, over_tokens(record.windows))
    if accumulation == 1:  # the Trainer adds up several in float32
        assert logged(trainer, "loss") == record.observed


class Labelled(Trainer):
    """CompareWith the labels, which the model is not given under label smoothing."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        labels = inputs["labels"]
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.seen.append((labels, kwargs["num_items_in_batch"]))
        return loss


def test_label_smoothing(tmp_path):
    options = dict(gradient_accumulation_steps=3, label_smoothing_factor=0.2)
    trainer, record = trainer_of("language", tmp_path, Labelled, **options)
    trainer.seen = []
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    smoother, seen, losses = LabelSmoother(epsilon=0.2), iter(trainer.seen), []
    for window in record.windows:
        parts = []
        for _, out in window:
            labels, items = next(seen)
            parts.append(smoother(out, labels, shift_labels=True, num_items_in_batch=items))
        losses.append(added(parts))
    assert_follows(trainer, record, losses)


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        return (model(**inputs, labels=labels)["logits"] - labels).abs().mean()


def test_a_subclass_with_a_loss_of_its_own(tmp_path):
    trainer, record = trainer_of("net", tmp_path, OwnLoss, gradient_accumulation_steps=3)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    losses = [
        added((out["logits"] - given["labels"]).abs().mean() / len(window) for given, out in window)
        for window in record.windows
    ]
    assert_follows(trainer, record, losses)


def test_a_loss_function_that_divides_for_itself(tmp_path):
    def loss_of(outputs, labels, num_items_in_batch=None):
        return (outputs["logits"] - labels).abs().sum() / num_items_in_batch

    class Unlabelled(Trainer):
        """The network wants the labels, which the Trainer keeps for the function."""

        def compute_loss(self, model, inputs, *args, **kwargs):
            model.labels = inputs["labels"]
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer, record = trainer_of(
        "net", tmp_path, Unlabelled, gradient_accumulation_steps=3, init={"compute_loss_func": loss_of}
    )
    net = trainer.model
    net.register_forward_pre_hook(lambda net, args, kwargs: (args, kwargs | {"labels": net.labels}), with_kwargs=True)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    losses = []
    for window in record.windows:
        items = sum(given["labels"].numel() for given, _ in window)
        losses.append(added((out["logits"] - given["labels"]).abs().sum() / items for given, out in window))
    assert_follows(trainer, record, losses)


def test_evaluation_is_not_observed(tmp_path):
    """In a subclass of the library that evaluates in its own way."""
    other = {"eval_dataset": [{"x": torch.ones(3), "labels": torch.full((1,), 9.0)}] * 3}
    options = dict(eval_strategy="steps", eval_steps=1, made_by=Seq2SeqTrainingArguments)
    trainer, record = trainer_of("net", tmp_path, Seq2SeqTrainer, init=other, **options)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train()
    assert len(logged(trainer, "eval_loss")) == 8
    assert_follows(trainer, record, means(record.windows))
