"""Tensors of subclasses without memory of their own, as low-bit formats are: refused by name, before any change."""

import copy

import pytest
import torch
from support.tensors import assert_same, parameter, snapshot

from greedylr_fused import FusedAdamW


class Coded(torch.Tensor):
    """Float numbers that stand as codes elsewhere, as in torchao's optimizers."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, device=codes.device, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Coded(args[0].codes.clone())
        raise NotImplementedError(str(function))

    def __repr__(self):
        return "Coded()"


def coded(device):
    return Coded(torch.zeros(4, dtype=torch.uint8, device=device))


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_in_a_checkpoint(device, backend, name):
    param = parameter(torch.zeros(4, device=device), torch.ones(4, device=device))
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0][name] = coded(device)
    before = snapshot(opt)
    with pytest.raises(
        TypeError, match=rf'state\[0\]\["{name}"\]: expected a dense Tensor .* got a Coded of torch.float32'
    ):
        opt.load_state_dict(saved)
    assert_same(snapshot(opt), before)


def test_as_a_parameter(device, backend):
    plain, other = (
        parameter(torch.zeros(4, device=device), torch.ones(4, device=device)),
        torch.nn.Parameter(coded(device)),
    )
    other.grad = coded(device)
    opt = FusedAdamW([plain, other], backend=backend)
    for _ in range(2):
        with pytest.raises(
            TypeError, match="expected plain tensors .*, got a parameter of type Coded .* without memory of its own"
        ):
            opt.step()
    assert not opt.state and torch.equal(plain, torch.zeros(4, device=device))


def test_as_a_gradient(device, backend):
    param = parameter(torch.zeros(4, device=device), torch.ones(4, device=device))
    opt = FusedAdamW([param], backend=backend)
    opt.step()
    before = snapshot(opt)
    param.grad = coded(device)
    with pytest.raises(RuntimeError, match="got a Coded on .* without memory of its own; convert it") as caught:
        opt.step()
    assert "backward" not in str(caught.value)
    assert_same(snapshot(opt), before)
