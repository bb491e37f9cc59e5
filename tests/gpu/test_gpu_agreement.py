"""All backends for a device agree: each within the conformance suite's tolerance, decisions bit for bit."""

import pytest
import torch
from machines import RESTLESS, Machine, Training
from support.tensors import stepped

from greedylr_fused import available_backends

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
OPTIONS = {
    "float32": {},
    "bfloat16": {"dtypes": (BF16,)},
    "float16_with_float32_moments": {"dtypes": (F16,), "state_dtype": F32},
    "mixed": {"dtypes": (F32, BF16, F16), "amsgrad": True, "maximize": True},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_every_step_is_within_the_tolerance(machine, options):
    training = Training(machine, schedule=None, **OPTIONS[options])
    for i in range(4):
        training.opt.zero_grad()
        training.feed(i)
        training.loss().backward()
        stepped(training.opt)


def test_the_same_losses_give_the_same_rates(machine):
    """Losses that do not depend on the parameters, so that nothing but the decisions is compared."""
    others = [name for name, reason in available_backends(machine.device).items() if reason is None]
    assert machine.backend in others and "reference" in others
    traces = {}
    for name in others:
        training = Training(Machine(machine.device, name), sizes=(129, 1), schedule=RESTLESS)
        traces[name] = []
        for i in range(30):
            training.opt.zero_grad()
            training.feed(i)
            training.loss().backward()
            training.opt.step(loss=float((i * 7) % 11))
            traces[name].append(training.opt.read_lr())
    assert all(trace == traces["reference"] for trace in traces.values())
    assert len(set(map(tuple, traces["reference"]))) > 3
