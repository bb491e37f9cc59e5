"""A launch: blocks of threads with barriers, shuffles and memory, in some order of execution."""

from dataclasses import dataclass

import numpy as np

from ptx import Fault
from ptx.formats import UNSIGNED
from ptx.memory import FIRST, Global, Parameters, Ranges, Shared, Site
from ptx.moving import SHARED_WINDOW
from ptx.parsing import Instruction
from ptx.races import Races
from ptx.running import ENDED, Frame
from ptx.translating import Program

WARP = 32
ALL_LANES = 0xFFFFFFFF
SCHEDULES = ("together", "one by one", "random")


@dataclass
class Execution:
    """How a program's launches are run.

    Attributes:
        schedule: "together": all blocks in step; "one by one": block after block, in an order drawn from the seed;
            "random": warps in random order, any number of them at once.
        allowed: the addresses that kernels may touch; None: any.
        races: looks for accesses that nothing orders; None: nobody does.
    """

    program: Program
    schedule: str = "together"
    seed: int = 0
    allowed: Ranges | None = None
    races: Races | None = None

    def launch(self, name: str, grid: int, threads: int, parameters: bytes, number: int = 0) -> None:
        """Run a kernel to its end, in an order that depends on seed and number."""
        if self.races is not None:
            self.races.begin(grid)
        random = np.random.default_rng([self.seed, number])
        order = np.arange(grid) if self.schedule == "together" else random.permutation(grid)
        with np.errstate(all="ignore"):
            for blocks in order[:, None] if self.schedule == "one by one" else [order]:
                Grid(self, name, grid, blocks, threads, parameters, random).go()


class Grid(Frame):
    """Some blocks of a launch.

    Attributes:
        block_of, thread_of: number of each thread's block in the grid, and its own in the block.
        slot: number of each thread's block among these.
        warp: number of each thread's warp among theirs.
    """

    def __init__(self, execution: Execution, name, grid_size, blocks, block_size, parameters, random) -> None:
        super().__init__(execution.program, name, len(blocks) * block_size)
        self.random = random if execution.schedule == "random" else None
        self.races = execution.races
        self.grid_size, self.block_size = grid_size, block_size
        self.thread_of = np.tile(np.arange(block_size, dtype=np.uint32), len(blocks))
        self.block_of = np.repeat(blocks.astype(np.uint32), block_size)
        self.slot = np.repeat(np.arange(len(blocks)), block_size)
        self.warp = np.arange(self.count) // WARP
        translated = self.translated
        size = sum(translated.function.parameters.values())
        if block_size % WARP or len(parameters) != size:
            raise Fault(f"{name}, with {size} bytes of parameters: {block_size} threads, {len(parameters)} bytes")
        variables = [(translated.offsets[name], variable.size) for name, variable in translated.shared.items()]
        self.shared = Shared(len(blocks), translated.shared_size, variables)
        self.global_ = Global(execution.allowed)
        self.parameters = Parameters(parameters)

    # memory

    def load(self, space: str, threads, addresses, size: int, count: int, opcode: str, line: int):
        """`count` values of `size` bytes each, one behind the other."""
        if space == "generic":
            loaded = [np.empty(threads.shape, UNSIGNED[8 * size]) for _ in range(count)]
            for name, part, inside in _spaces(threads, addresses):
                found = self.load(name, threads[part], inside, size, count, opcode, line)
                for k in range(count):
                    loaded[k][part] = found[k]
            return loaded
        memory, index = self._locate(space, threads, addresses, size, count, Site(opcode, line))
        return [memory.take(index + k) for k in range(count)]

    def store(self, space: str, threads, addresses, size: int, values, opcode: str, line: int) -> None:
        if space == "generic":
            values = [np.broadcast_to(value, threads.shape) for value in values]
            for name, part, inside in _spaces(threads, addresses):
                self.store(name, threads[part], inside, size, [value[part] for value in values], opcode, line)
            return
        memory, index = self._locate(space, threads, addresses, size, len(values), Site(opcode, line))
        for k, value in enumerate(values):
            memory[index + k] = value

    def _locate(self, space: str, threads, addresses, size: int, count: int, site: Site):
        """The array that is accessed and the first index for each thread, after all checks."""
        if np.shape(addresses) != threads.shape:
            addresses = np.broadcast_to(addresses, threads.shape)
        if space == "param":
            return self.parameters.locate(addresses, size, count, site)
        if space == "shared":
            memory, index = self.shared.locate(addresses, self.slot.take(threads), size, count, site)
        else:
            memory, index = self.global_.locate(addresses, size, count, site)
        if self.races is not None:
            first = index * size + (FIRST if space == "global" else 0)
            self.races.access(self, space, threads, first, size * count, site, writes=site.opcode == "st")
        return memory, index

    def add_atomically(self, threads, addresses, values, line: int):
        """The values before, thread by thread in some order."""
        addresses = np.broadcast_to(addresses, threads.shape)
        values = np.broadcast_to(values, threads.shape)
        memory, index = self.global_.locate(addresses, 4, 1, Site("atom", line))
        before = np.empty(threads.shape, np.uint32)
        for k in range(len(threads)) if self.random is None else self.random.permutation(len(threads)):
            before[k] = memory[index[k]]
            memory[index[k]] = before[k] + values[k]
            if self.races is not None:
                self.races.atomic(self, threads[k])
        return before

    def fence(self, threads) -> None:
        if self.races is not None:
            self.races.fence(self, threads)

    # order

    def choose(self, ready):
        """All in step, or some warps at one place, drawn at random."""
        if self.random is None:
            return super().choose(ready)
        one = self.random.choice(np.flatnonzero(ready))
        of_warp = ready & (self.warp == self.warp[one])
        block = int(self.at[of_warp].min()) if self.random.random() < 0.8 else int(self.at[one])
        chosen = self.random.random(int(self.warp.max()) + 1) < self.random.choice([0.0, 0.3, 1.0])
        chosen[self.warp[one]] = True
        return np.flatnonzero(ready & (self.at == block) & chosen[self.warp]), block

    def come_together(self, instruction: Instruction, block: int, threads) -> None:
        """These threads have come to a barrier or shuffle; those whose block or warp is complete go on."""
        self.waiting[threads] = True
        of, size = self._groups(instruction, threads)
        count = int(of[-1]) + 1
        if np.bincount(of[self.at == ENDED], minlength=count)[of[threads]].any():
            raise Fault(f"{instruction}: a thread has ended that the others wait for")
        here = self.waiting & (self.at == block)
        complete = np.bincount(of[here], minlength=count) == size
        members = np.flatnonzero(here & complete[of])
        if not len(members):
            return
        if instruction.parts[0] == "shfl":
            self._shuffle(instruction, members)
        if self.races is not None:
            self.races.together(self, instruction, members)
        self.waiting[members] = False
        self.at[members] = block + 1

    def _groups(self, instruction: Instruction, threads):
        """By thread, the number of the block or warp whose threads this brings together; and how many they are."""
        if instruction.opcode == "bar.sync" and instruction.operands == ("0",):
            return self.slot, self.block_size
        if instruction.opcode not in ("bar.warp.sync", "shfl.sync.bfly.b32"):
            raise Fault(f"unknown {instruction}")
        if not (self._operand(instruction.operands[-1], threads) == ALL_LANES).all():
            raise Fault(f"{instruction}: not of all lanes")
        return self.warp, WARP

    def _operand(self, operand: str, threads):
        if operand.startswith("%"):
            return self.registers[self.translated.index(operand)][threads]
        return np.full(len(threads), int(operand) & ALL_LANES, np.uint32)

    def _shuffle(self, instruction: Instruction, members) -> None:
        """Whole warps: each lane gets what the lane at `lane xor distance` has."""
        target, predicate = instruction.operands[0].split("|")
        distance, clamp = (set(self._operand(operand, members).tolist()) for operand in instruction.operands[2:4])
        if len(distance) > 1 or not 0 < min(distance) < WARP or clamp != {WARP - 1}:
            raise Fault(f"{instruction}: lanes {distance} apart, of {clamp}")
        values = self._operand(instruction.operands[1], members).reshape(-1, WARP)
        exchanged = values[:, np.arange(WARP) ^ min(distance)]
        self.registers[self.translated.index(target)][members] = exchanged.ravel()
        self.registers[self.translated.index(predicate)][members] = True


def _spaces(threads, addresses):
    """Generic addresses as (space, which of the threads, addresses in that space)."""
    addresses = np.broadcast_to(addresses, threads.shape)
    in_shared = addresses >= np.uint64(SHARED_WINDOW)
    for name, mask, start in (("shared", in_shared, SHARED_WINDOW), ("global", ~in_shared, 0)):
        if mask.any():
            part = np.flatnonzero(mask)
            yield name, part, addresses[part] - np.uint64(start)
