"""A device of one multiprocessor that runs kernels from PTX, under the host code of the real module `_cuda`."""

import ctypes
import time
import traceback
from collections.abc import Callable

from support import emulated

from ptx import libraries
from ptx.grid import Execution

LAUNCHER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
RESIDENT = 3  # blocks at once: few, so that warps take several chunks, and more than two, so that they differ
DRIVER = 13000
FAST, SLOW = 2, 64  # operations in float for one in double


class Device:
    """There is one in a process, since the library has one launcher.

    Attributes:
        native: the module, as the package's `_cuda`.
        execution: how launches are run; of one seed, each launch draws an order of its own.
        launches: how many there were.
        seconds: what they took.
    """

    def __init__(self, execution: Execution) -> None:
        path = libraries.linked_module()
        self.native = emulated.load(path)
        self.execution = execution
        self.launches = 0
        self.seconds = 0.0
        self._failure: BaseException | None = None
        self._library = ctypes.CDLL(str(path))
        self._launcher = LAUNCHER(self._launch)  # as long as the library calls it
        self.set_up()

    def set_up(self, *, driver: int = DRIVER, ratio: int = FAST) -> None:
        """What the driver says of its age, on which the size of parameters depends, and of the device's speed at
        double, on which depends how tables that are made from now on measure.
        """
        self._library.fake_device(self._launcher, RESIDENT, ratio, driver)

    def run(self, operation: Callable[..., None], *arguments: object) -> None:
        """Call the host code; what a kernel did wrong is raised as it was found."""
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise self._failure or error from None

    def _launch(self, name: bytes, grid: int, threads: int, parameter: int) -> int:
        begin = time.perf_counter()
        execution, kernel = self.execution, name.decode()
        try:
            size = sum(execution.program.translated(kernel).function.parameters.values())
            execution.launch(kernel, grid, threads, ctypes.string_at(parameter, size), self.launches)
            return 0
        except BaseException as failure:  # cannot pass through the C++ between here and the caller
            self._failure = failure
            traceback.print_exc()
            return 1
        finally:
            self.launches += 1
            self.seconds += time.perf_counter() - begin
