"""The device that runs PTX, and programs for it."""

import pytest

from ptx import libraries
from ptx.device import Device
from ptx.grid import Execution
from ptx.rounding import AS_ON_THE_HOST
from ptx.translating import Program


@pytest.fixture(scope="session")
def ptx() -> str:
    """The text that nvcc emitted."""
    return libraries.shipped_ptx()


@pytest.fixture(scope="session")
def program(ptx) -> Program:
    return Program(ptx, AS_ON_THE_HOST)


@pytest.fixture(scope="session")
def device(program) -> Device:
    return Device(Execution(program))
