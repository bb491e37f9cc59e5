"""What a process holds, counted: for the tests that nothing grows from step to step."""

import ctypes
import gc
import itertools
import os
import sys
import time
import tracemalloc

import torch

from greedylr_fused.tensors import watch

PAGE = os.sysconf("SC_PAGESIZE")
#: Blocks of addresses, shapes and strides of the tensors of one parameter, one of which may have come in between.
OF_A_LOOK = 24
#: Other threads let go of what they held when they next run, which takes a while on a busy machine: each of gloo's may
#: still have the three tensors of a gathering that the process itself is long done with.
LOOKS, BETWEEN = 5, 0.02


class Mallinfo2(ctypes.Structure):
    """What glibc says of its heap, in bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", *"bcdefg", "in_use", "free", "top")]


def heap() -> int:
    """Bytes in use on the heap of C and C++, 0 where nobody counts them."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = Mallinfo2
    return int(mallinfo2().in_use)


def entries(folder: str) -> int:
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def resident() -> int:
    """Bytes of memory that the process occupies, 0 where /proc does not say."""
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def counts() -> dict[str, int]:
    """Python objects (of them tensors, and layouts of DTensors), blocks and bytes of Python's allocator (the latter
    while tracemalloc runs), bytes of the heap and of memory in use, open files, threads.
    """
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0]
    kinds = [type(found) for found in gc.get_objects()]
    return {
        "objects": len(kinds),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "layouts": sum(kind.__name__ == "DTensorSpec" for kind in kinds),
        "blocks": sys.getallocatedblocks(),
        "traced": traced,
        "heap": heap(),
        "resident": resident(),
        "files": entries("/proc/self/fd"),
        "threads": entries("/proc/self/task"),
    }


def settled() -> dict[str, int]:
    """`counts`, the least of several: for a process whose threads hold what they are about to let go of."""
    found = [counts()]
    while len(found) < LOOKS:
        time.sleep(BETWEEN)
        found.append(counts())
    return {name: min(each[name] for each in found) for name in found[0]}


def least_growth(found: list[dict[str, int]]) -> dict[str, int]:
    """Over several stretches between counts. In one of them something may grow once (a pool, the test's own numbers,
    what arrives for the process in another thread); what grows with the steps does in each.
    """
    return {name: min(b[name] - a[name] for a, b in itertools.pairwise(found)) for name in found[0]}


def check(growth: dict[str, int], steps: int) -> None:
    """That no step in a hundred left a block of Python's behind, and all together a byte per step; nor any step the
    smallest block of malloc, which takes 32 bytes: half of that on the heap, where buffers of other threads come and
    go, all of it in what the process occupies, which stacks and pools of threads move as well. Allowed besides is what
    a count keeps itself: a dictionary of its numbers, a page at most; and pages of code that was never run before.
    """
    allowed = {"objects": steps // 1000 + 1, "blocks": steps // 100 + 2 * len(growth), "traced": steps + PAGE}
    if watch.unavailable() is not None:  # a look in Python holds in blocks what it knows of each tensor
        allowed["blocks"] += OF_A_LOOK
    allowed |= {"heap": 16 * steps + PAGE, "resident": 32 * steps + 4 * PAGE}
    left = {name: n for name, n in growth.items() if n > allowed.get(name, 0)}
    assert not left, f"left behind by {steps} steps: {left}, allowed are {allowed}, and none of the rest"
