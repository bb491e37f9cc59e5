"""The conformance suite's own fixtures."""

import pytest

from greedylr_fused import watch


@pytest.fixture(params=["compiled", "dlpack", "python"])
def watched(request, monkeypatch):
    """All ways to look at tensors between steps, for the tests of what must be noticed."""
    if request.param == "dlpack":
        monkeypatch.setattr(watch, "_direct", lambda: None)
    if request.param == "python":
        monkeypatch.setattr(watch, "_native", None)
    elif reason := watch.unavailable():
        pytest.skip(reason)
