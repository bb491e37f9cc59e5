"""What a capture that fails leaves behind is put right; torch.cuda is a model of what PyTorch's sources do then."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from support.graph_stand_in import Body, StandIn, batch, standing_in, twins

from greedylr_fused.graphs import captured_step
from greedylr_fused.graphs.torch_graph import Graph, SideStream

__all__ = ["standing_in", "twins"]


class Stream:
    def __init__(self, device):
        self.device, self.waits = torch.device(device), []

    def wait_stream(self, other):
        self.waits.append(other)


class Cuda:
    """The state of one device: its current stream, what captures, and whether the generator counts for a graph."""

    def __init__(self):
        self.default = self.current = Stream("cuda:1")
        self.capturing = self.invalid = self.generator_captures = False
        self.captured_on, self.device = [], 0

    def synchronize(self):
        if self.capturing:
            self.invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")

    def stream(self, stream):
        return Within(self, stream)

    def set_stream(self, stream):
        """Of another device, it makes that one current."""
        self.current, self.device = stream, stream.device.index

    def on_device(self, device):
        index = device if isinstance(device, int) else device.index
        return OnDevice(self, index)

    def graph(self, graph, **options):
        return Capture(self, graph, options)


class Within:
    def __init__(self, cuda, stream):
        self.cuda, self.wanted = cuda, stream

    def __enter__(self):
        self.before, self.cuda.current = self.cuda.current, self.wanted

    def __exit__(self, *_):
        self.cuda.current = self.before


class OnDevice(Within):
    def __enter__(self):
        self.before, self.cuda.device = self.cuda.device, self.wanted

    def __exit__(self, *_):
        self.cuda.device = self.before


class Capture(Within):
    """Ends the capture before it restores the stream, and throws if the capture became invalid, as torch.cuda.graph."""

    def __init__(self, cuda, graph, options):
        super().__init__(cuda, options["stream"])
        self.options = options

    def __enter__(self):
        super().__enter__()
        self.cuda.capturing = self.cuda.generator_captures = True
        self.cuda.captured_on.append(self.cuda.current)

    def __exit__(self, *_):
        self.cuda.capturing = False
        if self.cuda.invalid:
            self.cuda.invalid = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.generator_captures = False
        super().__exit__()


class Tensor:
    pass


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    model = SimpleNamespace(
        CUDAGraph=type("CUDAGraph", (), {"replay": lambda self: None}),
        Stream=Stream,
        stream=cuda.stream,
        current_stream=lambda device: cuda.current,
        set_stream=cuda.set_stream,
        device=cuda.on_device,
        current_device=lambda: cuda.device,
        graph=cuda.graph,
        synchronize=cuda.synchronize,
    )
    monkeypatch.setattr("greedylr_fused.graphs.torch_graph.torch.cuda", model)
    monkeypatch.setattr("greedylr_fused.graphs.torch_graph.torch.zeros", lambda *_, **__: Tensor())
    monkeypatch.setattr("greedylr_fused.graphs.torch_graph._FAILED", [])
    return cuda


def test_a_body_that_waits(cuda):
    side = SideStream(torch.device("cuda:1"))
    graph = Graph(None, side)
    torchs = weakref.ref(graph._graph)
    with pytest.raises(
        RuntimeError, match=r"expected a body .*could not be captured.*previous error during capture.*move .item\(\)"
    ):
        graph.capture(cuda.synchronize)
    assert cuda.current is cuda.default and cuda.device == 0
    assert not cuda.capturing and not cuda.generator_captures
    del graph
    gc.collect()
    assert torchs() is not None, "its destruction is not safe"
    assert Graph(None, side).capture(lambda: 3) == 3 and cuda.captured_on == [side.stream] * 3


def test_a_body_with_an_error_of_its_own(cuda):
    """The capture itself ends well."""

    def body():
        raise KeyError("batch")

    with pytest.raises(KeyError, match="batch"):
        Graph(None, SideStream(torch.device("cuda:1"))).capture(body)
    assert cuda.current is cuda.default and not cuda.generator_captures


def test_steps_before_the_capture_run_on_its_stream(cuda):
    side, seen = SideStream(torch.device("cuda:1")), []
    assert side.run(lambda: seen.append(cuda.current)) is None
    with pytest.raises(ZeroDivisionError):
        side.run(lambda: 1 / 0)
    assert seen == [side.stream] and side.stream.waits == [cuda.default] * 2
    assert cuda.default.waits == [side.stream] * 2 and cuda.current is cuda.default


def test_a_step_that_is_destroyed_while_something_captures(twins, monkeypatch):
    """It cannot wait for its last replay then: what the graph reads is kept until the next one can."""
    _, _, step = twins
    monkeypatch.setattr(captured_step, "_LEFT", [])
    monkeypatch.setattr(captured_step, "capturing", lambda device: True)
    graph = weakref.ref(step._graph)
    step.__del__()
    vars(step).update(_graph=None)
    assert graph() is not None and len(captured_step._LEFT) == 1
    monkeypatch.setattr(captured_step, "capturing", lambda device: False)
    step.reset()
    assert captured_step._LEFT == []


def test_what_the_body_returns_is_detached(standing_in):
    class WithGraph(Body):
        def __call__(self, x):
            super().__call__(x)
            return {"loss": torch.nn.functional.linear(x["inputs"], *self.params).sum()}

    body = WithGraph()
    StandIn.optimizer = body.opt
    step = captured_step.CapturedStep(body, body.opt, warmup=1)
    for i in range(3):
        assert not step(batch(i))["loss"].requires_grad
