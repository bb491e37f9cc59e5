"""The Triton kernels compiled for NVIDIA GPUs on a machine that needs none."""

from functools import cache

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from greedylr_fused.backends.triton import update as triton_update  # noqa: E402
from greedylr_fused.backends.triton.backend import OPTIONS, TritonBackend  # noqa: E402
from greedylr_fused.backends.triton.mixes import blocks, types_of  # noqa: E402
from support.machine_code import disassemble  # noqa: E402

POINTERS = {"numel": "*i64", "ptrs": "*i64", "hyper": "*fp64", "control": "*fp64", "c": "*fp64"}
POINTERS |= {"group": "*i32", "chunk_tensor": "*i32", "chunk_index": "*i32", "nonfinite": "*i32", "others": "*i32"}
POINTERS |= {"curve": "*fp64", "square_sums": "*fp64", "norm_weight": "*fp64", "counter": "*i32", "counters": "*i32"}
POINTERS |= {"addresses": "*i64", "sizes": "*i64"}
POINTERS |= {"norms": "*fp32", "loss": "*fp64", "snapshot": "i64", "weight": "i64"}
POINTERS |= {"group_of": "*i32"}
#: Arguments that are None where nothing else is said, and the constant which says that they are not.
NONE = {"TUNED": False, "P": None, "R": None}
ABSENT, GIVEN = {"snapshot"}, object()


def compiled(kernel, target, **constants):
    """A kernel as it is launched, for a compute capability (90), with its constants."""
    constants = {name: None for name in ABSENT & {*kernel.arg_names}} | constants
    constants = {name: value for name, value in constants.items() if value is not GIVEN}
    constants |= {name: NONE[name] for name in NONE.keys() & {*kernel.arg_names} - constants.keys()}
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=OPTIONS)


@cache
def update(target, mix, closes=True, one_piece=True, searches=False):
    """The update of a mix, without the close if it is not the last of a step; with that of a level search."""
    block, rest = blocks(mix)
    constants = types_of(mix) | {"CHUNK": TritonBackend.chunk_size, "BLOCK": block, "REST": rest}
    constants |= {"ONE_PIECE": one_piece}
    constants |= {"CLOSES": closes, "HAS_LOSS": closes, "SEARCHES": searches} | ({"snapshot": GIVEN} if closes else {})
    return compiled(triton_update.update_kernel, target, **constants)


def machine_code(kernel, tmp_path):
    path = tmp_path / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    (code,) = disassemble(path).values()
    return code
