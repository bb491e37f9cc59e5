"""The slots of the control vector: name, start value and meaning of each, and which are shown and saved.

`csrc/core/slots.h` holds the same three blocks, names, order and words; a test compares them.
"""

from __future__ import annotations

import math

#: (name, start value, meaning). `None` as start value: set from the options of the optimizer at construction.
Rows = tuple[tuple[str, float | None, str], ...]

#: Written once by the host.
CONFIGURATION: Rows = (
    ("kind", None, "schedule: a Kind"),
    ("mode_max", None, "1 if a larger loss is better"),
    ("factor", None, "a cut multiplies by it, a raise divides by it"),
    ("patience", None, "observations"),
    ("threshold", None, "margin by which a loss must beat the best"),
    ("threshold_rel", None, "1 if the margin is relative to the best"),
    ("cooldown", None, "observations to wait after a cut"),
    ("warmup", None, "observations to wait after a raise"),
    ("eps", None, "LR changes up to this size are dropped"),
    ("smooth", None, "1 if the mean over the window is compared"),
    ("window_size", None, "observations"),
    ("reset_start", None, "cuts at the floor before a reset"),
    ("raises", None, "1 if better observations raise, 0 if they only do not cut"),
    ("compare_with", None, "what observations are compared with: a CompareWith"),
    ("forget_every", None, "observations until the best is forgotten, 0: never"),
    ("curve_length", None, "values of the curve, 0: the host writes the LR"),
    ("max_grad_norm", None, "2-norm limit, +inf: no clipping"),
    ("skip_nonfinite", None, "1 if a non-finite gradient skips the step"),
    ("spike_window", 0.0, "values in each ring of spikes, 0: spikes are not skipped"),
    ("spike_minimum", 0.0, "values that a ring must hold to judge"),
    ("spike_sigmas", 0.0, "deviations from the mean from which on a value is a spike"),
    ("n_groups", None, "parameter groups"),
    ("tuner_begin", 0.0, "index of the tuner's values, 0: no tuner"),
    ("tuner_betas", 0.0, "learners of the tuner"),
    ("settle", 0.0, "observations of a search's window that do not count"),
    ("anneal", 0.0, "observations in which its level falls to 0, 0: never"),
    ("search_begin", 0.0, "step of its first window"),
    ("search_until", 0.0, "step after which none of its windows ends"),
    ("raise_by", 1.0, "the level of its trial is this times the level"),
    ("cut_by", 1.0, "its cut divides the level by it"),
    ("fade", 1.0, "each change of its level multiplies these two by it"),
    ("lowest", 0.0, "its lowest level / initial_lr"),
    ("highest", 0.0, "its highest level / initial_lr"),
    ("errors", 0.0, "standard errors by which its trial must win"),
)
#: State that one step leaves to the next.
MEMORY: Rows = (
    ("step", 0.0, "committed optimizer steps"),
    ("skipped", 0.0, "steps skipped, for whatever reason"),
    ("loss", math.nan, "last mean loss"),
    ("smoothed", math.nan, "last value compared with the best"),
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
    ("curve_value", 1.0, "lr / level of the next step"),
    ("writes", 0.0, "learning rates written by the host"),
    ("spikes", 0.0, "of the skipped steps those for a spike"),
    ("spike_losses", 0.0, "losses in the first ring of spikes"),
    ("losses_head", 0.0, "position in it written next"),
    ("spike_norms", 0.0, "gradient norms in the second"),
    ("norms_head", 0.0, "position in that written next"),
    ("tuner_scale", math.nan, "S of the tuner, NaN without one"),
    ("phase", 0.0, "of a search: a Phase"),
    ("window_step", 0.0, "observations of its open window"),
    ("search_level", math.nan, "its level / initial_lr outside trials, NaN without one"),
    ("trial_level", 1.0, "its level / initial_lr in the open trial, or the last"),
    ("multiplier", 1.0, "its level / initial_lr in the next step"),
    ("search_losses", 0.0, "losses counted in its window"),
    ("first_loss", 0.0, "the first of them"),
    ("sum_y", 0.0, "sum of them, each less the first: of y"),
    ("sum_yy", 0.0, "sum of the squares of y"),
    ("sum_xy", 0.0, "sum of y times the number of its loss in the window"),
    ("kept", math.nan, "what its window is compared with"),
    ("kept_var", math.nan, "square of the standard error of that"),
    ("again", 0.0, "1 if its open trial repeats one that did not win"),
    ("gain", 0.0, "what the first of the two gained"),
    ("gain_var", 0.0, "square of the standard error of that"),
    ("rising", 0.0, "windows in a row in which the loss rose"),
    ("faded", 1.0, "fade to the power of its changes"),
    ("worst_loss", -math.inf, "largest loss that it has seen"),
)
#: Values that live within a step. The first six, loss_sum to found_inf, are added up over ranks in place.
#: With a tuner so are the three behind them; its "moved" is (x0 - x) / (S + eps) of a parameter x.
STEP: Rows = (
    ("loss_sum", 0.0, "pending: sum of weight * loss"),
    ("loss_weight", 0.0, "pending: sum of weights, 0 if no loss was observed"),
    ("grad_sq_sum", math.nan, "sum of squared raw gradients, NaN if not measured"),
    ("grad_abs_sum", math.nan, "sum of absolute raw gradients, NaN if not measured"),
    ("grad_nonfinite", 0.0, "non-zero if a gradient element is not finite"),
    ("found_inf", 0.0, "non-zero if AMP found a non-finite gradient"),
    ("param_sq_sum", 0.0, "sum of squared parameters, with a tuner"),
    ("grad_moved_sum", 0.0, "sum of raw gradient times moved, with a tuner"),
    ("param_moved_sum", 0.0, "sum of parameter times moved, with a tuner"),
    ("grad_scale", 1.0, "loss scale of AMP"),
    ("grad_norm", math.nan, "2-norm of the unscaled gradients, NaN if not measured"),
    ("grad_multiplier", 1.0, "clip coefficient / loss scale"),
    ("skip", 0.0, "whether this step is skipped, and why: a Skip"),
    ("event", 0.0, "what the loss decided in it: an Event"),
    ("backup", 0.0, "after the step: 0 nothing, 1 take a backup, 2 put it back"),
)

TABLE = CONFIGURATION + MEMORY + STEP
SLOTS: tuple[str, ...] = tuple(name for name, _, _ in TABLE)
SLOT: dict[str, int] = {name: index for index, name in enumerate(SLOTS)}
#: First slot of memory and step, which a snapshot shows.
STATE_BEGIN = len(CONFIGURATION)

#: Scalars that a checkpoint keeps: decisions and counters, and of the values within a step those that are shown.
SAVED = (
    *("kind", "mode_max", "step", "skipped", "loss", "smoothed", "best", "good", "bad", "cooldown_left"),
    *("warmup_left", "resets_left", "forget_left", "window_sum", "decay_start", "decay_steps", "curve_value"),
    *("grad_norm", "event"),
)
#: Of a search: what its windows and trials are, which the configuration says, and its state.
SEARCH_WINDOWS = ("window_size", "settle", "anneal", "raise_by")
SEARCH_STATE = (
    *("phase", "window_step", "search_level", "trial_level", "multiplier", "search_losses", "first_loss", "sum_y"),
    *("sum_yy", "sum_xy", "kept", "kept_var", "again", "gain", "gain_var", "rising", "faded"),
    "worst_loss",
)
#: What a checkpoint has of both, if its schedule is a search.
SAVED_SEARCH = SEARCH_WINDOWS + SEARCH_STATE
#: Blocks of one value per parameter group, G each, behind the scalars; behind them are the ring of the window and the
#: two of spikes. A checkpoint keeps `SAVED_BLOCKS`.
#: Behind the rings lie the tuner's values: s_decay, s_init, eps, and beta, s, m, v, r of its n learners, n each.
BLOCKS = ("lr", "initial_lr", "min_lr", "max_lr", "level")
SAVED_BLOCKS = ("lr", "initial_lr", "level")


def block(name: str, n_groups: int) -> slice:
    """Return where a block, the values of all groups, lies."""
    begin = len(SLOTS) + BLOCKS.index(name) * n_groups
    return slice(begin, begin + n_groups)


def shown(n_groups: int) -> slice:
    """Return what a snapshot shows: memory, step and the learning rates behind them."""
    return slice(STATE_BEGIN, block("lr", n_groups).stop)


def ring_begin(n_groups: int) -> int:
    """Return the slot at which the ring of the window begins."""
    return len(SLOTS) + len(BLOCKS) * n_groups
