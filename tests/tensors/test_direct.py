"""Where PyTorch's C functions find a tensor in its Python object."""

import ctypes

import pytest
import torch

from greedylr_fused.tensors import direct


def test_the_functions_see_what_python_sees():
    found = direct.find()
    if found is None:
        pytest.skip("this Python or PyTorch keeps tensors in another way; DLPack is used then")
    tensor = torch.randn(3, 4)[1:, ::2]
    data, dim, sizes, strides, _ = (ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2)(f) for f in found[:5])
    handle, n = id(tensor) + found[5], ctypes.c_int64()
    address, row = ctypes.c_void_p(), ctypes.POINTER(ctypes.c_int64)()
    assert data(handle, ctypes.addressof(address)) == 0 and address.value == tensor.data_ptr()
    assert dim(handle, ctypes.addressof(n)) == 0 and n.value == 2
    for function, want in ((sizes, tensor.shape), (strides, tensor.stride())):
        assert function(handle, ctypes.addressof(row)) == 0 and tuple(row[:2]) == tuple(want)


def test_what_is_not_found_is_not_used(monkeypatch):
    monkeypatch.setattr(direct, "_FUNCTIONS", ("no_such_function",))
    assert direct.find() is None
    monkeypatch.setattr(direct, "_places", lambda tensor: {16, 24})
    assert direct.find() is None, "ambiguous"
