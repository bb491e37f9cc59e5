"""What a backup asks of a GPU's driver and allocators, with stand-ins for them."""

import contextlib
import types

import pytest
import torch

from greedylr_fused.tensors import Backup, backup

CUDA = torch.device("cuda")


@pytest.fixture
def mapped(monkeypatch):
    """A driver that maps host memory 4096 bytes further on."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(backup, "device_address", lambda host: host + 4096)


def test_kept_memory_of_the_host_has_the_address_that_the_driver_gives(mapped, monkeypatch):
    room = torch.zeros(48, dtype=torch.uint8)
    asked = []
    monkeypatch.setattr(backup, "device_address", lambda host: asked.append(host) or host + 4096)
    assert backup._address(room[12:], CUDA) == room.data_ptr() + 4096 + 12
    assert asked == [room.data_ptr()], "of the memory's begin, which the driver knows"
    assert backup._address(room[12:], torch.device("cpu")) == room.data_ptr() + 12


def test_a_driver_without_mapped_memory_is_refused(mapped, monkeypatch):
    monkeypatch.setattr(backup, "device_address", lambda host: None)
    with pytest.raises(RuntimeError, match='got a driver that maps none; choose where="device"'):
        backup._address(torch.zeros(1), CUDA)


class Recorded:
    """A tensor of which allocators are told that the stream uses it."""

    def __init__(self, where):
        self.is_cuda, self.told = where == "cuda", []

    def numel(self):
        return 1

    def record_stream(self, stream):
        self.told.append(stream)

    def as_strided(self, size, stride):
        return self

    def to(self, device, non_blocking):
        assert non_blocking and device == CUDA
        self.told.append("copied from")


def test_allocators_are_told_of_memory_that_is_let_go(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    own = Backup("host")
    words, gone, stays = Recorded("cuda"), Recorded("cpu"), Recorded("cpu")
    addresses = types.SimpleNamespace(device=CUDA)
    own.table = types.SimpleNamespace(addresses=addresses, memory=[words, gone, stays])
    own._let_go({(None, "param"): stays})
    assert (words.told, gone.told, stays.told) == (["current"], ["copied from"], [])
    own.drop()
    assert own.table is None and stays.told == ["copied from"]
