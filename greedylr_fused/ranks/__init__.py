"""Which processes decide together.

What do the ranks share? At each step six sums in the control vector, loss to non-finite flags, added up in place by one
asynchronous all-reduce; nothing with one process, and nothing with `schedule=None` where nothing is sharded. `ranks.py`
finds the group, the share of each rank in the norm, and adds up. `agreement.py` compares: once, before the first norm,
whether parameters are divided as the norm takes it; on demand, whether every rank holds the same control vector.
"""

from greedylr_fused.ranks.ranks import Ranks
