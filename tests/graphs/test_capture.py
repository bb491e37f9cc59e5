"""What a CUDA graph captured with the table asks of the host, where there is no GPU: capture itself is pretended."""

import gc
import weakref

import pytest
import torch
from support.tensors import parameter

from greedylr_fused import Climb, FusedAdamW, Linear, capture


@pytest.fixture
def opt():
    params = [parameter(torch.randn(n), torch.randn(n)) for n in (5, 3)]
    opt = FusedAdamW(params, backend="cpu")
    opt.step()
    return opt


@pytest.fixture
def pretend(monkeypatch):
    """Sets whether a capture is under way."""
    now = [False]
    monkeypatch.setattr(capture.torch.cuda, "is_current_stream_capturing", lambda: now[0])

    def set_to(capturing):
        now[0] = capturing

    return set_to


def refreshed(opt, keeps):
    """What a step of this table would send, if the table were a GPU's."""
    table, sent = opt._engine.table, []

    def send(target, words):
        sent.append(words.clone())
        return words if keeps else None

    table.device, table.row = torch.device("cuda"), table.row.clone()
    opt._engine.backend.send = send
    assert opt._engine.ready(opt.param_groups, opt.state) is opt._engine.backend
    table.device = torch.device("cpu")
    return sent


@pytest.mark.parametrize("keeps", [False, True], ids=["in_kernel_parameters", "through_staging_memory"])
def test_after_a_capture_every_step_sends_its_own(opt, pretend, keeps):
    """A replay may have come between, and it sends what was captured."""
    assert refreshed(opt, keeps) == []
    pretend(True)
    assert len(refreshed(opt, keeps)) == 2
    pretend(False)
    assert len(refreshed(opt, keeps)) == 2
    assert len(refreshed(opt, keeps)) == 2


def test_what_a_graph_uses_outlives_the_table(opt, pretend):
    """The table's memory, and the backend's."""
    pretend(True)
    refreshed(opt, keeps=False)
    pretend(False)
    table, backend = weakref.ref(opt._engine.table), weakref.ref(opt._engine.backend)
    opt._engine.discard()
    gc.collect()
    assert table() is not None and backend() is not None


def test_without_a_graph_the_table_is_let_go(opt):
    table = weakref.ref(opt._engine.table)
    opt._engine.discard()
    gc.collect()
    assert table() is None


def test_a_table_that_its_capturer_keeps_is_let_go(opt, pretend):
    """As a CapturedStep does, which drops it with its graph; captured by another as well, it stays."""
    opt._engine.captures.append([])
    pretend(True)
    refreshed(opt, keeps=True)
    pretend(False)
    reads, table = opt._engine.captures.pop(), weakref.ref(opt._engine.table)
    opt._engine.discard()
    assert any(kept is table() for kept in reads) and sum(isinstance(kept, torch.Tensor) for kept in reads) == 2
    del reads
    gc.collect()
    assert table() is None


@pytest.mark.parametrize("captured", [False, True])
def test_the_memory_of_losses_and_weights_is_kept_for_a_graph_alone(opt, pretend, captured):
    """Kernels of the graph read it at every replay."""
    given = [torch.tensor(value, requires_grad=True) for value in (1.0, 2.0, 3.0)]
    opt._engine.device = torch.device("cuda")
    pretend(captured)
    opt.observe(given[0], weight=given[1])
    opt._engine.keep(given[2])
    pretend(False)
    kept = {tensor.data_ptr() for tensor in opt._engine.captures[0]}
    assert kept == ({tensor.data_ptr() for tensor in given} if captured else set())


def test_what_a_search_copies_outlives_it_in_a_graph(opt, pretend):
    """Memory is not let go within a capture, and then stays for the graph."""
    config = Climb(base=Linear(400, warmup_steps=4))
    opt = FusedAdamW(opt.param_groups[0]["params"], schedule=config, backend="cpu")
    opt.step(loss=1.0)
    engine, table = opt._engine, weakref.ref(opt._engine.backup.table)
    pretend(True)
    refreshed(opt, keeps=False)
    engine.device = torch.device("cuda")
    engine.end_search()
    assert engine.backup is not None
    pretend(False)
    engine.end_search()
    gc.collect()
    assert engine.backup is None and table() is not None
    engine.captures[0].clear()
    gc.collect()
    assert table() is None
