"""What these tests take from the package: the names and numbers that tables and kernels share."""

from greedylr_fused.control.slots import BLOCKS, SLOT, SLOTS, block, ring_begin, shown
from greedylr_fused.tensors.formats import MIXES, DType, Hyper, Row

__all__ = ["BLOCKS", "MIXES", "SLOT", "SLOTS", "DType", "Hyper", "Row", "block", "ring_begin", "shown"]
