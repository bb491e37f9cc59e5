"""FusedAdamW behind `accelerator.prepare`, with accumulation and mixed precision, and through its checkpoints."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from support.oracle import Case, upstream_trace
from support.tensors import assert_same, assert_same_bits, snapshot

from greedylr_fused import WSD, Cosine, FusedAdamW, GreedyLR

LR = 0.01
SCHEDULE = GreedyLR(factor=0.5, patience=0, window_size=2, max_lr_ratio=4)


@pytest.fixture(autouse=True)
def one_accelerator_per_test():
    """Their state is that of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batches(n):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, generator=generator) for _ in range(n)]


def loss_of(model, x):
    return (model(x).float() - x.sum(1, keepdim=True).sin() - 0.5).square().mean()


class Run:
    """A model and its optimizer, prepared, and a loop as the documentation has it.

    Attributes:
        losses: of each micro-batch; `lrs`: the LR after each step.
    """

    def __init__(self, steps=2, precision="no", **options):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps, mixed_precision=precision)
        self.model = network()
        self.opt = FusedAdamW(self.model.parameters(), **(dict(lr=LR, schedule=SCHEDULE) | options))
        self.wrapped, self.prepared = self.accelerator.prepare(self.model, self.opt)
        self.losses, self.lrs = [], []

    def train(self, data, scheduler=None, factor=1.0):
        for x in data:
            with self.accelerator.accumulate(self.wrapped):
                loss = loss_of(self.wrapped, x)
                self.accelerator.backward(loss * factor)
                self.opt.observe(loss)
                self.prepared.step()
                if scheduler is not None:
                    scheduler.step()
                self.prepared.zero_grad()
            self.losses.append(float(loss.detach()))
            if self.accelerator.sync_gradients:
                self.lrs.append(self.opt.metrics().lr[0])
        return self


def oracle_lrs(losses, steps):
    means = [sum(losses[i : i + steps]) / steps for i in range(0, len(losses), steps)]
    return [row[0] for row in upstream_trace(Case(SCHEDULE, [LR], means))]


@pytest.mark.parametrize("precision", ("no", "bf16"))
@pytest.mark.parametrize("steps", (1, 2))
def test_the_lr_is_decided_by_the_loss_of_each_window(steps, precision):
    run = Run(steps, precision).train(batches(12))
    assert run.prepared.optimizer is run.opt
    assert run.lrs == oracle_lrs(run.losses, steps) and len(run.lrs) == 12 // steps
    assert len({LR, *run.lrs}) > 2
    assert run.prepared.param_groups[0]["lr"] == run.lrs[-1]


def test_clipping_and_moments_are_those_of_a_loop_of_ones_own():
    run = Run(max_grad_norm=0.1, state_dtype=torch.bfloat16, amsgrad=True).train(batches(8))
    model = network()
    opt = FusedAdamW(
        model.parameters(), lr=LR, schedule=SCHEDULE, max_grad_norm=0.1, state_dtype=torch.bfloat16, amsgrad=True
    )
    for i, x in enumerate(batches(8)):
        loss = loss_of(model, x)
        (loss / 2).backward()
        opt.observe(loss)
        if i % 2:
            opt.step()
            opt.zero_grad()
    assert_same(snapshot(run.opt, control=False), snapshot(opt, control=False))
    assert run.opt.metrics() == opt.metrics() and opt.metrics().grad_norm > 0.1


@pytest.mark.parametrize("schedule", (SCHEDULE, Cosine(9, warmup_steps=1), WSD(warmup_steps=1), None))
def test_prepare_in_the_middle_of_a_run_changes_nothing(schedule):
    """It saves and loads the optimizer's state."""
    whole, parts = Run(schedule=schedule), Run(schedule=schedule)
    for run in (whole, parts):
        run.train(batches(6))
        if isinstance(schedule, WSD):
            run.opt.start_decay(3)
        run.opt.param_groups[0]["lr"] = LR / 2  # that is the next step's, and nobody has looked yet
    before = copy.deepcopy(parts.opt).state_dict()
    parts.opt.observe(1e6)  # but this is lost
    parts.accelerator._optimizers.clear()
    parts.prepared = AcceleratedOptimizer(parts.opt)
    assert repr(parts.opt.state_dict()["param_groups"]) == repr(before["param_groups"])  # NaN, too
    whole.train(batches(6))
    parts.train(batches(6))
    assert parts.lrs == whole.lrs
    assert_same(snapshot(parts.opt, control=False), snapshot(whole.opt, control=False))


def test_saved_and_loaded(tmp_path):
    data = batches(16)
    whole = Run(max_grad_norm=0.5).train(data[:8])
    whole.accelerator.save_state(str(tmp_path))
    whole.train(data[8:])
    other = Run(max_grad_norm=0.5)
    with torch.no_grad():
        for param in other.model.parameters():
            param.zero_()
    other.accelerator.load_state(str(tmp_path))
    other.train(data[8:])
    assert other.lrs == whole.lrs[4:]
    assert_same(snapshot(other.opt, control=False), snapshot(whole.opt, control=False))
    assert other.opt.state_dict()["param_groups"] == whole.opt.state_dict()["param_groups"]


def test_a_scheduler_of_torch_without_a_schedule_of_ours():
    run = Run(schedule=None)
    scheduler = run.accelerator.prepare(torch.optim.lr_scheduler.ExponentialLR(run.opt, 0.5))
    run.train(batches(6), scheduler)
    assert run.lrs == [LR, LR / 2, LR / 4] and run.opt.read_lr() == [LR / 8]


def test_a_closure_through_the_wrapper():
    """Its loss is the last micro-batch's alone: with accumulation, `observe`."""
    run = Run(steps=1)
    losses = []
    for x in batches(6):

        def closure(x=x):
            loss = loss_of(run.wrapped, x)
            run.accelerator.backward(loss)
            losses.append(float(loss.detach()))
            return loss

        with run.accelerator.accumulate(run.wrapped):
            run.prepared.step(closure)
            run.prepared.zero_grad()
        run.lrs.append(run.opt.metrics().lr[0])
    assert run.lrs == oracle_lrs(losses, 1)


def test_the_loss_is_not_the_wrappers_to_take():
    """So the documentation says to observe it."""
    run = Run(steps=1)
    loss_of(run.wrapped, batches(1)[0]).backward()
    with pytest.raises(TypeError, match="loss"):
        run.prepared.step(loss=1.0)
    with pytest.raises(RuntimeError, match=r"observe\(loss\)"):
        run.prepared.step()


def with_scaler(scale):
    """As accelerate makes it for float16, which it does on GPUs only."""
    run = Run(steps=2, max_grad_norm=0.5)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    run.accelerator._optimizers.clear()
    run.prepared = AcceleratedOptimizer(run.opt, scaler=run.accelerator.scaler)
    return run


def test_a_step_that_overflows_is_skipped():
    data = batches(12)
    run, plain = with_scaler(2.0**127), Run(steps=2, max_grad_norm=0.5)
    run.train(data[:4])
    before, lrs = snapshot(run.opt, control=False), run.opt.read_lr()
    run.train(data[4:6], factor=1e6)  # the gradients of this window are too large for the scale
    assert_same(snapshot(run.opt, control=False), before)
    assert run.opt.read_lr() == lrs and run.opt.metrics().skipped == 1 and run.opt.metrics().step == 2
    assert run.accelerator.scaler.get_scale() == 2.0**126
    assert not run.prepared.step_was_skipped  # decided on the device: nobody on the host knows
    run.train(data[6:])
    plain.train([*data[:4], *data[6:]])
    assert run.lrs[:2] + run.lrs[3:] == plain.lrs == oracle_lrs(plain.losses, 2)
    assert run.opt.metrics().skipped == 1


def test_the_scale_is_divided_out():
    """A power of two: to the bit."""
    run, plain = with_scaler(2.0**10).train(batches(8)), Run(steps=2, max_grad_norm=0.5).train(batches(8))
    for scaled, want in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert_same_bits(scaled, want)
    assert run.opt.metrics().grad_norm == plain.opt.metrics().grad_norm
