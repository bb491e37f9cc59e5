"""A trainer whose learning rate AutoLRS finds: LRs are tried from one state, and the best of them trains on from there.

The state is kept in memory: parameters, moments, and the place in the data. Every trial of a stage, and the training
after it, thus sees the same batches, where the authors' code goes on in its data; the model draws no random numbers. A
checkpoint holds that state beside the present one, so that a run goes on in the middle of a trial.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from greedylr_fused.step.mirror import Metrics
from torch import Tensor

import lr_schedules
from config import Config
from data import Corpus
from engine import Ranks
from trainer import Trainer


class SearchingTrainer(Trainer):
    """Trains one model. `steps` counts those of trials too, so it never goes back.

    Args:
        name, config, corpus, ranks: as of a Trainer; one process, and `config.searches`.
    """

    def __init__(self, name: str, config: Config, corpus: Corpus, ranks: Ranks) -> None:
        super().__init__(name, config, corpus, ranks)
        self.search = lr_schedules.search(config)
        self._kept: dict[str, Any] = {}
        self._undone = 0  # steps, so far
        self._losses: list[Tensor] = []
        self._waits = False  # for the metrics of this step

    @property
    def spent(self) -> dict[str, int]:
        """Steps that the model has, and steps that were undone."""
        return {"training_steps": self.search.training_steps, "search_steps": self.search.search_steps}

    @property
    def trying(self) -> bool:
        """Whether the model is that of a trial, which will be undone."""
        return self.search.trial is not None

    def step(self) -> Metrics:
        """One step, of a trial or of the training. In a trial the host waits for the device."""
        self._between_steps()
        action, trial = self.search.ask(), self.search.trial
        self.told = {"stage": self.search.stage, "trial": trial}
        self._losses.clear()
        self._waits = trial is not None or action.steps == 1  # what comes after it is told apart in the record
        self.optimizer.set_lr(action.lr)
        metrics = super().step()
        if action.losses:
            loss = torch.stack(self._losses).double().mean().item()
            self.search.tell([math.nan if self.skipped_last else loss])
        elif action.kind == "train":
            self.search.done(1)
        self._between_steps()
        if trial is not None:
            self.told["trial_lr"] = action.lr
            if action.lr in self.search.tried:
                self.told["forecast"] = self.search.tried[action.lr]
        return replace(metrics, lr=(self.search.ask().lr,) * len(metrics.lr))

    def _between_steps(self) -> None:
        """Do what the search asks for until it asks for steps, or for no more."""
        while (action := self.search.ask()).kind not in ("train", "stop"):
            if action.kind == "evaluate":
                self.search.tell([self.held_out_bits() * math.log(2)])  # in nats, as the first loss of all
                continue
            if action.kind == "save":
                kept = copy.deepcopy(super().state_dict())  # on a CPU it holds the tensors themselves
                self._kept = kept | {"undone": self._undone}
            else:
                self._go_back()
            self.search.done()

    def _go_back(self) -> None:
        steps = self.steps
        self._undone = self._kept["undone"] + steps - self._kept["steps"]
        super().load_state_dict(self._kept)  # which copies
        self.steps = steps

    def _backward(self, *, last: bool) -> Tensor:
        loss = super()._backward(last=last)
        self._losses.append(loss)
        return loss

    def _metrics(self) -> Metrics:
        found = super()._metrics()
        for _ in range(2 if self._waits and self.device.type == "cuda" else 0):  # a copy under way, and this step's
            torch.cuda.synchronize(self.device)
            found = super()._metrics()
        return replace(found, step=found.step + self._undone)

    def state_dict(self) -> dict[str, Any]:
        """As of a Trainer, with the search and the state that it may go back to."""
        own = {"search": self.search.state_dict(), "kept": self._kept, "undone": self._undone}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict()` gave."""
        self.search.load_state_dict(state["search"])
        self._kept, self._undone = copy.deepcopy(state["kept"]), state["undone"]  # no longer in the checkpoint's file
        super().load_state_dict(state)
