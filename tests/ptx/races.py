"""Accesses that nothing orders, from the instructions that were executed, in whatever order those were.

What orders, in PTX: bar.sync the threads of a block, bar.warp.sync those of a warp; and between blocks a fence, an
atomic and another fence, where all that a block has done lies before a barrier before the first, and what it goes on to
do behind a barrier after the second; an atomic that releases and acquires has both fences in it. Two accesses to the
same two bytes, one of them a write, are else a race.
"""

import numpy as np

from ptx import Fault
from ptx.memory import Site

NOBODY, SEVERAL = -1, -2
UNIT = 1  # bytes, the least that a kernel accesses
WARP = 32
MAX_THREADS = 1024
NEVER = np.iinfo(np.int32).max


class Latest:
    """The latest access to each unit of memory: by whom, and when in the counts of `Races`."""

    def __init__(self, units: int) -> None:
        self.block, self.warp, self.thread = (np.full(units, NOBODY, np.int32) for _ in range(3))
        self.barriers, self.syncs = (np.zeros(units, np.int32) for _ in range(2))
        self.late = np.zeros(units, bool)  # after its block's atomic

    def replace(self, unit, by: "Accesses", also) -> None:
        """Note these accesses in place of the earlier ones, or, where `also`, beside them."""
        for name in ("block", "warp", "thread"):
            noted, new = getattr(self, name), getattr(by, name)
            beside = also & (noted[unit] != new)
            noted[unit] = new
            beside |= noted[unit] != new  # several at once
            noted[unit[beside]] = SEVERAL
        late = by.late | (also & self.late[unit])
        self.late[unit] = by.late
        self.late[unit[late]] = True
        self.barriers[unit], self.syncs[unit] = by.barriers, by.syncs


class Accesses:
    """By whom and when, for every unit that some threads access at once."""

    def __init__(self, races: "Races", block, thread) -> None:
        self.block, self.thread, self.warp = block, thread, thread // WARP
        self.barriers = races.barriers[block]
        self.syncs = races.syncs[block, self.warp]
        self.late = races.arrived[block]


class Races:
    """Watches the launches of a program.

    Args:
        base: first address of the global memory that kernels may touch.
        size: bytes of it.
    """

    def __init__(self, base: int, size: int) -> None:
        self.base, self.units = base, -(-size // UNIT)
        self.checked = 0

    def begin(self, blocks: int) -> None:
        """A launch: all that came before it is ordered before it."""
        self.writes, self.reads = ({"global": Latest(self.units)} for _ in range(2))
        self.barriers = np.zeros(blocks, np.int32)  # that a block has passed
        self.syncs = np.zeros((blocks, MAX_THREADS // WARP), np.int32)  # that a warp has passed, barriers included
        self.touched = np.full(blocks, NOBODY, np.int32)  # barriers before a block's latest access to global memory
        self.fenced = np.full((blocks, MAX_THREADS), NOBODY, np.int32)  # barriers before a thread's latest fence
        self.arrived = np.zeros(blocks, bool)  # has done its atomic,
        self.released = np.zeros(blocks, bool)  # in such a way that its accesses come before it
        self.last_thread = np.full(blocks, NOBODY, np.int32)  # the one whose atomic was the last of all blocks,
        self.visible = np.full(blocks, NEVER, np.int32)  # and the barriers from which its block sees their writes

    # what the grid tells

    def access(self, grid, space: str, threads, addresses, size: int, site: Site, *, writes: bool) -> None:
        """Some threads access `size` bytes each."""
        each = np.arange(size // UNIT)
        numbers = grid.block_of.take(threads), grid.thread_of.take(threads)
        block, thread = (np.repeat(number.astype(np.int32), len(each)) for number in numbers)
        if space == "global":
            first = (addresses - self.base) // UNIT
            if (first < 0).any() or (first + len(each) > self.units).any():
                raise Fault(f"{site}: outside of the memory that is watched")
            np.maximum.at(self.touched, block, self.barriers[block])
        else:
            space = grid.shared  # each launch, or part of one, has its own
            first = addresses // UNIT
            for latest in (self.writes, self.reads):
                if space not in latest:
                    latest[space] = Latest(len(grid.shared.bytes) // UNIT)
        unit = (first[:, None] + each).ravel()
        accesses = Accesses(self, block, thread)
        self.checked += len(unit)
        self._refuse(self.writes[space], unit, accesses, f"written before {site}")
        if writes:
            self._refuse(self.reads[space], unit, accesses, f"read before {site}")
            self._refuse_twice(unit, accesses, site)
            self.writes[space].replace(unit, accesses, np.False_)
        else:
            concurrent = ~self._ordered(self.reads[space], unit, accesses)
            self.reads[space].replace(unit, accesses, concurrent)

    def fence(self, grid, threads) -> None:
        for block, thread in zip(grid.block_of[threads], grid.thread_of[threads], strict=True):
            self.fenced[block, thread] = self.barriers[block]
            if self.last_thread[block] == thread:
                self.visible[block] = self.barriers[block] + 1

    def atomic(self, grid, thread: int) -> None:
        """One thread of each block adds to a counter of blocks that have come so far."""
        block, thread = int(grid.block_of[thread]), int(grid.thread_of[thread])
        if self.arrived[block]:
            raise Fault(f"a second atomic of block {block}")
        barriers = self.barriers[block]
        self.released[block] = barriers > self.touched[block] and self.fenced[block, thread] == barriers
        self.arrived[block] = True
        if self.arrived.all():
            self.last_thread[block] = thread

    def together(self, grid, instruction, members) -> None:
        """A barrier or shuffle, after which its members go on; a shuffle orders no memory."""
        block, thread = grid.block_of[members], grid.thread_of[members]
        if instruction.opcode == "bar.sync":
            self.barriers[np.unique(block)] += 1
            self.syncs[np.unique(block)] += 1
        elif instruction.opcode == "bar.warp.sync":
            block, warp = np.unique(np.stack([block, thread // WARP]), axis=1)
            self.syncs[block, warp] += 1

    # what follows

    def _ordered(self, latest: Latest, unit, by: Accesses):
        """Whether something orders the latest accesses before these, for each unit."""
        block = latest.block[unit]
        same_block = block == by.block
        same_thread = latest.thread[unit] == by.thread
        by_barrier = by.barriers > latest.barriers[unit]
        by_warp = (latest.warp[unit] == by.warp) & (by.syncs > latest.syncs[unit])
        acquired = (by.barriers >= self.visible[by.block]) | (
            (self.visible[by.block] != NEVER) & (self.last_thread[by.block] == by.thread)
        )
        released = np.where(block == SEVERAL, self.released.all(), self.released[np.maximum(block, 0)])
        by_atomic = acquired & released & ~latest.late[unit]
        return (block == NOBODY) | np.where(same_block, same_thread | by_barrier | by_warp, by_atomic)

    def _refuse(self, latest: Latest, unit, by: Accesses, what: str) -> None:
        bad = ~self._ordered(latest, unit, by)
        if bad.any():
            k = bad.argmax()
            earlier = f"block {latest.block[unit[k]]}, thread {latest.thread[unit[k]]}"
            raise Fault(f"race: {what} by block {by.block[k]}, thread {by.thread[k]}; that was {earlier}")

    def _refuse_twice(self, unit, by: Accesses, site: Site) -> None:
        if len(np.unique(unit)) != len(unit):
            raise Fault(f"race: {site} writes the same bytes from two threads, of block {by.block[0]}")
