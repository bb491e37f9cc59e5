"""A training loop of one's own, driven through a search by four functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from greedylr_fused.autolrs.search import AutoLRS


def run(
    search: AutoLRS,
    *,
    save: Callable[[], Any],
    restore: Callable[[], Any],
    train: Callable[[float, int], Sequence[Any]],
    evaluate: Callable[[], Any],
) -> None:
    """Drive a training loop through a search, to its last step.

    A run that is to survive its process writes down `search.state_dict()` beside a checkpoint, as often as it likes
    between two calls of these functions: it needs the training state and the one that was last saved.

    Args:
        search: with `total_steps`.
        save: keeps parameters and the optimizer's state, in the place of what was kept before.
        restore: goes back to what was kept.
        train: `train(lr, steps)` makes so many steps at this LR, or fewer but at least one, and returns the loss of
            each: numbers or tensors of one element, read after the last of them, and only in trials.
        evaluate: returns a validation loss, a number or a tensor of one element.

    Raises:
        ValueError: the search has no end, or `train` returned no losses, or more than steps.
    """
    if search.total_steps is None:
        raise ValueError("run: expected a search with an end, got one without; write AutoLRS(..., total_steps=10_000)")
    simple = {"save": save, "restore": restore}
    while (action := search.ask()).kind != "stop":
        if action.kind == "evaluate":
            search.tell([evaluate()])
        elif action.kind == "train":
            losses = train(action.lr, action.steps)
            if action.losses:
                search.tell(losses)
            else:
                search.done(len(losses))
        else:
            simple[action.kind]()
            search.done()
