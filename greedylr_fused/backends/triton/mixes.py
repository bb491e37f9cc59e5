"""What a kernel is compiled for: the types of a mix, and how many elements it takes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greedylr_fused.tensors import DType, TensorTable

#: Threads per program of every kernel.
THREADS = 128
#: The interpreter pays per operation, not per element.
_INTERPRETED_BLOCK = 1024


def blocks(dtypes: Sequence[DType]) -> tuple[int, int]:
    """Return the elements per iteration of the 16-byte path and of the path for the rest, for streams of these types.

    Every thread takes 16 bytes of the widest stream and one element on the other path: with more than that, Triton
    lays out narrow and wide accesses differently and moves values between threads through shared memory.
    """
    widest = max({DType.F64: 8, DType.F32: 4}.get(dtype, 2) for dtype in dtypes)
    return THREADS * (16 // widest), THREADS


def types(dtypes: Sequence[DType]) -> list[Any]:
    """Return Triton's types of what is stored: of masters that of the parameter, int8 for moments in 8 bits."""
    import triton.language as tl

    names = {DType.F32: tl.float32, DType.F64: tl.float64, DType.BF16: tl.bfloat16, DType.F16: tl.float16}
    names |= {DType.BF16_R16: tl.bfloat16, DType.BF16_R8: tl.bfloat16, DType.Q8: tl.int8}
    return [names[dtype] for dtype in dtypes]


def types_of(mix: Sequence[DType]) -> dict[str, Any]:
    """Return the types of a mix as the update kernel takes them: P, G, S, and R of remainders, None for none."""
    import triton.language as tl

    remainder = {DType.BF16_R16: tl.int16, DType.BF16_R8: tl.int8}.get(mix[0])
    return dict(zip("PGSR", [*types(mix), remainder], strict=True))


def in_one_piece(table: TensorTable, mix: tuple[DType, ...]) -> bool:
    """Return whether the tensors of a mix lie in one piece in the whole parameters, each within 2^32 elements there."""
    places = ((entry.place, max(entry.memory.numel(), 1)) for entry in table.entries if entry.mix == mix)
    return all(place.run >= count and place.first >> 32 == (place.first + count - 1) >> 32 for place, count in places)


def shape(table: TensorTable, dtypes: Sequence[DType]) -> tuple[int, int, int]:
    """Return the elements per chunk, and per iteration of both paths."""
    from greedylr_fused.backends.triton.access import INTERPRETED

    return (table.chunk, *((_INTERPRETED_BLOCK,) * 2 if INTERPRETED.value else blocks(dtypes)))
