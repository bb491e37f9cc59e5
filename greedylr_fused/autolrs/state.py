"""What a search asks for, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Action:
    """One thing for the training loop to do, and then to report by `tell` if `losses`, otherwise by `done`."""

    kind: Literal["save", "restore", "train", "evaluate", "stop"]
    """"save" and "restore" are of everything that training changes: parameters and the optimizer's state; "train" is
    for `steps` steps at `lr`; "evaluate" measures a validation loss; "stop" ends the run.
    """
    lr: float
    """Learning rate of the steps to come."""
    steps: int = 0
    """Number of training steps: at most so many, 1 or more, may be made and reported at once."""
    losses: bool = False
    """The loss of each step, or of the evaluation, is to be told."""


@dataclass
class Progress:
    """All that a decision depends on, beside the options: plain numbers, lists and words."""

    phase: Literal["save", "restore", "trial", "training"] = "save"
    stage: int = 1
    trial_steps: int = 0
    stage_steps: int = 0
    validation: bool = False
    lr: float = 0.0
    steps: int = 0  # of this trial, or of the training of this stage
    losses: list[float] = field(default_factory=list)  # of this trial
    told: list[tuple[float, float]] = field(default_factory=list)  # of this stage
    first_loss: float | None = None
    search_steps: int = 0
    training_steps: int = 0
    stages: list[dict[str, Any]] = field(default_factory=list)


def check_loaded(state: Any, own: dict[str, Any]) -> None:
    """Check that a state is one of a search with these options.

    Args:
        state: what is to be loaded.
        own: the state of the search that is to load it.

    Raises:
        ValueError: it is no such state, of other options, or of a longer run.
    """
    alike = isinstance(state, dict) and state.keys() == own.keys()
    if not alike or any(state[part].keys() != own[part].keys() for part in ("options", "progress")):
        raise ValueError("AutoLRS: expected what AutoLRS.state_dict() returned, got another; load that")
    for name, value in state["options"].items():
        if own["options"][name] != value:
            raise ValueError(
                f"AutoLRS {name}: expected {value!r}, as in the state, got {own['options'][name]!r}; construct it with "
                "the options of the search that was saved"
            )
    before, total = state["total_steps"], own["total_steps"]
    if total is not None and (before is None or total < before):
        raise ValueError(
            f"AutoLRS total_steps: expected at least {before}, as in the state, got {total}; make a search only longer"
        )
