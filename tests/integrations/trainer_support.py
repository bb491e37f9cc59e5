"""Tiny models for the Trainer of transformers, and a record of what happens to them, step by step."""

import torch
from support.oracle import Case, upstream_trace
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from greedylr_fused import GreedyLR

LR = 0.01
#: Raises and cuts within few steps.
SCHEDULE = GreedyLR(factor=0.5, patience=0, window_size=2, max_lr_ratio=4)
VOCABULARY, LENGTH = 16, 6


class Net(torch.nn.Module):
    """A network of no library, whose loss is a mean over the micro-batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)

    def forward(self, x, labels=None):
        out = self.down(torch.tanh(self.up(x)))
        return {"loss": functional.mse_loss(out, labels), "logits": out}


def points(n=10):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 3, generator=generator)
    return [{"x": row, "labels": row.sum(0, keepdim=True).sin() + 0.5} for row in x]


def language_model():
    torch.manual_seed(3)
    sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
    sizes |= dict(vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=LENGTH)
    return LlamaForCausalLM(LlamaConfig(**sizes))


def sentences(n=10):
    """Of each another number of tokens counts, so that a mean of means is not the mean over tokens."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for k in range(n):
        tokens = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
        labels = tokens.clone()
        labels[: k % (LENGTH - 2)] = -100
        found.append({"input_ids": tokens, "labels": labels})
    return found


def arguments(folder, made_by=TrainingArguments, **options):
    defaults = dict(learning_rate=LR, weight_decay=0.1, per_device_train_batch_size=2, max_steps=8, logging_steps=1)
    quiet = dict(use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no")
    return made_by(str(folder), **(quiet | defaults | options))


def trainer_of(kind, folder, cls=Trainer, callbacks=(), init=None, **options):
    """A Trainer of one of the two models, with a `Record` of its own: returns both."""
    model, data = (Net(), points()) if kind == "net" else (language_model(), sentences())
    record = Record()
    trainer = cls(
        model, arguments(folder, **options), train_dataset=data, callbacks=[record, *callbacks], **(init or {})
    )
    record.watch(model)
    return trainer, record


def inner(optimizer):
    """Without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


class Record(TrainerCallback):
    """What the Trainer and its optimizer did.

    Attributes:
        windows: per step, per micro-batch: what the model was given, and what it returned.
        observed: the loss of each step, as the optimizer has it.
        norms: the norm of each step, as the optimizer has it.
        lrs: the LR after each step, of the first group.
        grads: norm of the `.grad` of all parameters as the optimizer was about to find them.
        skipped: how many steps were skipped so far, after each step.
    """

    def __init__(self):
        self.windows, self.observed, self.norms = [], [], []
        self.lrs, self.grads, self.skipped = [], [], []

    def watch(self, model):
        def after(module, args, kwargs, output):
            if module.training:
                kept = {key: value.detach() for key, value in output.items() if torch.is_tensor(value)}
                self.windows[-1].append((kwargs, kept))

        model.register_forward_hook(after, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self.windows.append([])

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [param.grad for param in model.parameters() if param.grad is not None]
        self.grads.append(float(torch.nn.utils.get_total_norm(grads)))

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if not hasattr(inner(optimizer), "metrics"):
            return  # torch's
        metrics = inner(optimizer).metrics()
        self.observed.append(metrics.loss)
        self.norms.append(metrics.grad_norm)
        self.lrs.append(metrics.lr[0])
        self.skipped.append(metrics.skipped)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def oracle_lrs(losses, schedule=SCHEDULE, lr=LR):
    """The LR after each of these losses, by transformers' own GreedyLR."""
    return [row[0] for row in upstream_trace(Case(schedule, [lr], list(losses)))]


def assert_follows(trainer, record, losses, schedule=SCHEDULE, lr=LR):
    """The optimizer saw these losses, its LR is the oracle's to the bit, and it is what the Trainer logged."""
    assert record.observed == losses
    expected = oracle_lrs(losses, schedule, lr)
    assert record.lrs == expected
    assert logged(trainer, "learning_rate") == [lr, *expected[:-1]]
    assert inner(trainer.optimizer).read_lr() == expected[-1:] * len(trainer.optimizer.param_groups)
    assert len({lr, *expected}) > 2, "a test of an LR that hardly moves"
