"""The search: it says what the training loop does next, and decides from the losses that it is told."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from greedylr_fused.autolrs import candidates
from greedylr_fused.autolrs.extra import check_installed
from greedylr_fused.autolrs.forecast import forecast
from greedylr_fused.autolrs.plan import Plan, Stage, check_whole
from greedylr_fused.autolrs.state import Action, Progress, check_loaded

#: Forecast of a trial with a loss that is not finite, and bound of all others, whose squares must be numbers.
WORST = 1e6


class AutoLRS:
    """A search for the learning rate, stage by stage: trials from one checkpoint, the best of which is trained with.

    For each stage the training state is saved; `trials` LRs are tried for `trial_steps` steps each, from that state,
    and for each the loss after `stage_steps` is foreseen. Then the best LR trains for `stage_steps`. Stages double in
    length until they have `max_stage_steps`; from then on validation losses are compared, 16 or so of a trial. With the
    defaults half of all steps are search. A warm-up comes before it.

    It knows nothing of the loop that it drives (`run` does one): `ask()` says what is to be done, `tell(losses)` and
    `done(steps)` report that it was. Its `state_dict()`, which JSON can hold, with a checkpoint of the run and the one
    that was last saved, resumes anywhere, to the same decisions.

    Args:
        min_lr: smallest LR that is tried, > 0.
        max_lr: largest LR that is tried, > min_lr.
        trial_steps: steps of a trial in the first stage, >= 4. Default: 100.
        stage_steps: training steps of the first stage. Default: 1000.
        max_stage_steps: stages this long, or longer, do not double. Default: 8000.
        trials: LRs that are tried for each stage. Default: 10.
        total_steps: steps of the whole run, trials included, at least one stage. No stage is begun that would not fit:
            the LR in force trains on to the end. Default None: no end.
        seed: of the first LR of each stage and of the Gaussian process, 0 to 2**32 - 1. Default: 0.

    Raises:
        TypeError, ValueError: an option is out of its range.
        ImportError: scipy or scikit-learn is missing.

    References: arXiv 2105.10762, and the authors' code, https://github.com/YuchenJin/autolrs, for what it leaves open:
    kappa of 1e6, 1e6 for a trial that failed. Of our own: a trial ends with its first loss that is not finite; if all
    trials of a stage fail, the smallest LR of them is taken; `total_steps`.
    """

    def __init__(
        self,
        min_lr: float,
        max_lr: float,
        *,
        trial_steps: int = 100,
        stage_steps: int = 1000,
        max_stage_steps: int = 8000,
        trials: int = 10,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self._plan = Plan(min_lr, max_lr, trial_steps, stage_steps, max_stage_steps, trials, seed)
        if total_steps is not None:
            check_whole("total_steps", total_steps, self._plan.steps(self._plan.first))
        check_installed()
        self._total = total_steps
        self._state = Progress()
        self._begin(self._plan.first)

    def ask(self) -> Action:
        """Return what is to be done next; the same again until something is reported."""
        state, stage = self._state, self._stage
        if state.phase == "save" or state.phase == "restore":
            return Action(state.phase, state.lr)
        if state.phase == "training":
            left = self._training_left()
            return Action("train", state.lr, left) if left else Action("stop", state.lr)
        if not state.validation:
            return Action("train", state.lr, stage.trial_steps - state.steps, losses=True)
        until = (len(state.losses) + 1) * stage.interval
        if state.steps == until:
            return Action("evaluate", state.lr, losses=True)
        return Action("train", state.lr, until - state.steps)

    def tell(self, losses: Iterable[float]) -> None:
        """Report losses: of the first so many steps that were asked for, in order, or of the evaluation.

        Raises:
            RuntimeError: none was asked for.
            ValueError: none, or more than were asked for.
        """
        action, state, found = self.ask(), self._state, [float(loss) for loss in losses]
        if not action.losses:
            raise RuntimeError(f'AutoLRS.tell: expected done(), since no losses were asked for by "{action.kind}"')
        _check_count(action, len(found))
        if action.kind == "train":
            state.steps += len(found)
            state.search_steps += len(found)
        state.losses += found
        finite = all(map(math.isfinite, found))
        if state.first_loss is None and math.isfinite(found[0]):
            state.first_loss = found[0]
        if not finite or self._trial_is_whole():
            self._end_trial(failed=not finite)

    def done(self, steps: int = 0) -> None:
        """Report that the training state was saved or restored, or that steps were made whose losses are not needed.

        Args:
            steps: number of training steps, at most as many as were asked for; 0 for the others.

        Raises:
            RuntimeError: losses were asked for, or nothing.
            ValueError: another number of steps.
        """
        action, state = self.ask(), self._state
        if action.losses or action.kind == "stop":
            raise RuntimeError(f'AutoLRS.done: expected tell(losses), or the end of the run, at "{action.kind}"')
        if action.kind == "train":
            _check_count(action, steps)
            state.steps += steps
            if state.phase == "trial":
                state.search_steps += steps
            else:
                state.training_steps += steps
                self._go_on()
        elif steps:
            raise ValueError(f'AutoLRS.done: expected no steps at "{action.kind}", got {steps}; write done()')
        else:
            state.phase = "training" if self._searched else "trial"

    @property
    def stage(self) -> int:
        """Number of the stage, from 1."""
        return self._state.stage

    @property
    def trial(self) -> int | None:
        """Number of the trial within the stage, from 1; None where it has been decided which LR trains."""
        return None if self._searched else len(self.tried) + 1

    @property
    def tried(self) -> dict[float, float]:
        """LRs tried in this stage so far, in order, and the loss foreseen for each: 1e6 for one that failed."""
        return dict(self._state.told)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """One record for each stage whose LR is decided: "stage", "trial_steps", "stage_steps", "validation", "step"
        (the steps of the run at that time, trials included), "tried" (LRs and losses foreseen), and "lr", the best.
        """
        return copy.deepcopy(self._state.stages)

    @property
    def search_steps(self) -> int:
        """Steps made in trials, all of which were undone."""
        return self._state.search_steps

    @property
    def training_steps(self) -> int:
        """Steps made in training, which the model has."""
        return self._state.training_steps

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, trials included; None for no end."""
        return self._total

    def state_dict(self) -> dict[str, Any]:
        """Return options and progress as numbers, words, lists and dictionaries, which JSON holds to the bit."""
        progress = asdict(self._state) | {"told": [list(pair) for pair in self._state.told]}
        return {"options": asdict(self._plan), "total_steps": self._total, "progress": copy.deepcopy(progress)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict()` was taken, of a search with the same options. `total_steps` may be larger.

        Raises:
            ValueError: it is no such state, or one of other options.
        """
        check_loaded(state, self.state_dict())
        progress = copy.deepcopy(state["progress"])
        self._state = Progress(**progress | {"told": [(lr, loss) for lr, loss in progress["told"]]})
        self._go_on()

    @property
    def _stage(self) -> Stage:
        state = self._state
        return Stage(state.trial_steps, state.stage_steps, state.validation)

    @property
    def _searched(self) -> bool:
        return len(self.tried) == self._plan.trials

    @property
    def _left(self) -> int | None:
        """Steps that may still be made; None for no end."""
        return None if self._total is None else self._total - self.search_steps - self.training_steps

    def _training_left(self) -> int:
        """Return the steps to train before the next stage; to the end, if none fits into what is left."""
        ahead, left = max(0, self._state.stage_steps - self._state.steps), self._left
        if left is None or self._plan.following(self._stage, left - ahead):
            return ahead
        return left

    def _go_on(self) -> None:
        """Begin the next stage, if this one is over and another fits."""
        state = self._state
        if state.phase == "training" and state.steps >= state.stage_steps:
            if following := self._plan.following(self._stage, self._left):
                state.stage += 1
                self._begin(following)

    def _begin(self, stage: Stage) -> None:
        state, plan = self._state, self._plan
        state.trial_steps, state.stage_steps, state.validation = stage.trial_steps, stage.stage_steps, stage.validation
        state.phase, state.steps, state.told = "save", 0, []
        state.lr = candidates.first(plan.min_lr, plan.max_lr, f"{plan.seed} {state.stage}")

    def _trial_is_whole(self) -> bool:
        state, stage = self._state, self._stage
        if stage.validation:
            return len(state.losses) == stage.trial_steps // stage.interval
        return state.steps == stage.trial_steps

    def _end_trial(self, *, failed: bool) -> None:
        """Take the loss that this trial foresees, and choose the LR of the next one, or the best."""
        state, plan = self._state, self._plan
        foreseen = WORST if failed else self._foreseen()
        state.told.append((state.lr, foreseen if -WORST < foreseen < WORST else math.copysign(WORST, foreseen)))
        state.phase, state.steps, state.losses = "restore", 0, []
        if not self._searched:
            state.lr, state.told = candidates.following(state.told, plan.min_lr, plan.max_lr, plan.seed)
            return
        tried = self.tried
        state.lr = min(tried, key=lambda lr: (tried[lr], lr))
        record = asdict(self._stage) | {"stage": state.stage, "step": self.search_steps + self.training_steps}
        state.stages.append(record | {"tried": [list(pair) for pair in tried.items()], "lr": state.lr})

    def _foreseen(self) -> float:
        """Return the loss at the end of the stage. Validation losses that rose as high as the first loss of all give
        nothing to extrapolate: the last of them stands.
        """
        state, stage = self._state, self._stage
        if stage.validation and state.first_loss is not None and max(state.losses) >= state.first_loss:
            return state.losses[-1]
        return forecast(state.losses, stage.horizon, validation=stage.validation)


def _check_count(action: Action, got: int) -> None:
    most = action.steps or 1  # one loss of an evaluation
    if not 1 <= got <= most:
        raise ValueError(f'AutoLRS: expected 1 to {most} at "{action.kind}", got {got}; report what was asked for')
