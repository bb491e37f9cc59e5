"""Tensors beyond 2^31 elements are updated to their last element."""

import pytest
import torch
from support.tensors import Before, Measured, compare, parameter, short, torch_step

from greedylr_fused import FusedAdamW

#: Where a 32-bit number of elements or bytes would wrap, and the ends.
N = 2**31 + 2**20 + 7
AROUND = (0, 2**29, 2**30, 2**31, N)
REACH = 1021  # elements on each side
STATES = ("exp_avg", "exp_avg_sq")


def samples(n):
    return [slice(max(0, at - REACH), min(n, at + REACH)) for at in AROUND if at <= n]


def check(machine, n, dtype, **options):
    """Two steps; every sample against float64, with torch's fused AdamW over the same numbers as the measure."""
    with torch.random.fork_rng([0] if machine.on_gpu else []):
        torch.manual_seed(5)
        param = parameter(torch.empty(n, dtype=dtype, device=machine.device).normal_())
        param.grad = torch.empty_like(param).normal_()
    opt = FusedAdamW([param], lr=0.01, weight_decay=0.1, backend=machine.backend, **options)
    measured = Measured()
    opt.step()
    for step in (1.0, 2.0):
        state = opt.state[param]
        befores = []
        for at in samples(n):
            moments = {name: state[name][at].clone() for name in STATES}
            group = dict(opt.param_groups[0])
            befores.append(Before(param.detach()[at].clone(), param.grad[at].clone(), moments, step, group))
        opt.step()
        results = torch_step(befores, lambda grad: grad)
        for at, before, theirs in zip(samples(n), befores, results, strict=True):
            new = param.detach()[at]
            moments = {name: state[name][at].clone() for name in STATES}
            for now, then in ((new, before.param), (moments["exp_avg_sq"], before.moments["exp_avg_sq"])):
                assert (now != then).float().mean() > 0.5, f"{at} did not change"
            compare(measured, before, theirs, new.clone(), moments, 1.0)
        assert float(state["step"]) == step + 1
    measured.check()


@pytest.mark.parametrize("clip", [None, 1e9], ids=["plain", "clipping"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
def test_beyond_2_to_the_31(gpu, dtype, clip):
    torch.cuda.empty_cache()
    needed, free = 4 * N * dtype.itemsize, torch.cuda.mem_get_info()[0]
    if free < 1.05 * needed:
        pytest.skip(f"needs {1.05 * needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    check(gpu, N, dtype, max_grad_norm=clip)
    torch.cuda.empty_cache()


def test_rehearsal_of_the_samples(machine):
    """The same check over a tensor that has room everywhere: its ends."""
    check(machine, 5000, torch.float32)
