"""Proof that nothing waits: every way by which the host would read a number of the device is refused."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support import lagging

READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::allclose", "aten::nonzero"}


class NoHostRead(TorchDispatchMode):
    """Refuses every operation by which the host waits for a number."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in READS:
            raise AssertionError(f"host read: {function}")
        return function(*args, **(kwargs or {}))


def as_of_a_device(monkeypatch):
    """For the optimizers that are constructed from now on: on a CPU, too, the state is read from copies alone."""
    known = lagging.arrivals
    lagging.install(monkeypatch, lambda c: lagging.Copied(c) if c.device.type == "cpu" else known(c))


@contextlib.contextmanager
def no_host_read(monkeypatch, tensors):
    """On a CPU, also no `tolist`, `numpy` or `float` of memory that would be the device's."""
    device_memory = {t.untyped_storage().data_ptr() for t in tensors}

    def guarded(name):
        real = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            if self.untyped_storage().data_ptr() in device_memory:
                raise AssertionError(f"host read: Tensor.{name}")
            return real(self, *args, **kwargs)

        return method

    with monkeypatch.context() as patch, NoHostRead():
        for name in ("tolist", "numpy", "item", "__float__", "__int__", "__bool__", "__index__"):
            patch.setattr(torch.Tensor, name, guarded(name))
        on_gpu = any(t.is_cuda for t in tensors)
        if on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
