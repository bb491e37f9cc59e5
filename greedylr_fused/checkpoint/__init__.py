"""Checkpoints of `torch.optim.AdamW`'s form, with the schedule's state added, and loaded without rounding.

A schedule adds its state to every parameter group, the same in all but for the last three numbers:

    "control": {
        "version": 1, "kind": 1.0, "mode_max": 0.0, "step": 12.0, "skipped": 0.0, "loss": 3.5, "smoothed": 2.0625,
        "best": 1.125, "good": 0.0, "bad": 0.0, "cooldown_left": 1.0, "warmup_left": 0.0, "resets_left": 500.0,
        "forget_left": 0.0, "window_sum": 8.25, "decay_start": inf, "decay_steps": 0.0, "fraction": 1.0,
        "grad_norm": 3.23, "event": 2.0, "window": "0.75 1.5 2.5 3.5", "lr": 0.002, "initial_lr": 0.001, "level": 0.002
    }

`state_dict.py` saves and loads, all or nothing; `checks.py` looks at all of a checkpoint before anything is changed;
`numbers.py` checks the schedule's numbers, and fits them to another run; `pickling.py` copies and pickles.
"""

from greedylr_fused.checkpoint.numbers import KEY, fitted, read_control, saved
from greedylr_fused.checkpoint.pickling import engine, fill, get_state, set_state, starting_lrs
from greedylr_fused.checkpoint.state_dict import drop_stale, load, mark, save
