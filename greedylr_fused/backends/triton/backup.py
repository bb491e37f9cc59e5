"""The copies that take a backup and put it back, 16 bytes at a time: a few programs share all chunks, so that a launch
which finds nothing to do ends at once.
"""

import triton
import triton.language as tl

from greedylr_fused.backends.triton.access import INTERPRETED, kernel, loop_bound, pointer, wide
from greedylr_fused.control import SLOT

_BACKUP = tl.constexpr(SLOT["backup"])
#: Programs of a launch, as many as run at once on large GPUs; words of 4 bytes per turn, of each thread four times 16
#: bytes; bytes per turn of the narrow path. The interpreter pays per operation.
PROGRAMS, BLOCK, REST = (3, 1024, 1024) if INTERPRETED.value else (1024, 2048, 128)


@triton.jit
def _copy(source, target, count, BLOCK: tl.constexpr, REST: tl.constexpr):
    """Copy `count` bytes between two addresses, in wide accesses if they are a multiple of 16 bytes apart."""
    head = tl.minimum((-source & 15).to(tl.int32), count)
    head = tl.where(((source ^ target) & 15) == 0, head, count)
    words = (count - head) // 16 * 4
    narrow = count - 4 * words
    from_byte, to_byte = pointer(source, tl.int8), pointer(target, tl.int8)
    for offset in range(0, loop_bound(narrow), REST):
        at = offset + tl.arange(0, REST)
        mask = at < narrow
        at = tl.where(at < head, at, at + 4 * words)
        tl.store(to_byte + at, tl.load(from_byte + at, mask), mask)
    from_word, to_word = wide(source + head, 0, tl.int32), wide(target + head, 0, tl.int32)
    part = tl.multiple_of(words % BLOCK, 4)
    if part != 0:
        at = tl.arange(0, BLOCK)
        tl.store(to_word + at, tl.load(from_word + at, at < part), at < part)
    for offset in range(0, loop_bound(words - part), BLOCK):
        at = part + offset + tl.arange(0, BLOCK)
        tl.store(to_word + at, tl.load(from_word + at))


@kernel
def backup_kernel(
    control,
    addresses,
    sizes,
    chunk_tensor,
    chunk_index,
    n_tensors,
    n_chunks,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """Do what the slot "backup" asks for, with chunks of so many bytes of the tensors at these addresses."""
    action = tl.load(control + _BACKUP)
    puts_back = action == 2
    if (action == 1) | puts_back:
        programs = loop_bound(tl.num_programs(0))
        for chunk in range(loop_bound(tl.program_id(0)), loop_bound(n_chunks), programs):
            tensor = tl.load(chunk_tensor + chunk)
            first = tl.load(chunk_index + chunk).to(tl.int64) * CHUNK
            count = tl.minimum(tl.load(sizes + tensor) - first, CHUNK).to(tl.int32)
            live = tl.load(addresses + tensor) + first
            kept = tl.load(addresses + n_tensors + tensor) + first
            _copy(tl.where(puts_back, kept, live), tl.where(puts_back, live, kept), count, BLOCK, REST)
