"""torchtitan's own Trainer and checkpoints with FusedAdamW, on two ranks."""

import math

import pytest
import torch

pytest.importorskip("torchtitan", reason="make torchtitan runs these in an environment of their own")

from support.ranks import Ranks  # noqa: E402
from torchtitan_support import config, trainer, weights  # noqa: E402
from transformers.optimization import GreedyLR as HostGreedyLR  # noqa: E402

from greedylr_fused import GreedyLR  # noqa: E402
from greedylr_fused.integrations.torchtitan import use_fused_adamw  # noqa: E402

WORLD = 2
OPTIONS = dict(factor=0.8, patience=1, window_size=3, smooth=True)


@pytest.fixture(scope="module")
def ranks():
    """Calls a case on each rank; the processes, which import torchtitan, start once."""
    with Ranks(WORLD) as ranks:
        yield ranks


def greedy():
    return GreedyLR(min_lr=1e-4, max_lr=1e-1, **OPTIONS)


def trained(rank, training):
    with trainer(rank, training) as made:
        made.train()
        return made.logged, weights(made)


def replayed(losses, lr):
    """The LR of each step by transformers' scheduler, which is given the losses that torchtitan logs."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = HostGreedyLR(optimizer, min_lr=1e-4, max_lr=1e-1, **OPTIONS)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    return rates


def run_of_the_debug_model(rank, folder):
    logged, _ = trained(rank, use_fused_adamw(config(folder, steps=20), schedule=greedy()))
    return logged


@pytest.mark.timeout(300)
def test_twenty_steps_by_the_loss(ranks, tmp_path):
    """The LR is what torchtitan's mean over tokens, micro-batches and ranks decides."""
    logged, other = ranks(run_of_the_debug_model, tmp_path, timeout=280)
    rates = [step["lr/FusedAdamW"] for step in logged]
    losses = [step["loss"] for step in logged]
    assert len(logged) == 20 and rates == [step["lr/FusedAdamW"] for step in other]
    assert len(set(rates)) > 3 and rates == replayed(losses, 2e-2)
    for before, after in zip(logged, logged[1:], strict=False):
        assert math.isclose(after["schedule/loss"], before["loss"], rel_tol=1e-6)
        assert after["schedule/grad_norm"] == before["norm"]


def run_beside_torchtitans(rank, folder):
    """With its LR curve; its clipping changes gradients, ours does not."""
    theirs = config(folder, steps=6)
    theirs.lr_scheduler.warmup_steps = 2
    return trained(rank, theirs), trained(rank, use_fused_adamw(theirs, schedule=None))


@pytest.mark.timeout(300)
def test_without_a_schedule_a_run_is_torchtitans(ranks, tmp_path):
    """Norm, clipping, LR, loss and weights, but for rounding."""
    ((theirs, expected), (logged, found)), _ = ranks(run_beside_torchtitans, tmp_path, timeout=280)
    assert [step["lr/FusedAdamW"] for step in logged] == [step["lr/AdamW"] for step in theirs]
    for own, other in zip(logged, theirs, strict=True):
        assert other["norm"] > 1.0  # training.max_norm
        assert math.isclose(own["norm"], other["norm"], rel_tol=1e-4)
        assert math.isclose(own["loss"], other["loss"], rel_tol=1e-4)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def run_that_is_interrupted(rank, folder, before, after):
    """Six steps at once; three, and three more from the checkpoint, whatever divides the parameters then."""
    options = dict(save_every=3, steps=6)
    whole = trained(rank, use_fused_adamw(config(folder / "whole", **options, **before), schedule=greedy()))
    trained(rank, use_fused_adamw(config(folder, **options | {"steps": 3}, **before), schedule=greedy()))
    return whole, trained(rank, use_fused_adamw(config(folder, **options, **after), schedule=greedy()))


REPLICAS = dict(data_parallel_replicate_degree=2, data_parallel_shard_degree=1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("after", [{}, REPLICAS], ids=["same", "replicas"])
def test_resuming_from_torchtitans_checkpoint(ranks, tmp_path, after):
    """To the bit, and with the parameters divided otherwise as far as sums of the norm round."""
    ((logged, expected), (resumed, found)), _ = ranks(run_that_is_interrupted, tmp_path, {}, after, timeout=280)
    assert [step["step"] for step in resumed] == [4, 5, 6]
    assert [step["lr/FusedAdamW"] for step in resumed] == [step["lr/FusedAdamW"] for step in logged[3:]]
    assert len({step["lr/FusedAdamW"] for step in logged}) > 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4 if after else 0.0, atol=1e-5 if after else 0.0)


def run_in_stages(rank, folder, stages):
    layout = dict(pipeline_parallel_degree=2, pipeline_parallel_schedule=stages)
    training = use_fused_adamw(config(folder, steps=5, micro_batches=1, **layout), schedule=greedy())
    with trainer(rank, training) as made:
        made.train()
        (optimizer,) = made.optimizers
        optimizer.check_ranks_agree()
        return made.logged, optimizer.metrics(), len(made.model_parts), len(optimizer.param_groups)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("stages", "parts"), [("1F1B", 1), ("Interleaved1F1B", 2)])
def test_stages_of_a_pipeline_decide_together(ranks, tmp_path, stages, parts):
    """By the loss of the last stage, and by one norm over all stages and parts."""
    first, last = ranks(run_in_stages, tmp_path, stages, timeout=280)
    assert first[1] == last[1] and first[2:] == last[2:] == (parts, parts)
    rates = [step["lr/FusedAdamW" if parts == 1 else "lr/FusedAdamW/0"] for step in last[0]]
    assert len(set(rates)) > 1 and rates == replayed([step["loss"] for step in last[0]], 2e-2)
