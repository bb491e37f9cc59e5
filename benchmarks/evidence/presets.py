"""How much of everything is run: `quick` in seconds, `standard` in about 110 minutes of one core, `full` in days."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.evidence.finders import ADALRS_CHOICES
from benchmarks.evidence.formats import NOISY, STORED
from benchmarks.evidence.schedules import ABLATED, HOLDS, LOSS_DRIVEN, STEP, ablations_of
from benchmarks.evidence.tasks import TASKS

SCENARIOS: dict[str, str] = {
    "label-noise": "a share of the labels (20% of the digits) or of the bytes to predict (10%) is random",
    "small-batch": "batches of an eighth of the size, and so gradients and losses with more noise",
    "noisy-loss": "normal noise, standard deviation 0.5 nats, on the loss that the schedule alone sees",
    "shift": "half-way all labels change, or the text does",
}
ALL = (*STEP, *LOSS_DRIVEN)
#: Where a run is dear: the usual ones, and each way to let the loss decide.
SOME = ("constant", "linear", "cosine", "wsd", "rex", "greedy-raw", "greedy-smooth", "greedy-constant")
SOME += ("greedy-linear", "greedy-wsd", "plateau")
#: Where the loss, the batch or the data are disturbed.
DISTURBED = ("constant", "linear", "cosine", "wsd", "greedy-raw", "greedy-smooth", "greedy-constant", "greedy-linear")
DISTURBED += ("plateau",)
FEW = ("constant", "linear", "cosine", "wsd", "greedy-smooth", "greedy-constant", "greedy-linear")


@dataclass(frozen=True)
class Share:
    """What a preset does with one task.

    Attributes:
        task: name.
        schedules: to be tuned, and compared at their best LR.
        third, tenth: those compared at 1/3 and 3, at 1/10 and 10 times that LR, too.
        scenarios: those compared in each scenario.
        disturbed: scenarios, "spikes" among them, each with a schedule that is compared in it, besides `scenarios`.
        tuning_seeds, seeds: of tuning, of the comparison.
        first_seed: of the comparison; the others follow.
        ablations: variants of GreedyLR or AdaLRS to be compared at the best LR of what they vary; with `ablations_off`
            at 1/3 and 3 times that, too.
        stored: conditions and formats of `formats`, in which runs at `lr` are compared with each other.
        noisy, noisy_seeds: those of them that have so many seeds instead.
    """

    task: str
    schedules: tuple[str, ...]
    third: tuple[str, ...] = ()
    tenth: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    disturbed: tuple[tuple[str, str], ...] = ()
    tuning_seeds: int = 1
    seeds: int = 5
    first_seed: int = 0
    ablations: tuple[str, ...] = ()
    ablations_off: bool = False
    stored: tuple[tuple[str, str], ...] = ()
    noisy: tuple[tuple[str, str], ...] = ()
    noisy_seeds: int = 0
    lr: float | None = None


@dataclass(frozen=True)
class Preset:
    """What is run.

    Attributes:
        shares: tasks in the order of interest.
        length: steps of each run, as a multiple of the task's.
        finds: the report asks what a wrong LR costs, and who recovers it.
    """

    shares: tuple[Share, ...]
    length: float = 1.0
    finds: bool = False

    def steps(self, task: str) -> int:
        """Of each run of the task."""
        return max(20, round(TASKS[task].steps * self.length))

    def only(self, tasks: tuple[str, ...]) -> Preset:
        """These tasks, in their order; one that the preset does not have gets the share of a dear one."""
        own = {share.task: share for share in self.shares}
        return replace(self, shares=tuple(own.get(task, Share(task, FEW, FEW)) for task in tasks))


#: What the defaults of GreedyLR were chosen from; and when it should first decide.
_VARIANTS = tuple(n for base in ("constant", "linear") for n in ablations_of(base) if "hold" not in n)
_HELD = tuple(f"greedy-{base}" for base in ABLATED)
_HOLDS = tuple(f"{name} hold={hold}" for name in _HELD for hold in HOLDS)

#: Ways to find a learning rate, or to forgive a wrong one, in the order in which they are run.
FIND = ("linear", "wsd", "cosine", "greedy-linear", "greedy-wsd", "mechanic-linear", "autolrs")
FIND += ("climb", "adalrs")
#: What was added when the first results had been seen, and chooses nothing.
AFTERWARDS = ("linear-warm12", "linear adamc", "climb replay", "climb paired")
#: The two of them that the plan's rule chose by the first part, beside `linear`.
FURTHER = ("linear", "climb", "greedy-wsd")
_SPIKES = ("linear", "linear skip-spikes", "greedy-linear", "greedy-wsd", "greedy-wsd skip-spikes", "mechanic-linear")
_SPIKES += ("climb",)
_CHANGED = ("linear", "greedy-linear", "greedy-wsd", "mechanic-linear", "climb")
_DISTURBED = (
    *(("spikes", name) for name in _SPIKES),
    *(("label-noise", name) for name in _CHANGED),
    *(("shift", name) for name in _CHANGED),
)


def _find(task: str, tuning_seeds: int, seeds: int, disturbed: tuple[tuple[str, str], ...] = ()) -> Share:
    """Seeds that neither the defaults of GreedyLR nor those of the searches were chosen on."""
    every = FIND + AFTERWARDS
    whole = Share(task, every, every, FURTHER, disturbed=disturbed, tuning_seeds=tuning_seeds, seeds=seeds)
    return replace(whole, first_seed=100, ablations=tuple(ADALRS_CHOICES), ablations_off=True)


_STANDARD = (
    Share("mlp", ALL, ALL, SOME, SOME, tuning_seeds=2, seeds=7, ablations=_VARIANTS, ablations_off=True),
    Share("gpt-tiny", ALL, SOME, FEW, DISTURBED, ablations=_VARIANTS),
    Share("convnet", ALL, SOME, SOME, DISTURBED, ablations=_VARIANTS),
    Share("finetune", SOME, SOME),
    Share("gpt-small", FEW),
)


def _everything(share: Share) -> Share:
    seeds = {"tuning_seeds": max(2, share.tuning_seeds), "seeds": max(10, share.seeds)}
    whole = replace(share, schedules=ALL, third=ALL, tenth=ALL, scenarios=ALL, ablations=_VARIANTS, ablations_off=True)
    return replace(whole, **seeds)


_QUICK = ("linear", "cosine", "greedy-linear")
PRESETS: dict[str, Preset] = {
    "quick": Preset((Share("mlp", _QUICK, ("greedy-linear",), scenarios=("greedy-linear",), seeds=2),), length=0.05),
    "standard": Preset(_STANDARD),
    "state": Preset(
        (
            Share("gpt-tiny", (), seeds=5, stored=STORED, noisy=NOISY, noisy_seeds=24, lr=1e-3),
            Share("convnet-wide", (), seeds=16, stored=STORED, lr=1e-3),
        )
    ),
    "hold": Preset(
        tuple(
            Share(task, _HELD, _HELD, tuning_seeds=2, seeds=10, ablations=_HOLDS, ablations_off=True)
            for task in ("mlp", "gpt-tiny", "convnet")
        )
    ),
    "find": Preset(
        (
            _find("gpt-tiny", 1, 5, _DISTURBED),
            _find("convnet", 2, 8, _DISTURBED),
            _find("finetune", 1, 5),
            _find("mlp", 2, 8, _DISTURBED),
            Share("gpt-medium", FURTHER + AFTERWARDS, FURTHER + AFTERWARDS, first_seed=100),
        ),
        finds=True,
    ),
    "full": Preset(tuple(_everything(share) for share in _STANDARD), length=10.0),
}
