"""What a checkpoint holds beyond that of `torch.optim.AdamW`, and how it comes back without being rounded.

With a schedule, "control" in every parameter group: its state as plain numbers and one text. Without one, nothing.
`state_dict.py` saves and loads, all of it or nothing; `checks.py` looks at all of a checkpoint before anything is
changed; `numbers.py` are the schedule's numbers, and what of them another run takes; `pickling.py` copies and pickles.
"""

from greedylr_fused.checkpoint.numbers import KEY, fitted, read_control, saved
from greedylr_fused.checkpoint.pickling import engine, fill, get_state, set_state, starting_lrs
from greedylr_fused.checkpoint.state_dict import load, mark, save
