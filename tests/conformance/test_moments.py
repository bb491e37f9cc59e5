"""Moments that a kernel cannot read as its table says are refused, since it would read past their end."""

import pytest
import torch
from support.tensors import assert_same_bits, parameter, stepped

from greedylr_fused import FusedAdamW


@pytest.mark.parametrize(
    ("dtype", "name", "moment"),
    [(torch.bfloat16, "exp_avg_sq", torch.float32), (torch.float32, "exp_avg", torch.bfloat16)]
    + [(torch.complex64, name, torch.float32) for name in ("exp_avg", "exp_avg_sq")],
)
def test_a_moment_of_another_dtype_than_the_other_is_refused(device, backend, dtype, name, moment):
    param = parameter(torch.ones(5, dtype=dtype, device=device), torch.ones(5, dtype=dtype, device=device))
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    before = param.detach().clone()
    opt.state[param][name] = torch.zeros(5, dtype=moment, device=device)
    with pytest.raises(TypeError, match=r"state 'exp_avg.*: expected moments of one dtype, .*got "):
        opt.step()
    assert_same_bits(param, before)


def test_real_moments_of_a_complex_parameter_are_refused(device, backend):
    param = parameter(*(torch.ones(5, dtype=torch.complex64, device=device) for _ in range(2)))
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    opt.state[param].update(exp_avg=torch.zeros(5, device=device), exp_avg_sq=torch.zeros(5, device=device))
    with pytest.raises(TypeError, match="complex if the parameter is"):
        opt.step()


def test_a_moment_without_memory_is_refused_until_it_is_back(device, backend):
    """Frameworks that offload states empty their storage where it is."""
    param = parameter(torch.ones(100, device=device), torch.ones(100, device=device))
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    moment = opt.state[param]["exp_avg_sq"]
    size, values = moment.untyped_storage().size(), moment.clone()
    moment.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="a state 'exp_avg_sq' of type Tensor on .* without memory"):
        opt.step()
    moment.untyped_storage().resize_(size)
    moment.copy_(values)
    stepped(opt)
