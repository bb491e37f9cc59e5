"""One parameter of the table, and the memory that kernels may be given in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedylr_fused.tensors.dtensor import Place, arrived, local, local_gradient, local_part, place_of, spec_of
from greedylr_fused.tensors.formats import DLPACK, DTYPES, EIGHT_BIT, MIXES, MOMENTS, STATE_DTYPES, DType
from greedylr_fused.tensors.storage import scale_shape
from greedylr_fused.tensors.tuning import OFFSET, WRITTEN_AT, offset_dtype


class Entry:
    """One parameter with its state, and the dense memory in which it is updated.

    Attributes:
        param: as in the optimizer; `spec` its mesh and placements if it is a DTensor, otherwise None.
        memory: the parameter, of a DTensor the part on this rank.
        shape, strides: those of `memory`, made dense, as kernels take it.
        grad_dtype: the dtype of gradients that are read in place.
        dense_copy: updated instead of a parameter that is no flat memory, otherwise None.
        norm_weight: see `Ranks.norm_weight`.
        place: of this part in the whole parameter, if it `rounds_at_random`.
        stored: names of the tensors in the state that a step reads and writes, beside `counts`.
        counts: names of the numbers in it, "step" and what a tuner has of one.
    """

    def __init__(
        self, param: Tensor, state: dict[str, Any], group: int, number: int, amsgrad: bool, norm_weight: float
    ) -> None:
        self.param, self.state, self.group, self.norm_weight = param, state, group, norm_weight
        self.spec, self.memory = spec_of(param), local(param)
        self.eight_bit = EIGHT_BIT[0] in state
        self.place = place_of(param, number) if self.rounds_at_random else Place(number)
        moments = EIGHT_BIT if self.eight_bit else MOMENTS if amsgrad else MOMENTS[:2]
        self.stored = (*moments, *(name for name in ("remainder", OFFSET) if name in state))
        self.counts = ("step", WRITTEN_AT) if OFFSET in state else ("step",)
        self.shape, self.strides = self.memory.shape, torch.empty_like(self.memory, device="meta").stride()
        # A parameter with holes, overlaps or a sign yet to be applied is not flat memory: a dense copy is updated.
        flat = self.strides == self.memory.stride() and not self.memory.is_neg() and not self.memory.is_conj()
        self.dense_copy = None if flat else torch.empty_like(self.memory)
        if self.eight_bit and amsgrad:
            raise RuntimeError(
                "FusedAdamW: expected amsgrad=False beside 8-bit moments, got True; set it back to False, or write "
                'group["state_dtype"] = torch.float32 and load_state_dict(state_dict()), which converts'
            )
        for name in self.stored:
            state[name] = self._placed(name, state[name])
        for name in self.counts:
            state[name] = self._counted(state[name], torch.float32 if name == "step" else torch.float64)
        grad = param.grad
        self.grad_dtype = grad.dtype if grad is not None and self.computes(grad.dtype) else param.dtype

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the state, or a copy of it, that lies as kernels take it."""
        shape = scale_shape(self.param) if name.endswith("_scale") else self.param.shape
        if tensor.device != self.param.device or tensor.shape != shape:
            raise RuntimeError(
                f"FusedAdamW state {name!r}: expected shape {tuple(shape)} on {self.param.device} like its "
                f"parameter, got {tuple(tensor.shape)} on {tensor.device}; move it back before step()"
            )
        self._check_type(name, tensor)
        if tensor.is_inference():
            tensor = tensor.clone()
        check_memory(f"a state {name!r}", tensor)
        memory = tensor if self.spec is None else local_part(f"a state {name!r}", tensor, self.param)
        strides = self.strides if shape == self.param.shape else row_major(memory.shape)
        if memory.stride() == strides and not memory.is_neg() and not memory.is_conj():
            return tensor
        if shape != self.param.shape:
            return tensor.contiguous()
        placed = torch.empty_like(self.target if self.spec is None else self.param, dtype=tensor.dtype)
        local(placed).copy_(memory)
        return placed

    def _check_type(self, name: str, tensor: Tensor) -> None:
        allowed = (offset_dtype(self.param),) if name == OFFSET else STATE_DTYPES.get(name)
        if allowed is not None:
            if tensor.dtype not in allowed:
                raise TypeError(
                    f"FusedAdamW state {name!r}: expected {' or '.join(map(str, allowed))}, got "
                    f"{tensor.dtype}; load it by load_state_dict(), which keeps it as it is"
                )
        elif tensor.dtype != self.state["exp_avg"].dtype or tensor.is_complex() != self.param.is_complex():
            raise TypeError(
                f"FusedAdamW state {name!r}: expected moments of one dtype, complex if the parameter is, got "
                f"{tensor.dtype} beside exp_avg in {self.state['exp_avg'].dtype} for a {self.param.dtype} parameter; "
                "convert them, or load them by load_state_dict(), which does"
            )

    def _counted(self, count: Any, dtype: torch.dtype) -> Tensor:
        """Return the user's own tensor, which others may share, if kernels can count in it; or else a new one."""
        count = local(count) if isinstance(count, Tensor) else count
        own = isinstance(count, Tensor) and count.dtype == dtype and count.device == self.param.device
        if own and count.numel() == 1 and not (count.is_neg() or count.is_inference()) and count.data_ptr():
            return count  # type: ignore[no-any-return]
        return torch.as_tensor(count, dtype=dtype, device=self.param.device).detach().reshape(()).clone()

    @property
    def rounds_at_random(self) -> bool:
        """Return whether where an element lies in the whole parameter decides how it is rounded."""
        return self.eight_bit or getattr(self.state.get("remainder"), "dtype", None) == torch.int8

    @property
    def target(self) -> Tensor:
        return self.memory if self.dense_copy is None else self.dense_copy

    @property
    def step(self) -> Tensor:
        """Return the count of steps taken, float32 of one element."""
        count: Tensor = self.state["step"]
        return count

    @property
    def written_at(self) -> Tensor:
        """Return the S at which a tuner last wrote the parameter, float64 of one element."""
        at: Tensor = self.state[WRITTEN_AT]
        return at

    def memory_of(self, name: str) -> Tensor:
        """Return the memory of one of the `stored`."""
        return local(self.state[name])

    def gradient(self) -> Tensor | None:
        """Return the gradient, of a DTensor the part on this rank (by a collective if it is distributed in another way
        than the parameter); None if there is none.

        Raises:
            RuntimeError: the gradient is sparse, or not on the parameter's mesh.
        """
        grad = self.param.grad
        if grad is None:
            return None
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"FusedAdamW: expected dense gradients, got one of layout {grad.layout}; use torch.optim.SparseAdam "
                "for that parameter, or sparse=False in the embedding"
            )
        return arrived(grad) if self.spec is None else local_gradient(grad, self.param)

    @property
    def grad_code(self) -> tuple[int, int]:
        """Return DLPack's (type code, bits) of gradients that are read in place."""
        return DLPACK[self.grad_dtype]

    def computes(self, grad_dtype: torch.dtype) -> bool:
        return grad_dtype.is_complex == self.param.is_complex() and self._codes(grad_dtype) in MIXES

    def _codes(self, grad_dtype: torch.dtype) -> tuple[DType | None, ...]:
        param, grad = DTYPES.get(self.param.dtype.to_real()), DTYPES.get(grad_dtype.to_real())
        if "remainder" in self.state and param is DType.BF16:
            param = DType.BF16_R16 if self.state["remainder"].dtype == torch.int16 else DType.BF16_R8
        moments = DType.Q8 if self.eight_bit else DTYPES.get(self.state["exp_avg"].dtype.to_real())
        return param, grad, moments

    @property
    def mix(self) -> tuple[DType, DType, DType]:
        if not self.computes(self.grad_dtype):
            raise TypeError(
                "FusedAdamW: expected float32, float64, bfloat16 and float16 parameters with moments of their own "
                "dtype, 16-bit ones with float32 moments and float32 ones with bfloat16 moments, got a "
                f"{self.param.dtype} parameter with {self._codes(self.grad_dtype)[2]!r} moments; convert the parameter "
                "or set state_dtype"
            )
        return self._codes(self.grad_dtype)  # type: ignore[return-value]

    def fits(self, grad: Tensor) -> bool:
        """Return whether a gradient can be read in place, element by element beside the parameter."""
        if grad.dtype != self.grad_dtype or grad.shape != self.shape or grad.is_neg() or grad.is_conj():
            return False
        strides = grad.stride()
        return strides == self.strides or all(
            n == 1 or a == b for n, a, b in zip(grad.shape, strides, self.strides, strict=True)
        )

    def check_shape(self, grad: Tensor) -> None:
        """Refuse a gradient of another shape.

        Raises:
            RuntimeError: names both shapes.
        """
        if grad.shape != self.shape:
            raise RuntimeError(
                f"FusedAdamW: expected a gradient of shape {tuple(self.shape)} like its parameter, got one of shape "
                f"{tuple(grad.shape)}; zero_grad() after giving a parameter new data"
            )


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of that shape, as PyTorch gives them."""
    return torch.empty(tuple(shape), device="meta").stride()


def has_memory(memory: Tensor) -> bool:
    """Return whether there is memory behind a tensor, of which a DTensor must be given by its part on this rank."""
    return not memory.numel() or (memory.untyped_storage().device.type != "meta" and bool(memory.data_ptr()))


def check_memory(what: str, tensor: Tensor) -> None:
    """Refuse a tensor that kernels could not write to, or autograd not follow.

    Raises:
        RuntimeError: it was made within inference_mode.
        TypeError: it has no memory of its own.
    """
    memory = local(tensor)
    if memory.is_inference():
        raise RuntimeError(
            f"FusedAdamW: expected {what} made outside of torch.inference_mode(), got one of shape "
            f"{tuple(tensor.shape)} made within it, whose changes autograd could not see; clone() it outside"
        )
    if not has_memory(memory):
        raise TypeError(
            f"FusedAdamW: expected plain tensors with storage, got {what} of type {type(tensor).__name__} on "
            f"{tensor.device} without memory of its own; materialise it, or step it with torch.optim.AdamW"
        )
