"""A model with its batches, and what a scenario does to them. Same seed: same start, same batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.evidence import corpora
from benchmarks.evidence.corpora import Text
from benchmarks.evidence.models import CLASSES
from benchmarks.example import GPT, VOCABULARY, Batches, held_out_batches, parameter_groups

LABEL_NOISE = {"digits": 0.2, "text": 0.1}  # share of the labels, or bytes to predict, that are random
SMALL_BATCH = 8  # the batch is divided by this, down to one sample or window
SHIFT = 3  # by which labels are turned, half-way
GARBAGE = 0.01  # probability that a batch has random labels, or bytes to predict; in the scenario `spikes`
GARBAGE_FROM = 0.2  # of the run: what judges spikes has seen 64 losses then
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """What a run does to a task.

    Attributes:
        steps: of the whole run.
        seed: of the start and the batches.
        scenario: "clean", "spikes" or one of `benchmarks.evidence.presets.SCENARIOS`.
        device: where.
        start: parameters to start from, or None.
    """

    steps: int
    seed: int
    scenario: str
    device: torch.device
    start: dict[str, Tensor] | None = None

    def batch(self, size: int) -> int:
        """Samples per step."""
        return max(1, size // SMALL_BATCH) if self.scenario == "small-batch" else size

    def shifted(self, step: int) -> bool:
        """Whether the second half of a run in which the data change has begun."""
        return self.scenario == "shift" and step >= self.steps // 2

    def spiked(self, targets: Tensor, kinds: int, step: int, noise: torch.Generator) -> Tensor:
        """The targets of a batch, or where it is one of the few that are garbage, random ones of so many kinds."""
        if self.scenario != "spikes":
            return targets
        garbage = torch.rand((), generator=noise).item() < GARBAGE and step >= GARBAGE_FROM * self.steps
        wrong = torch.randint(kinds, targets.shape, generator=noise)
        return wrong.to(targets.device) if garbage else targets

    def generator(self, purpose: int) -> torch.Generator:
        """A sequence of random numbers of its own for each purpose."""
        return torch.Generator().manual_seed(1_000_003 * purpose + self.seed)


class Trainee:
    """A model with its batches.

    Attributes:
        model: called with inputs and targets, returns the mean loss.
        max_grad_norm: to clip to, or None.
        betas, weight_decay: of AdamW.
    """

    model: nn.Module
    max_grad_norm: float | None = None
    betas = (0.9, 0.999)
    weight_decay = 0.01
    autocast = False

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups."""
        return parameter_groups(self.model, self.weight_decay)

    def batch(self, step: int) -> Pair:
        """Inputs and targets of a step; steps are asked for in their order."""
        raise NotImplementedError

    def test(self, step: int) -> list[tuple[Tensor, Tensor, int]]:
        """Held-out inputs, targets and their weight, as they are at that step."""
        raise NotImplementedError

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats, bfloat16 products on a GPU for the large model."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model(inputs, targets)  # type: ignore[no-any-return]

    @torch.no_grad()
    def held_out(self, step: int) -> float:
        """Mean held-out loss; waits for the device."""
        parts = [(self.loss(x, y).double() * n, n) for x, y, n in self.test(step)]
        return float(sum(loss for loss, _ in parts)) / sum(n for _, n in parts)


class DigitsTrainee(Trainee):
    """Images in a new random order each time that all have been seen.

    Args:
        make: the model.
        batch: images per step.
        setting: of the run.
    """

    def __init__(self, make: Callable[[], nn.Module], batch: int, setting: Setting) -> None:
        torch.manual_seed(setting.seed)
        self.model = make().to(setting.device)
        data = corpora.digits()
        parts = (data.train_images, data.train_labels, data.test_images, data.test_labels)
        self._images, labels, self._test_images, self._test_labels = (part.to(setting.device) for part in parts)
        self._setting, self._size, self._order = setting, setting.batch(batch), setting.generator(1)
        self._spikes = setting.generator(5)
        if setting.scenario == "label-noise":
            noise = setting.generator(2)
            hit = (torch.rand(len(labels), generator=noise) < LABEL_NOISE["digits"]).to(setting.device)
            wrong = torch.randint(CLASSES, (len(labels),), generator=noise).to(setting.device)
            labels = torch.where(hit, wrong, labels)
        self._labels = labels
        self._left = torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Pair:
        while len(self._left) < self._size:
            order = torch.randperm(len(self._labels), generator=self._order)
            self._left = torch.cat((self._left, order))
        chosen, self._left = self._left[: self._size], self._left[self._size :]
        chosen = chosen.to(self._images.device)
        targets = self._turned(self._labels[chosen], step)
        return self._images[chosen], self._setting.spiked(targets, CLASSES, step, self._spikes)

    def test(self, step: int) -> list[tuple[Tensor, Tensor, int]]:
        return [(self._test_images, self._turned(self._test_labels, step), len(self._test_labels))]

    def _turned(self, labels: Tensor, step: int) -> Tensor:
        return (labels + SHIFT) % CLASSES if self._setting.shifted(step) else labels


class TextTrainee(Trainee):
    """Random windows of a text.

    Args:
        make: the GPT.
        batch: windows per step.
        texts: the text, and the one that takes its place when the data change.
        setting: of the run.
        windows: held-out ones.
    """

    max_grad_norm = 1.0
    betas = (0.9, 0.95)
    weight_decay = 0.1

    def __init__(
        self, make: Callable[[], GPT], batch: int, texts: tuple[Text, Text], setting: Setting, windows: int = 64
    ) -> None:
        torch.manual_seed(setting.seed)
        self.model = gpt = make()
        context = gpt.cos.shape[0]
        if setting.start is not None:
            self.model.load_state_dict(setting.start)
        self.model.to(setting.device)
        self.autocast = setting.device.type == "cuda"
        self._setting, self._noise, size = setting, setting.generator(2), setting.batch(batch)
        self._batches, self._tests, self._spikes = [], [], setting.generator(5)
        for index, text in enumerate(texts):
            seed = 1_000_003 * (index + 3) + setting.seed
            self._batches.append(Batches(text.train, size, context, seed, setting.device, _all))
            parts = held_out_batches(text.held_out, 32, context, windows, setting.device, _all)
            self._tests.append(list(parts))

    def batch(self, step: int) -> Pair:
        inputs, targets = self._batches[self._setting.shifted(step)].next()
        if self._setting.scenario == "label-noise":
            hit = torch.rand(targets.shape, generator=self._noise) < LABEL_NOISE["text"]
            wrong = torch.randint(VOCABULARY, targets.shape, generator=self._noise)
            targets = torch.where(hit.to(targets.device), wrong.to(targets.device), targets)
        return inputs, self._setting.spiked(targets, VOCABULARY, step, self._spikes)

    def test(self, step: int) -> list[tuple[Tensor, Tensor, int]]:
        return self._tests[self._setting.shifted(step)]


def _all(starts: Tensor) -> Tensor:
    return starts
