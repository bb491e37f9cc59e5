"""An optimizer given to another process, which goes on with the same memory, as torch's does."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
import torch.multiprocessing as mp
from greedylr_fused import FusedAdamW, GreedyLR

torch.set_num_threads(1)


def filled(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def step(opt, seed):
    filled(opt.param_groups[0]["params"], seed)
    opt.step(loss=float(seed)) if getattr(opt, "schedule", None) else opt.step()


def child(optimizers, done):
    for opt in optimizers:
        step(opt, 2)
    done.wait(60)


def build(kind, **options):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size)) for size in (4, 300)]
    opt = kind(params, lr=0.01, **options)
    step(opt, 1)
    return opt


def given_to(method):
    scheduled = {"schedule": GreedyLR(patience=0, smooth=False)}
    optimizers = [build(torch.optim.AdamW), build(FusedAdamW), build(FusedAdamW, **scheduled)]
    context = mp.get_context(method)
    done = context.Event()
    process = context.Process(target=child, args=(optimizers, done), daemon=True)
    process.start()
    done.set()
    process.join(90)
    assert process.exitcode == 0, process.exitcode
    torchs, *ours = optimizers
    for opt in optimizers:
        counts = [float(state["step"]) for state in opt.state.values()]
        assert counts == [2.0, 2.0], (type(opt), counts)
        step(opt, 3)
        assert [float(state["step"]) for state in opt.state.values()] == [3.0, 3.0]
    for a, b in zip(torchs.param_groups[0]["params"], ours[0].param_groups[0]["params"]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


if __name__ == "__main__":
    given_to(sys.argv[1])
"""


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.exhaustive)])
def test_a_stepped_optimizer_as_an_argument_of_a_process(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-2000:]
