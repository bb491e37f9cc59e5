"""The ranks that decide together.

What do the ranks share? At each step six sums in the control vector, loss to non-finite flags, added up in place by one
asynchronous all-reduce; nothing with one process, or where the loss decides nothing and nothing is sharded. `ranks.py`
finds the group and each rank's share in the norm, and adds up. `agreement.py` checks once, before the first norm, that
parameters are divided as the norm assumes, and on demand that every rank holds the same control vector.
"""

from greedylr_fused.ranks.ranks import Ranks
