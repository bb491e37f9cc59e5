"""Each way in which a trial of Climb and its control may end, on every backend."""

import pytest
from support.search_traces import assert_same, trace, wanted
from support.searches import VERDICTS, verdict


@pytest.mark.parametrize("late", [False, True])
def test_verdicts(backend, device, late):
    """Each way in which a trial and its control may end, in one test: no part of it is left out anywhere."""
    for name in VERDICTS:
        config, losses = verdict(name, late=late)
        assert_same(trace(backend, device, config, losses), wanted(config, losses), (name, config))
