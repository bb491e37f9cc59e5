"""What these tests take from the package: the names and numbers that tables and kernels share."""

from greedylr_fused.formats import MIXES, DType, Hyper, Row
from greedylr_fused.slots import BLOCKS, GROUPS_BEGIN, SLOT, SLOTS

__all__ = ["BLOCKS", "GROUPS_BEGIN", "MIXES", "SLOT", "SLOTS", "DType", "Hyper", "Row"]
