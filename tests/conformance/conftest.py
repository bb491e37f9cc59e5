"""The conformance suite's own fixtures."""

import pytest

from greedylr_fused import watch


@pytest.fixture(params=["compiled", "python"])
def watched(request, monkeypatch):
    """Both ways to look at tensors between steps, for the tests of what must be noticed."""
    if request.param == "python":
        monkeypatch.setattr(watch, "_native", None)
    elif reason := watch.unavailable():
        pytest.skip(reason)
