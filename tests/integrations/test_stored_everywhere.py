"""8-bit moments and masters within what surrounds an optimizer: a captured step, torch.compile, GradScaler, telemetry,
the Trainer. Each run has the bits of the plain loop.
"""

import pytest
import torch
from support.graph_stand_in import StandIn, standing_in
from support.tensors import assert_same, generator, snapshot

from greedylr_fused import Cosine, FusedAdamW, GreedyLR
from greedylr_fused.graphs import CapturedStep
from greedylr_fused.telemetry import Recorder

__all__ = ["standing_in"]
STORED = {"state_dtype": torch.int8, "master_weights": "int8"}
RESTLESS = GreedyLR(patience=0, factor=0.8, window_size=3)


class Training:
    """A bfloat16 model, of which the matrices get 8 bits, and its whole step as one function."""

    def __init__(self, **options):
        torch.manual_seed(0)
        sizes = (torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64))
        self.model = torch.nn.Sequential(*sizes).bfloat16()
        options = {"schedule": RESTLESS, "max_grad_norm": 1.0} | options
        self.opt = FusedAdamW(self.model.parameters(), lr=0.01, **STORED, **options)

    def __call__(self, x):
        loss = (self.model(x) - x).float().square().mean()
        loss.backward()
        self.opt.step(loss=loss)
        return loss.detach()


def batch(i):
    return torch.randn(8, 64, generator=generator(i)).bfloat16()


def plain(steps, **options):
    training = Training(**options)
    for i in range(steps):
        training.opt.zero_grad()
        training(batch(i))
    return snapshot(training.opt)


def test_replays_have_the_bits_of_steps(standing_in):
    training = Training()
    StandIn.optimizer = training.opt
    step = CapturedStep(training, training.opt, warmup=2)
    for i in range(6):
        step(batch(i))
    assert step.captured
    assert_same(snapshot(training.opt), plain(6))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_a_compiled_step_has_the_bits_of_an_eager_one():
    torch._dynamo.reset()
    training = Training()
    compiled = torch.compile(training.__call__, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(5):
            training.opt.zero_grad()
            compiled(batch(i))
    torch._dynamo.reset()
    assert_same(snapshot(training.opt), plain(5))


def test_an_overflow_under_grad_scaler_leaves_every_bit():
    training = Training()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i in range(3):
        training.opt.zero_grad()
        loss = (training.model(batch(i)) - batch(i)).float().square().mean()
        training.opt.observe(loss.detach())
        scaler.scale(loss).backward()
        before = snapshot(training.opt, control=False)
        if i == 2:
            training.model[0].weight.grad[0, 0] = float("inf")
        scaler.step(training.opt)
        scaler.update()
    after = snapshot(training.opt, control=False)
    assert_same(after, before)
    assert "exp_avg_q 0" in after


def test_telemetry_records_as_ever():
    training, kept = Training(), []
    recorder = Recorder(training.opt, lambda metrics, step: kept.append((step, metrics["grad_norm"])), grad_norms=True)
    for i in range(4):
        training.opt.zero_grad()
        training(batch(i))
    recorder.drain(wait=True)
    assert [step for step, _ in kept] == [1, 2, 3, 4] and all(norm > 0 for _, norm in kept)


@pytest.mark.slow
def test_the_trainer_trains_with_it(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from greedylr_fused.integrations.transformers import use_fused_adamw

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, max_position_embeddings=8, **sizes))
    tokens = torch.randint(64, (16, 8), generator=generator(1))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=0.01, report_to=[],
        use_cpu=True, save_steps=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model.bfloat16(), arguments, train_dataset=data)
    use_fused_adamw(trainer, schedule=Cosine(total_steps=4), **STORED)
    trainer.train()
    states = trainer.optimizer.state.values()
    assert any("exp_avg_q" in state for state in states) and all("remainder" in state for state in states)
    first = {name: value.clone() for name, value in model.state_dict().items()}

    torch.manual_seed(0)
    again = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, max_position_embeddings=8, **sizes))
    trainer = Trainer(again.bfloat16(), arguments, train_dataset=data)
    use_fused_adamw(trainer, schedule=Cosine(total_steps=4), **STORED)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, first[name]), name
