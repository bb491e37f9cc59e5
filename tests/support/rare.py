"""Which of many parametrisations every run of the tests has; the others take --exhaustive, as `make test-all` does."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def few_of(values: Iterable[Any], kept: Callable[[Any], bool]) -> list[Any]:
    """The values of a parameter, those that are not kept marked `exhaustive`."""
    return [pytest.param(value, marks=() if kept(value) else pytest.mark.exhaustive) for value in values]
