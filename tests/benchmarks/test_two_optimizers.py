"""The benchmarks of several optimizers: they compare the same training, and report what they ran."""

import json

import pytest
import torch

from benchmarks import two_optimizers
from benchmarks.options import Asked
from benchmarks.throughput import in_backward

CPU = torch.device("cpu")


def test_updates_within_backward_are_those_after_it():
    steps = in_backward.contenders("micro", CPU)
    for step in steps.values():
        step()
        step()
    params = {name: list(step.model.parameters()) for name, step in steps.items()}
    assert all(map(torch.equal, params[in_backward.BASE], params["in backward()"]))
    assert all(map(torch.equal, params["torch fused, after"], params["torch fused, in backward()"]))
    assert all(param.grad is None for own in params.values() for param in own)
    driven = steps["in backward(), GreedyLR over all"]._schedule
    assert driven.metrics().step == 2 and len(driven.read_lr()) == len(params[in_backward.BASE])


def test_a_record_for_each_way_of_updating(tmp_path, capsys):
    found = in_backward.run(["micro"], Asked(CPU, 0.01, out=tmp_path))
    assert len(found.records) == 5 and {record["contender"] for record in found.records} >= {in_backward.BASE}
    assert all(record["ms"]["median"] > 0 and record["tensors"] == 20 for record in found.records)
    in_backward.print_report(found)
    assert "in backward(), GreedyLR over all" in capsys.readouterr().out
    assert json.loads((tmp_path / "in_backward.json").read_text())["records"] == found.records


@pytest.fixture
def trained(monkeypatch):
    """Calls of `train`, whose loss is least at an LR of 2 for one optimizer, and of 4 for the other."""
    calls = []

    def train(optimizer, lr, seed, asked):
        calls.append((optimizer, lr, seed))
        best = {"fused": 2.0, "muon+fused": 4.0}[optimizer]
        row = {"held_out_bits_per_byte": None if lr == 8.0 else 3.0 + abs(lr - best) + seed / 100}
        times = {"median": 1.0, "p20": 1.0, "p80": 1.0, "steps": 9}
        return row | dict(train_loss_bits_per_byte=1.0, optimizer_ms=times, step_ms=times, host_reads_per_step=0)

    monkeypatch.setattr(two_optimizers, "train", train)
    return calls


def test_each_optimizer_is_compared_at_its_own_best_lr(trained, tmp_path, capsys):
    asked = Asked(CPU, config={"steps": 4, "size": "micro"}, out=tmp_path)
    found = two_optimizers.run([[1.0, 2.0, 8.0], [2.0, 4.0, 8.0]], 2, asked)
    assert trained[6:] == [(name, lr, seed) for seed in (0, 1) for name, lr in (("fused", 2.0), ("muon+fused", 4.0))]
    assert all(seed == two_optimizers.TUNED_ON for _, _, seed in trained[:6])
    assert [record["tuning"] for record in found.records] == [True] * 6 + [False] * 4
    two_optimizers.print_report(found)
    assert "by seed: +0.0000, +0.0000; mean +0.0000" in capsys.readouterr().out
