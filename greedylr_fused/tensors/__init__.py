"""Addresses, sizes and the list of work of an optimizer's tensors, in memory that does not move.

What is looked at before a step? In `step` of `optimizer.py` the loss, then learning rates that were written, and then
by `watch.py` (compiled: `csrc/host/watch.cpp`): that groups hold the same parameters, and whether hyper-parameters
changed; that states hold the same moments, where they lay; that parameters without state still have no gradient; and of
each parameter, that it and its gradient lie where they lay, and whether a kernel can read that. `table.py` is what a
backend is given, `entry.py` one parameter of it, `formats.py` the names that tables and kernels share, `storage.py` how
a state is stored: `eight_bit.py` moments in 8 bits, `masters.py` what a bfloat16 parameter lacks of a float32 one;
`copies.py` the 16-bit copies of parameters, `dtensor.py` the part of a distributed tensor on this rank, `direct.py`
where a Python tensor holds its pointer.
"""

from greedylr_fused.tensors import eight_bit, masters, storage, watch
from greedylr_fused.tensors.copies import Copies
from greedylr_fused.tensors.dtensor import Place, alike, is_flattened, layout, local, sharded_dims, spec_of
from greedylr_fused.tensors.entry import Entry, check_memory, has_memory
from greedylr_fused.tensors.formats import DTYPES, EIGHT_BIT, MIXES, MOMENTS, STATE_DTYPES, DType, Hyper, Row, real
from greedylr_fused.tensors.storage import Storage, storage_of
from greedylr_fused.tensors.table import TensorTable
from greedylr_fused.tensors.watch import NEEDS_COPY, REBUILD, watching
