"""Checkpoints of `torch.optim.AdamW`'s form, with the schedule's state added, and loaded without rounding.

A schedule adds the starting LR to every group as "initial_lr" and "max_lr", where a `torch.optim.lr_scheduler` has its
own, and its numbers as "control". Groups with 8-bit moments or masters say so, with a version.

`state_dict.py` saves and loads, all or nothing; before anything is changed `checks.py` looks at a checkpoint's form,
`states.py` at its states, `numbers.py` at the schedule's numbers, `tuner.py` at a tuner's, `spikes.py` at the last
values of SkipSpikes; `stored.py` converts states to this optimizer's storage; `resume.py` tells where a schedule goes
on; `masters.py` takes weights out and in; `pickling.py` copies and pickles.
"""

from greedylr_fused.checkpoint import masters
from greedylr_fused.checkpoint.numbers import KEY, read_control, saved
from greedylr_fused.checkpoint.pickling import engine, fill, get_state, set_state, starting_lrs
from greedylr_fused.checkpoint.resume import fitted, mark, without_marks
from greedylr_fused.checkpoint.state_dict import drop_stale, load, save
