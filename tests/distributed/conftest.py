"""Ranks that stay for all tests of a file."""

import pytest
from support.ranks import Ranks


@pytest.fixture(scope="module")
def ranks(request):
    """Calls a case on each of the `WORLD` ranks of the file, whose processes start once for all of its tests."""
    with Ranks(request.module.WORLD) as ranks:
        yield ranks
