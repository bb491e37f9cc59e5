"""The slots of the control vector: name, start value and meaning of each, and what of them is shown and saved.

`csrc/core/slots.h` holds the same list; a test compares the two.
"""

from __future__ import annotations

import math

#: (name, start value, meaning). `None` as start value: set from the options of the optimizer at construction.
TABLE: tuple[tuple[str, float | None, str], ...] = (
    ("kind", None, "0: no loss-driven schedule, 1: GreedyLR, 2: ReduceOnPlateau"),
    ("mode_max", None, "1 if a larger loss is better"),
    ("factor", None, "raise divides by it, cut multiplies by it"),
    ("patience", None, "observations"),
    ("threshold", None, "margin by which a loss must beat the best"),
    ("threshold_rel", None, "1 if the margin is relative"),
    ("cooldown", None, "observations to wait after a cut"),
    ("warmup", None, "observations to wait after a raise"),
    ("eps", None, "LR changes up to this size are dropped"),
    ("smooth", None, "1 if the mean over the window is compared"),
    ("window_size", None, "observations"),
    ("reset_start", None, "cuts at the floor before a reset"),
    ("raises", None, "1 if better observations raise, 0 if they only do not cut"),
    ("remembers", None, "0: the best, unless waiting, 1: the best, 2: the last observation"),
    ("forget_every", None, "observations until the best is forgotten, 0: never"),
    ("curve_length", None, "values of the curve, 0: the host writes the LR"),
    ("max_grad_norm", None, "2-norm limit, +inf: no clipping"),
    ("skip_nonfinite", None, "1 if a non-finite gradient skips the step"),
    ("n_groups", None, "parameter groups"),
    ("step", 0.0, "committed optimizer steps"),
    ("skipped", 0.0, "steps skipped for non-finite gradients"),
    ("loss_sum", 0.0, "pending: sum of weight * loss"),
    ("loss_weight", 0.0, "pending: sum of weights, 0 if no loss was observed"),
    ("grad_sq_sum", math.nan, "sum of squared raw gradients, NaN if not measured"),
    ("grad_abs_sum", math.nan, "sum of absolute raw gradients, NaN if not measured"),
    ("grad_nonfinite", 0.0, "non-zero if a gradient element is not finite"),
    ("found_inf", 0.0, "non-zero if AMP found a non-finite gradient"),
    ("loss", math.nan, "last mean loss"),
    ("smoothed", math.nan, "last value compared with best"),
    ("best", None, "what observations are compared with"),
    ("good", 0.0, "better observations in a row"),
    ("bad", 0.0, "other observations in a row"),
    ("cooldown_left", 0.0, "observations"),
    ("warmup_left", 0.0, "observations"),
    ("resets_left", None, "cuts at the floor until a reset"),
    ("forget_left", None, "observations until the best is forgotten"),
    ("window_sum", 0.0, "running sum of the window"),
    ("window_count", 0.0, "losses in the window"),
    ("window_head", 0.0, "ring position written next"),
    ("decay_start", math.inf, "step from which the late decay runs, +inf: not started"),
    ("decay_steps", 0.0, "its length in steps"),
    ("fraction", 1.0, "share of each level that the next step uses as LR"),
    ("grad_scale", 1.0, "loss scale of AMP"),
    ("grad_norm", math.nan, "2-norm of the unscaled gradients, NaN if not measured"),
    ("grad_multiplier", 1.0, "clip coefficient / loss scale"),
    ("skip", 0.0, "1 if this step is skipped"),
)

SLOTS: tuple[str, ...] = tuple(name for name, _, _ in TABLE)
SLOT: dict[str, int] = {name: index for index, name in enumerate(SLOTS)}
#: First slot and end of what a snapshot shows: the state scalars; the LRs of all groups follow them directly.
STATE_BEGIN = SLOT["step"]
GROUPS_BEGIN = len(SLOTS)

#: What a checkpoint keeps of the scalars: decisions and counters, not the values that live within one step.
SAVED = (
    *("kind", "mode_max", "step", "skipped", "loss", "smoothed", "best", "good", "bad", "cooldown_left"),
    *("warmup_left", "resets_left", "forget_left", "window_sum", "decay_start", "decay_steps", "fraction", "grad_norm"),
)
#: Blocks of G values behind the scalars, and those of them that a checkpoint keeps.
BLOCKS = ("lr", "initial_lr", "min_lr", "max_lr", "level")
SAVED_BLOCKS = ("lr", "initial_lr", "level")
