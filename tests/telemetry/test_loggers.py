"""Loggers: what `metrics()` and the recorder hand to TensorBoard, W&B, MLflow and the like."""

import math

import pytest
import torch
from support.telemetry import optimizer, step
from support.tensors import latest

from greedylr_fused import FusedAdamW
from greedylr_fused.step.mirror import Metrics
from greedylr_fused.telemetry import Recorder, tensorboard

NOTHING = dict(step=0, lr=(0.1,), loss=math.nan, smoothed_loss=math.nan, best=math.inf)
NOTHING |= dict(grad_norm=math.nan, grad_norm_l1=math.nan, skipped=0)


def test_what_was_not_measured_is_left_out():
    assert list(Metrics(**NOTHING).scalars()) == ["loss", "lr", "skipped", "skipped_spikes"]
    assert math.isnan(Metrics(**NOTHING).scalars()["loss"]), "a NaN loss is to be seen"
    all_of_it = NOTHING | dict(loss=1.0, smoothed_loss=2.0, best=3.0, grad_norm=math.inf, grad_norm_l1=4.0, skipped=5)
    all_of_it |= dict(skipped_spikes=2)
    found = Metrics(**all_of_it).scalars()
    assert found == {"loss": 1.0, "smoothed_loss": 2.0, "best": 3.0, "grad_norm": math.inf, "grad_norm_l1": 4.0} | {
        "lr": 0.1,
        "skipped": 5.0,
        "skipped_spikes": 2.0,
    }
    assert all(type(value) is float for value in found.values())
    assert "best" not in Metrics(**(NOTHING | {"best": -math.inf})).scalars(), 'none yet, with mode="max"'


def test_names():
    several = Metrics(**(NOTHING | {"lr": (0.1, 0.2)}))
    names = ["opt/loss", "opt/lr/0", "opt/lr/1", "opt/skipped", "opt/skipped_spikes"]
    assert list(several.scalars("opt/")) == names


class Calls(list):
    """Stands in for `wandb.Run.log(data, step=None, commit=None)` and `mlflow.log_metrics(metrics, step=None)`."""

    def log(self, data, step=None, commit=None):
        assert commit is None
        self.append((step, data))


def test_loggers_get_what_metrics_shows():
    opt = optimizer()
    calls, shown = Calls(), []
    with Recorder(opt, calls.log, prefix="opt/", grad_norms=True):
        for i in range(5):
            step(opt, 3.0 - i)
            shown.append(latest(opt).scalars("opt/"))
    assert [number for number, _ in calls] == [1, 2, 3, 4, 5]
    assert [data for _, data in calls] == shown
    assert {"opt/grad_norm_l1", "opt/best", "opt/lr/0", "opt/lr/1"} <= calls[0][1].keys()


def test_a_skipped_step_has_no_loss():
    opt = optimizer()
    calls = Calls()
    with Recorder(opt, calls.log):
        step(opt, 3.0)
        step(opt, 4.0, skip=True)
        step(opt, math.nan)
    losses = [data.get("loss", "none") for _, data in calls]
    assert losses[:2] == [3.0, "none"] and math.isnan(losses[2])
    assert "smoothed_loss" not in calls[1][1] and "grad_norm" not in calls[1][1] and calls[1][1]["skipped"] == 1.0


def test_every_so_many_steps(tmp_path):
    """Multiples, so that a run that goes on keeps the rhythm; files get all."""
    opt = optimizer()
    calls = Calls()
    with Recorder(opt, calls.log, tmp_path / "run.jsonl", every=4):
        for _ in range(6):
            step(opt)
    resumed = optimizer()
    resumed.load_state_dict(opt.state_dict())
    with Recorder(resumed, calls.log, every=4):
        for _ in range(6):
            step(resumed)
    assert [number for number, _ in calls] == [4, 8, 12]
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 6


def test_a_logger_that_raises_is_dropped(tmp_path):
    """Nobody else misses a step, and training goes on."""
    opt = optimizer()
    before, after = Calls(), Calls()

    def fails(metrics, number):
        if number == 3:
            raise ValueError("no such project")

    with Recorder(opt, before.log, fails, after.log, capacity=4) as recorder:
        step(opt)
        step(opt)
        step(opt)
        with pytest.warns(
            RuntimeWarning,
            match=r"the logger <function .*fails.*: expected log\(metrics, step\).* got ValueError.*no such project",
        ):
            step(opt)
        step(opt)
        recorder.drain()
    numbers = [[number for number, _ in calls] for calls in (before, after)]
    assert numbers == [[1, 2, 3, 4, 5]] * 2


def test_interrupted_while_logging():
    """What was not handed over comes later, from the step on with which it was interrupted."""
    opt = optimizer()
    calls, interrupts = [], [2]

    def log(metrics, number):
        if number in interrupts:
            interrupts.remove(number)
            raise KeyboardInterrupt
        calls.append(number)

    with Recorder(opt, log) as recorder:
        for _ in range(3):
            step(opt)
        with pytest.raises(KeyboardInterrupt):
            recorder.drain()
        assert calls == [1]
    assert calls == [1, 2, 3]


def test_a_logger_that_drains():
    opt = optimizer()
    calls = []

    def log(metrics, number):
        calls.append(number)
        recorder.drain()
        opt.metrics()

    recorder = Recorder(opt, log)
    for _ in range(3):
        step(opt)
    recorder.close()
    assert calls == [1, 2, 3]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    opt = FusedAdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1, max_grad_norm=1.0)
    writer = SummaryWriter(tmp_path)
    with Recorder(opt, tensorboard(writer), prefix="optimizer/"):
        for i in range(4):
            step(opt, float(i))
    writer.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    names = ["loss", "smoothed_loss", "lr", "grad_norm", "skipped", "skipped_spikes"]
    assert sorted(read.Tags()["scalars"]) == sorted(f"optimizer/{name}" for name in names)
    assert [(event.step, event.value) for event in read.Scalars("optimizer/loss")] == [(i + 1, i) for i in range(4)]


def test_a_writer_is_no_logger_by_itself(tmp_path):
    class Writer:
        def add_scalar(self, name, value, step):
            """As TensorBoard's."""

    with pytest.raises(TypeError, match=r"write tensorboard\(writer\) for a SummaryWriter"):
        Recorder(optimizer(), Writer())
    with pytest.raises(TypeError, match="expected a SummaryWriter, got str"):
        tensorboard("runs/first")
