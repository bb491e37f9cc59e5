"""torch's CUDA graph and the stream that it is captured on, put right again after a capture that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: Graphs whose capture failed: PyTorch destroys none safely that was never ended.
_FAILED: list[torch.cuda.CUDAGraph] = []


class SideStream:
    """Stream for the steps before a capture, and for the capture: it waits for the current stream, which afterwards
    waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, step: Callable[[], Any]) -> Any:
        """Return what `step` returns, run on this stream."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                result = step()
        finally:
            current.wait_stream(self.stream)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(current)  # which uses memory of this one
        return result


class Graph:
    """torch's CUDA graph, with an error that helps if a body cannot be captured.

    Args:
        pool: memory pool to share, or None.
        side: stream to capture on, the one of the steps before, whose device is the parameters'.
    """

    def __init__(self, pool: Any, side: SideStream) -> None:
        self._graph, self._pool, self._stream = torch.cuda.CUDAGraph(), pool, side.stream

    def capture(self, run: Callable[[], Any]) -> Any:
        """Return what `run` returns, in memory that each replay writes to.

        Raises:
            RuntimeError: something in it waits for the device.
        """
        current = torch.cuda.current_stream(self._stream.device)
        # "thread_local": a DataLoader's thread may pin memory meanwhile.
        options = dict(pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.device(self._stream.device), torch.cuda.graph(self._graph, **options):
                return run()
        except BaseException as error:
            with torch.cuda.device(torch.cuda.current_device()):  # which setting a stream changes
                self._put_right(current)
            if not isinstance(error, RuntimeError):
                raise
            raise RuntimeError(
                "CapturedStep: expected a body in which the host never waits for the device, got one that could not be "
                f"captured as a CUDA graph ({error}); move .item(), float(), print() of tensors, .cpu(), boolean "
                "indices and gradient scalers out of it"
            ) from error

    def replay(self) -> None:
        self._graph.replay()

    def _put_right(self, current: torch.cuda.Stream) -> None:
        """Undo what a failed capture leaves: its stream is still current, and the random number generator still counts
        for the graph, until another capture ends.
        """
        _FAILED.append(self._graph)
        torch.cuda.set_stream(current)
        with (
            contextlib.suppress(RuntimeError),
            torch.cuda.device(self._stream.device),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream, capture_error_mode="thread_local"),
        ):
            torch.zeros(1, device=self._stream.device)
        torch.cuda.set_stream(current)
