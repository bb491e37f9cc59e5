"""A Trainer on two ranks: both take the LR from the mean of their losses, to the bit, whatever divides these."""

import contextlib
import os
import tempfile
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from support import ranks
from support.tensors import assert_same, snapshot
from torch.distributed.tensor import DTensor
from torch.nn import functional
from trainer_support import LR, SCHEDULE, inner, logged, oracle_lrs, trainer_of
from transformers import TrainingArguments

from greedylr_fused.integrations.transformers import use_fused_adamw

CASES = (
    ("net", {}),
    ("language", dict(average_tokens_across_devices=True)),
    ("language", dict(average_tokens_across_devices=False)),
)

SHARED = dict(max_steps=6, gradient_accumulation_steps=2, ddp_backend="gloo", ddp_find_unused_parameters=False)


@contextlib.contextmanager
def launched(rank):
    """What torchrun would tell. The group is there already."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in told.items()})
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def summed(kind, given, out):
    """What a micro-batch adds to a loss, before it is divided, and by how many it is divided."""
    if kind == "net":
        return float(out["loss"]), 1
    labels = given["labels"][:, 1:].reshape(-1)
    logits = out["logits"][:, :-1].reshape(len(labels), -1)
    return float(functional.cross_entropy(logits, labels, reduction="sum")), int((labels != -100).sum())


def on_a_rank(rank):
    """Of each case, and then of FSDP2."""
    with launched(rank) as folder:
        return [*(under_ddp(kind, folder, options) for kind, options in CASES), under_fsdp(folder)]


def trained(kind, folder, resume=None, **options):
    trainer, record = trainer_of(kind, folder, **SHARED, **options)
    use_fused_adamw(trainer, schedule=SCHEDULE)
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.accelerator.num_processes == 2
    inner(trainer.optimizer).check_ranks_agree()
    return trainer, record


@dataclass(frozen=True)
class Seen:
    """A run as one rank saw it, by step."""

    added: list[list[tuple[float, int]]]
    """What the rank's micro-batches add to the loss, and by how many that is divided."""
    observed: list[float]
    lrs: list[float]
    logged: list[float]


def summary(kind, trainer, record):
    added = [[summed(kind, *micro) for micro in window] for window in record.windows]
    return Seen(added, record.observed, record.lrs, logged(trainer, "learning_rate"))


def under_ddp(kind, folder, options):
    return summary(kind, *trained(kind, folder, **options))


def under_fsdp(folder):
    """A run that is resumed from a checkpoint of it ends in the same state."""
    shared = [folder]
    dist.broadcast_object_list(shared)  # each rank writes its part
    whole, resumed = f"{shared[0]}/whole", f"{shared[0]}/resumed"
    sharded = dict(fsdp=True, fsdp_config={"version": 2, "auto_wrap_policy": "NO_WRAP"}, max_grad_norm=0.5)
    saved = dict(save_strategy="steps", save_steps=3, made_by=as_if_on_gpus)
    trainer, record = trained("language", whole, **sharded, **saved)
    assert trainer.accelerator.is_fsdp2 and all(isinstance(param, DTensor) for param in trainer.model.parameters())
    assert logged(trainer, "grad_norm") == record.norms and min(record.norms) > 0.5
    other, after = trained("language", resumed, resume=f"{whole}/checkpoint-3", **sharded, **saved)
    assert logged(other, "grad_norm") == logged(trainer, "grad_norm")
    states = [snapshot(inner(each.optimizer), control=False) for each in (trainer, other)]
    wholes = [{name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in s.items()} for s in states]
    assert after.lrs == record.lrs[3:]
    assert_same(*wholes)
    return summary("language", trainer, record)


def as_if_on_gpus(*args, **kwargs):
    """Accelerate has FSDP for processes with GPUs alone: so it is told that these are some, while the device stays."""
    arguments = TrainingArguments(*args, **kwargs)
    assert arguments.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments


def losses_of_rank(own, other, options):
    """Of each step, as the Trainer divides: by micro-batches, tokens of this rank, or tokens of a rank on average."""
    losses = []
    for window, theirs in zip(own, other, strict=True):
        items = sum(count for _, count in window)
        scale = 1
        if options.get("average_tokens_across_devices"):
            items, scale = items + sum(count for _, count in theirs), 2
        losses.append(0.0)
        for value, _ in window:
            losses[-1] += float(torch.tensor(value) / items * scale)
    return losses


def check(options, first, second):
    """The LRs are the oracle's, of the mean of both ranks' losses."""
    assert (first.observed, first.lrs, first.logged) == (second.observed, second.lrs, second.logged)
    sums = losses_of_rank(first.added, second.added, options), losses_of_rank(second.added, first.added, options)
    assert sums[0] != sums[1]
    losses = [(a + b) / 2 for a, b in zip(*sums, strict=True)]
    assert first.observed == losses
    assert first.lrs == oracle_lrs(losses) and first.logged == [LR, *first.lrs[:-1]]
    assert len({LR, *first.lrs}) > 2


@pytest.mark.slow
def test_ddp_and_fsdp():
    """In one test, since ranks that import transformers take seconds to start."""
    default = dict(average_tokens_across_devices=True)  # of FSDP2
    all_options = [*(options for _, options in CASES), default]
    for options, first, second in zip(all_options, *ranks.run(on_a_rank, 2, timeout=100.0), strict=True):
        check(options, first, second)
