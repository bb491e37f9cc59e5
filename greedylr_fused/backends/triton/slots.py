"""Where the slots of the control vector lie, as Triton's kernels take it."""

import triton.language as tl

from greedylr_fused.control import BLOCKS, SLOT, SLOTS


def slots(names):
    """Return the indices of some slots, as kernels take them."""
    return tuple(tl.constexpr(SLOT[name]) for name in names.split())


N_GROUPS, EVENT, LOSS = slots("n_groups event loss")
#: First slot of the values of group 0; then, counted from there in numbers of groups, the blocks and the ring.
GROUPS = tl.constexpr(len(SLOTS))
LR, INITIAL, MIN, MAX, LEVEL = (
    tl.constexpr(BLOCKS.index(name)) for name in ("lr", "initial_lr", "min_lr", "max_lr", "level")
)
RING = tl.constexpr(len(BLOCKS))
