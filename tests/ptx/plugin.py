"""pytest -p ptx.plugin: whatever is tested as the CUDA backend on the CPU runs from the PTX that nvcc emitted.

`make ptx` does so with the conformance suite. Products are rounded as the machine rounds them, unless asked otherwise.
"""

import pytest

pytest.register_assert_rewrite("support")

from ptx.grid import SCHEDULES, Execution  # noqa: E402
from ptx.rounding import Rounding  # noqa: E402
from ptx.translating import Program  # noqa: E402

DEVICE = pytest.StashKey()
FOUND = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("ptx")
    group.addoption("--ptx-schedule", choices=SCHEDULES, default="together", help="order of blocks and warps")
    group.addoption("--ptx-seed", type=int, default=0, help="seed of an order that is drawn at random")
    group.addoption("--ptx-ulps", type=int, default=0, help="errors of approximate operations, up to this")


def pytest_configure(config):
    """After the test folders are known, from which this takes what it compiles with."""
    config.stash[FOUND] = {"launches": 0, "seconds": 0.0, "executed": {}}
    try:
        config.stash[DEVICE] = device_for(config)
    except (pytest.skip.Exception, AssertionError) as reason:
        raise pytest.UsageError(f"the PTX cannot be run: {reason}") from None


def device_for(config):
    from support import emulated

    from ptx import libraries
    from ptx.device import Device

    program = Program(libraries.shipped_ptx(), Rounding(ulps=config.getoption("--ptx-ulps")))
    execution = Execution(program, config.getoption("--ptx-schedule"), config.getoption("--ptx-seed"))
    device = Device(execution)
    emulated.module = lambda: device.native
    return device


def pytest_sessionfinish(session):
    """Workers hand on what they ran."""
    device, found = session.config.stash[DEVICE], session.config.stash[FOUND]
    found["launches"] += device.launches
    found["seconds"] += device.seconds
    add_executed(found["executed"], device.execution.program.coverage_by_block())
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ptx"] = found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    ran = getattr(node, "workeroutput", {}).get("ptx")
    if ran:
        found = node.config.stash[FOUND]
        found["launches"] += ran["launches"]
        found["seconds"] += ran["seconds"]
        add_executed(found["executed"], ran["executed"])


def add_executed(to, of):
    """Both: for each function, the instructions of each of its blocks that was executed, and of all."""
    for name, (blocks, total) in of.items():
        known = to.get(name, ({}, total))[0]
        to[name] = ({**known, **blocks}, total)


def pytest_terminal_summary(terminalreporter, config):
    found = config.stash[FOUND]
    executed = sum(sum(blocks.values()) for blocks, _ in found["executed"].values())
    total = sum(total for _, total in found["executed"].values())
    terminalreporter.write_line(
        f"PTX: {found['launches']} launches in {found['seconds']:.0f} s; {executed} of the {total} instructions of "
        f"{len(found['executed'])} functions were executed"
    )
