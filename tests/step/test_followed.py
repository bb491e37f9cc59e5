"""What follows operations instead of running them is refused by name, and leaves nothing behind."""

import pytest
import torch
from support.tensors import assert_same, snapshot
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from greedylr_fused import DeviceSchedule, FusedAdamW, GreedyLR

OPTIONS = {"plain": {}, "driven": {"schedule": GreedyLR(patience=0, smooth=False), "max_grad_norm": 1.0}}
MESSAGE = r"FusedAdamW.step\(\): expected a call that runs, got one within {}.*export the model alone"


class Training(torch.nn.Module):
    """A whole training step as a module."""

    def __init__(self, options):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(3, 2)
        self.opts = [FusedAdamW(self.net.parameters(), lr=0.1, **options)]

    def forward(self, x):
        loss = self.net(x).square().sum()
        loss.backward()
        self.opts[0].step(loss=loss)
        self.opts[0].zero_grad()
        return loss.detach()


def exported(training, x):
    torch.export.export(training, (x,), strict=False)


def jit_traced(training, x):
    torch.jit.trace(training, x)


def made_fx(training, x):
    make_fx(training)(x)


def faked(training, x):
    with FakeTensorMode(allow_non_fake_inputs=True):
        training.opts[0].step(loss=1.0)


WAYS = {
    exported: "torch.export",
    jit_traced: "torch.jit.trace",
    made_fx: "torch.export, make_fx",
    faked: "torch.export",
}


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_that_is_followed_is_refused_and_changes_nothing(options, way, begun):
    training, twin = Training(options), Training(options)
    x = torch.ones(1, 3)
    if begun:
        training(x), twin(x)
    before = snapshot(training.opts[0])
    with pytest.raises(RuntimeError, match=MESSAGE.format(WAYS[way])):
        way(training, x)
    assert_same(snapshot(training.opts[0]), before)
    assert len(training.opts[0].state) == 2 * begun
    training.opts[0].zero_grad()
    for _ in range(2):
        training(x), twin(x)
    assert_same(snapshot(training.opts[0]), snapshot(twin.opts[0]))


def test_what_else_writes_to_the_device_is_refused():
    training = Training(OPTIONS["driven"])
    (opt,) = training.opts
    with FakeTensorMode():
        for call in (lambda: opt.observe(1.0), lambda: opt.set_lr(5e-4)):
            with pytest.raises(RuntimeError, match=r"(observe|set_lr)\(\): expected a call that runs"):
                call()
    training(torch.ones(1, 3))
    assert opt.metrics().step == 1 and opt.read_lr() == [0.1 / OPTIONS["driven"]["schedule"].factor]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_construction_where_tensors_have_no_memory(options):
    with FakeTensorMode():
        net = torch.nn.Linear(3, 2)
        with pytest.raises(RuntimeError, match=r"FusedAdamW\(\): expected a call that runs.*torch.optim.AdamW"):
            FusedAdamW(net.parameters(), **options)
    opt = FusedAdamW(net.parameters(), **options)  # made there, and stepped here
    for param in net.parameters():
        param.grad = torch.ones(param.shape)
    for _ in range(2):
        with pytest.raises((RuntimeError, TypeError), match=r"a parameter of type \w+ on cpu without memory"):
            opt.step(loss=1.0)
    assert not opt.state


def test_a_device_schedule_that_is_followed():
    param = torch.nn.Parameter(torch.zeros(2))
    opt = torch.optim.SGD([param], lr=torch.tensor(0.1))
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"DeviceSchedule\(\): expected a call that runs"):
        DeviceSchedule(opt, OPTIONS["driven"]["schedule"])
    schedule = DeviceSchedule(opt, OPTIONS["driven"]["schedule"])
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"DeviceSchedule.step\(\): expected a call that runs"):
        schedule.step(loss=1.0)
    schedule.step(loss=1.0)
    assert schedule.metrics().step == 1
