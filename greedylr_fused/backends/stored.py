"""How the reference backend reads and writes a state that is stored in fewer bits than it is computed in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from greedylr_fused.tensors import Entry, Place, eight_bit, masters


def loaded(entry: Entry, stored: Sequence[Tensor]) -> list[Tensor]:
    """Return parameter and moments as A1..A6 take them, from the parameter's memory and the entry's `stored`."""
    param, *state = stored
    if "remainder" in entry.stored:
        param = masters.join(param, state.pop())
    if not entry.eight_bit:
        return [param, *state]
    moments = eight_bit.decode_moments(*(tensor.reshape(-1) for tensor in state))
    return [param, *(moment.view(param.shape) for moment in moments)]


def kept(entry: Entry, stored: Sequence[Tensor], new: Sequence[Tensor], step: Tensor) -> list[Tensor]:
    """Return what to store after A1..A6, in the order of `stored`.

    Args:
        entry: the parameter.
        stored: what was loaded.
        new: what A1..A6 returned.
        step: the parameter's count, this step included.
    """
    param, *state = new
    remainder = stored[-1].dtype if "remainder" in entry.stored else None
    bits = None
    if entry.eight_bit or remainder == torch.int8:
        bits = eight_bit.randoms(global_index(entry.place, param), entry.place.number, step)
    if entry.eight_bit:
        assert bits is not None
        state = _coded(stored[1:5], state, bits.reshape(-1))
    if remainder is None:
        return [param, *state]
    high, low = masters.split(param, remainder, bits)
    return [high, *state, low]


def global_index(place: Place, part: Tensor) -> Tensor:
    """Return the index of each element of a part in the whole parameter, int64 in the part's shape."""
    index = torch.arange(part.numel(), device=part.device).view(part.shape)
    return place.first + torch.div(index, place.run, rounding_mode="floor") * place.stride + index % place.run


def _coded(before: Sequence[Tensor], moments: Sequence[Tensor], bits: Tensor) -> list[Tensor]:
    """Return codes and scales of new moments; those before where a group has a moment that is not finite."""
    exp_avg, exp_avg_sq = (moment.reshape(-1) for moment in moments)
    q, q_sq, *scales = eight_bit.encode_moments(exp_avg, exp_avg_sq, bits)
    finite = eight_bit.finite_groups(*scales)
    each = finite.repeat_interleave(eight_bit.GROUP)
    masks = (each, each, finite, finite)
    return [
        torch.where(mask.view(old.shape), value.view(old.shape), old)
        for mask, value, old in zip(masks, (q, q_sq, *scales), before, strict=True)
    ]
