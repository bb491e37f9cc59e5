"""The conformance suite's own fixtures."""

import os

import pytest

from greedylr_fused.tensors import watch

WAYS = ["compiled", "dlpack", "python"]
if os.environ.get("TRITON_INTERPRET") == "1":
    # The kernels get the same table however tensors are looked at: with those that take milliseconds, one way.
    WAYS = WAYS[-1:] if watch.unavailable() else WAYS[:1]


@pytest.fixture(params=WAYS)
def watched(request, monkeypatch):
    """All ways to look at tensors between steps, for the tests of what must be noticed."""
    if request.param == "dlpack":
        monkeypatch.setattr(watch, "_direct", lambda: None)
    if request.param == "python":
        monkeypatch.setattr(watch, "_native", None)
    elif reason := watch.unavailable():
        pytest.skip(reason)
