"""How Triton programs find their elements: addresses from the table, wide and narrow spans of a chunk, conversions.

A chunk is split in two. Its body begins on 16 bytes in every stream and is a multiple of 8 elements: there a mask,
where one is needed at all, is constant over every access, as the compiler requires to emit wide accesses. The rest,
up to 7 elements before the body and up to 7 after it, goes one element per thread, in one pass. Streams that do not
come to 16 bytes at a common element have no body.
"""

import inspect

import torch
import triton
import triton.language as tl

from greedylr_fused.tensors import Row

#: True if these functions run in Triton's interpreter; fixed when Triton decorates them, at import.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
#: True if kernels are compiled to PTX: for NVIDIA, on a machine without a GPU too.
PTX = tl.constexpr(not INTERPRETED.value and not torch.version.hip and not getattr(torch.version, "xpu", None))
_STEP = tl.constexpr(int(Row.STEP))
#: Elements that 16 bytes hold of the narrowest storage type.
_VECTOR = tl.constexpr(8)


def kernel(function):
    """Apply `triton.jit` so that no argument's value (1, a multiple of 16, an aligned one) compiles the kernel anew."""
    arguments = inspect.signature(function).parameters.values()
    return triton.jit(do_not_specialize=[a.name for a in arguments if a.annotation is a.empty])(function)


@triton.jit
def loop_bound(n):
    """Return `n` as the bound of a range: Triton 3.5 and 3.6's interpreter cannot convert it under numpy >= 2.4. To be
    written within the range, since an assignment there makes a tensor of it again.
    """
    if INTERPRETED:
        return n.handle.data.item()
    return n


@triton.jit
def last_to_finish(counter, programs):
    """Return whether this program is the last of `programs` to get here; the last sees all that the others have stored.

    The last program sets the counter (int32) back to 0 for the next launch, in a captured graph too.
    """
    tl.debug_barrier()  # every thread has stored, and read what the last program may overwrite
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def address(ptrs, row, tensor, n_tensors):
    """Return an address (int64) of a tensor from that row of the table."""
    return tl.load(ptrs + row * n_tensors + tensor)


@triton.jit
def start_of(ptrs, row, tensor, n_tensors, first, DTYPE: tl.constexpr):
    """Return the address of element `first` of a stream, 0 if the tensor does not have it."""
    start = address(ptrs, row, tensor, n_tensors)
    return tl.where(start == 0, 0, start + first * (DTYPE.primitive_bitwidth // 8))


@triton.jit
def step_count(ptrs, tensor, n_tensors, mask=None):
    """Return a pointer to the count of steps that a tensor has taken (float32); of several tensors where `mask` is."""
    return pointer(tl.load(ptrs + _STEP * n_tensors + tensor, mask), tl.float32)


@triton.jit
def chunk_of(numel, tensor, index, CHUNK: tl.constexpr):
    """Return the first element (int64) of chunk `index` of a tensor, its length (int32), and whether it is alone."""
    first = index.to(tl.int64) * CHUNK
    total = tl.load(numel + tensor)
    return first, tl.minimum(total - first, CHUNK).to(tl.int32), total <= CHUNK


@triton.jit
def head_of(start, DTYPE: tl.constexpr):
    """Return how many elements from address `start` on come before the first that begins on 16 bytes."""
    return ((-start & 15) // (DTYPE.primitive_bitwidth // 8)).to(tl.int32)


@triton.jit
def misaligned(start, head, DTYPE: tl.constexpr):
    """Return 0 if element `head` from address `start` on begins on 16 bytes, or `start` is null; otherwise not 0."""
    return tl.where(start == 0, 0, (start + head * (DTYPE.primitive_bitwidth // 8)) & 15)


@triton.jit
def whole(count):
    """Return how many of `count` elements a mask can cover that is constant over every wide access."""
    return count // _VECTOR * _VECTOR


@triton.jit
def body_of(head, odd, count):
    """Return the first element and the length of the body of `count` elements; if `odd` is not 0, there is no body."""
    has_body = (odd == 0) & (head < count)
    return tl.where(has_body, head, 0), tl.where(has_body, whole(count - head), 0)


@triton.jit
def pointer(start, DTYPE: tl.constexpr):
    """Return a pointer to address `start`."""
    return start.to(tl.pointer_type(DTYPE))


@triton.jit
def wide(start, begin, DTYPE: tl.constexpr):
    """Return a pointer to a body that begins `begin` elements from address `start` on."""
    start += begin * (DTYPE.primitive_bitwidth // 8)
    # The shifts change nothing, but make a new value that carries the hint: on the address as it was loaded the hint
    # would also reach the narrow pass, where it may be false. Nor may the hint be on what a function returned:
    # Triton 3.5 and 3.6 lose it there.
    return tl.multiple_of(((start >> 4) << 4).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def widen(x, T: tl.constexpr):
    """Convert a loaded element to the type of the arithmetic."""
    if INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter's own conversion loses subnormals
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(T)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Round once to the storage type: to nearest even, NaN and infinity stay."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # the interpreter's own conversion truncates
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def store_each(pointers, values, mask):
    """Store one float32 value per row of a block that several threads share. `tl.store` would have one thread per row
    do it, and first pass the values to it through shared memory; here all that hold a value store it.
    """
    if PTX:
        store: tl.constexpr = """{
            .reg .pred stores;
            setp.ne.b32 stores, $3, 0;
            @stores st.global.b32 [$1], $2;
            mov.b32 $0, $3;
        }"""
        inputs = [pointers.to(tl.int64), values.to(tl.int32, bitcast=True), mask.to(tl.int32)]
        tl.inline_asm_elementwise(store, "=r,l,r,r,~{memory}", inputs, dtype=tl.int32, is_pure=False, pack=1)
    else:
        tl.store(pointers, values, mask)
