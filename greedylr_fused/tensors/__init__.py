"""Addresses, sizes and the list of work of an optimizer's tensors, in memory that does not move.

What is looked at before a step? `watch.py` (compiled: `csrc/host/watch.cpp`), in this order: that groups and states
hold the same objects; that parameters and moments lie where they lay; whether hyper-parameters changed; where each
gradient lies, and whether a kernel can read it there. `table.py` is what a backend is given, `entry.py` one parameter
of it, `formats.py` the names that tables and kernels share, `copies.py` parameters kept in 16 bits beside their
masters, `dtensor.py` the part of a distributed tensor on this rank, `direct.py` where an object holds its memory.
"""

from greedylr_fused.tensors import watch as watch
from greedylr_fused.tensors.copies import Copies as Copies
from greedylr_fused.tensors.dtensor import alike as alike
from greedylr_fused.tensors.dtensor import is_flattened as is_flattened
from greedylr_fused.tensors.dtensor import layout as layout
from greedylr_fused.tensors.dtensor import local as local
from greedylr_fused.tensors.dtensor import sharded_dims as sharded_dims
from greedylr_fused.tensors.dtensor import spec_of as spec_of
from greedylr_fused.tensors.entry import Entry as Entry
from greedylr_fused.tensors.formats import DTYPES as DTYPES
from greedylr_fused.tensors.formats import MIXES as MIXES
from greedylr_fused.tensors.formats import MOMENTS as MOMENTS
from greedylr_fused.tensors.formats import DType as DType
from greedylr_fused.tensors.formats import Hyper as Hyper
from greedylr_fused.tensors.formats import Row as Row
from greedylr_fused.tensors.formats import real as real
from greedylr_fused.tensors.table import Table as Table
from greedylr_fused.tensors.watch import ODD as ODD
from greedylr_fused.tensors.watch import STALE as STALE
from greedylr_fused.tensors.watch import watching as watching
