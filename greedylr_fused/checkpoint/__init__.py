"""Checkpoints of `torch.optim.AdamW`'s form, with the schedule's state added, and loaded without rounding.

A schedule adds the starting LR to every group as "initial_lr" and "max_lr", where a `torch.optim.lr_scheduler` has its
own, and its numbers as "control".

`state_dict.py` saves and loads, all or nothing; `checks.py` looks at all of a checkpoint before anything is changed;
`numbers.py` checks the schedule's numbers; `resume.py` tells where a schedule goes on; `pickling.py` copies and
pickles.
"""

from greedylr_fused.checkpoint.numbers import KEY, read_control, saved
from greedylr_fused.checkpoint.pickling import engine, fill, get_state, set_state, starting_lrs
from greedylr_fused.checkpoint.resume import fitted, mark, without_marks
from greedylr_fused.checkpoint.state_dict import drop_stale, load, save
