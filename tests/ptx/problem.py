"""Tables that reach every branch of the kernels: tensors of two mixes of storage types, large and small and empty, on
multiples of 16 bytes and off them, without gradients, with and without amsgrad, in groups of unlike options.
"""

import numpy as np

from ptx.arena import Arena, stored
from ptx.names import BLOCKS, MIXES, SLOT, SLOTS, DType, Hyper, Row, block, ring_begin, shown

Mix = tuple[DType, DType, DType]
ALL_MIXES: list[Mix] = sorted(MIXES)
CHUNK = 256  # elements
SPIKES = 40  # values in each ring of spikes
GROUP = 64  # elements that share scales
TENSORS = range(Row.EXP_AVG_SQ_SCALE + 1)  # the rows that point to a tensor's elements, or its scales
REMAINDERS = {DType.BF16_R16: np.int16, DType.BF16_R8: np.int8}
#: By group: both forms of the first moment's update (beta1 below or above 1/2), with and without each option.
GROUPS = [
    {Hyper.BETA1: 0.9, Hyper.BETA2: 0.99, Hyper.EPS: 1e-6, Hyper.WEIGHT_DECAY: 0.1},
    {Hyper.BETA1: 0.3, Hyper.BETA2: 0.95, Hyper.EPS: 1e-8, Hyper.MAXIMIZE: 1},
    {Hyper.BETA1: 0.9, Hyper.BETA2: 0.999, Hyper.EPS: 1e-6, Hyper.WEIGHT_DECAY: 0.01, Hyper.MAXIMIZE: 1},
    {Hyper.BETA1: 0.0, Hyper.BETA2: 0.5, Hyper.EPS: 1e-3, Hyper.WEIGHT_DECAY: 0.5},
]
LEVELS = {"lr": 0.01, "initial_lr": 0.01, "level": 0.01, "min_lr": 1e-4, "max_lr": 1.0}
#: GreedyLR with everything that it can do, impatient, and a curve that ends within a few steps.
SCHEDULE = {
    "kind": 1, "raises": 1, "factor": 0.5, "patience": 1, "threshold": 1e-4, "cooldown": 1, "warmup": 1, "eps": 1e-9,
    "reset_start": 3, "resets_left": 3, "best": np.inf, "curve_length": 3, "decay_start": 2, "decay_steps": 2,
    "max_grad_norm": np.inf, "grad_scale": 1, "grad_multiplier": 0.75, "spike_minimum": 2,
    "spike_sigmas": 1e9, "spike_losses": 40, "losses_head": 3, "spike_norms": 38, "norms_head": 38,
}  # fmt: skip
#: Others to change to on the way: all that `observe` in csrc/core asks for.
SCHEDULES = {
    "kind": [0, 1, 1, 1, 2, 3, 3, 4, 4], "raises": [0, 1], "mode_max": [0, 1], "threshold_rel": [0, 1],
    "compare_with": [0, 1, 2], "forget_every": [0, 1, 2], "patience": [0, 0, 1], "cooldown": [0, 1], "warmup": [0, 1],
    "factor": [0.5, 0.1], "resets_left": [1, 3], "best": [0.9, 1.2], "curve_length": [0, 3, 3],
    "decay_start": [2, np.inf], "spike_sigmas": [1e9, 1e9, 0.5],
    # Of a level search, wherever it may be.
    "phase": [0, 1, 2, 2, 3], "search_until": [1e9, 1e9, 2], "settle": [0, 2], "anneal": [0, 3], "raise_by": [3, 1.5],
    "cut_by": [2], "fade": [0.9], "lowest": [0.1], "highest": [1, 9], "errors": [0, 2],
    "window_step": [0, 4, 599], "search_level": [1 / 3, 1, 3], "trial_level": [1, 1, 3], "search_losses": [0, 4, 300],
    "first_loss": [1], "sum_y": [0, 0.3], "sum_yy": [0, 0.7], "sum_xy": [0, -0.4], "kept": [np.nan, 0.9, 1.5],
    "kept_var": [0, 0.1], "again": [0, 1], "gain": [-0.5, 0.5], "gain_var": [0, 0.1], "rising": [0, 1],
    "faded": [1, 0.9], "worst_loss": [-np.inf, 1.2],
}  # fmt: skip
CURVE = [1.0, 0.9, 0.8, 1.0, 0.7, 0.3]
EXTREME = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 6e-8, 1e-7, 65504.0, 3e38, -3e38, np.inf]


class Problem:
    """One table in an arena of its own; of equal arguments, equal ones.

    Args:
        mixes: of the first third of the tensors and of the others.
        sizes: elements of each tensor, made whole groups where moments have 8 bits.
        scratch: bytes that the kernels need.
        window: losses that the schedule smooths over, 0: none.
        l1: whether absolute values are measured, too.

    Attributes:
        arrays: (dtype, bits) of a tensor's elements, by row and number of the tensor.
        views: the table's other arrays, by the name of the argument that points to them.
    """

    def __init__(
        self, mixes: tuple[Mix, Mix], sizes: list[int], scratch: int, seed: int, window: int = 0, l1: bool = False
    ) -> None:
        self.second = len(sizes) // 3  # the first tensor of the second mix, whose launch closes the step
        self.mixes = mixes
        self.sizes = sizes = [
            -(-size // GROUP) * GROUP if self._mix(t)[2] == DType.Q8 else size for t, size in enumerate(sizes)
        ]
        self.random = np.random.default_rng(seed)
        self.arena = Arena(60 * sum(sizes) + 1500 * len(sizes) + scratch + 100_000)
        self.arrays: dict[tuple[int, int], tuple[DType, np.ndarray]] = {}
        self.views: dict[str, np.ndarray] = {}
        self.addresses: dict[str, int] = {}
        self._place("ptrs", self._tensors())
        self._place_table()
        self._place("control", control(window))
        self._place("snapshot", np.zeros(len(self.shown) + 2))
        self.l1 = l1
        self._place("scratch", np.zeros(scratch, np.uint8))

    def _place(self, name: str, array) -> None:
        self.addresses[name], self.views[name] = self.arena.place(array)

    def _mix(self, tensor: int) -> Mix:
        return self.mixes[tensor >= self.second]

    def has_codes(self, tensor: int) -> bool:
        """Whether its moments have 8 bits."""
        return self._mix(tensor)[2] == DType.Q8

    def _tensors(self):
        """Places all elements; their addresses by row and tensor."""
        addresses = np.zeros((len(Row), len(self.sizes)), np.int64)
        for row in TENSORS:
            for t, size in enumerate(self.sizes):
                dtype, bits = self._bits(row, t, size)
                if bits is None:
                    continue
                # On multiples of 16 bytes; off them, all streams by as many elements; each by another number of them.
                offset = [0, t, t + 2 * row, t + 3 * row][t % 4] % 9
                addresses[row, t], view = self.arena.place(bits, offset * bits.itemsize)
                self.arrays[row, t] = dtype, view
        for t, size in enumerate(self.sizes):
            run = {1: GROUP, 2: 3 * GROUP}.get(t % 4, max(size, 1))
            first = (1 << 32) - 2 * GROUP if t % 3 == 0 else 100 * GROUP * t
            addresses[Row.NUMBER : Row.STRIDE + 1, t] = t, first, run, run + t % 5 * GROUP
        return addresses

    def _bits(self, row: int, t: int, size: int):
        """The type and bits of a tensor's row; None where it has none."""
        param, grad, state = self._mix(t)
        extreme = t % 5 == 2
        if row > Row.REMAINDER:
            scales = np.minimum(0.1 * np.abs(self._numbers(row, size // GROUP, extreme)), 3e38)  # as stored ones are
            return DType.F32, stored(DType.F32, scales) if state == DType.Q8 else None
        if row == Row.REMAINDER:
            remainder = REMAINDERS.get(param)
            return DType.Q8, None if remainder is None else self.random.integers(-128, 128, size).astype(remainder) * 3
        if (row == Row.GRAD and t % 7 == 3) or (row == Row.MAX_EXP_AVG_SQ and (t % 3 != 1 or state == DType.Q8)):
            return state, None
        dtype = {Row.PARAM: param, Row.GRAD: grad}.get(row, state)
        return dtype, stored(dtype, self._numbers(row, size, extreme))

    def _numbers(self, row: int, size: int, extreme: bool):
        numbers = self.random.standard_normal(size)
        if extreme:
            some = self.random.random(size) < 0.1
            numbers[some] = self.random.choice(EXTREME, some.sum())
            if row in (Row.PARAM, Row.GRAD) and size > 20:
                numbers[self.random.integers(size)] = np.nan
        return 0.1 * np.abs(numbers) if row in (Row.EXP_AVG_SQ, Row.MAX_EXP_AVG_SQ) else numbers

    def _place_table(self) -> None:
        tensors = np.arange(len(self.sizes))
        counts = -(-np.array(self.sizes) // CHUNK)
        self._place("numel", np.array(self.sizes, np.int64))
        self._place("group", ((5 * tensors + tensors // 4) % len(GROUPS)).astype(np.int32))
        self._place("hyper", np.array([[group.get(column, 0.0) for column in Hyper] for group in GROUPS]))
        self._place("steps", (tensors // 5 % 3).astype(np.float32))
        self.views["ptrs"].reshape(len(Row), -1)[Row.STEP] = self.addresses["steps"] + 4 * tensors
        self._place("loss", np.zeros(8, np.uint8))
        self._place("norm_weight", 1.0 / (1 + tensors % 3))
        self._place("chunk_tensor", np.repeat(tensors, counts).astype(np.int32))
        self._place("chunk_index", np.concatenate([np.arange(count) for count in counts]).astype(np.int32))
        self._place("curve", np.array(CURVE))
        self.n_chunks = int(counts.sum())
        first = int(counts[: self.second].sum())
        launches = [(*self.mixes[0], 0, first), (*self.mixes[1], first, self.n_chunks - first)]
        self.launches = [launch for launch in launches if launch[-1]]

    def loss(self, dtype: DType | None, value: float) -> tuple[int, int]:
        """The address of a loss of that type and value, and the type's code; none for None."""
        if dtype is None:
            return 0, 0
        bits = stored(dtype, np.array([value])).view(np.uint8)
        self.views["loss"][: len(bits)] = bits
        return self.addresses["loss"], int(dtype)

    def table(self) -> dict[str, object]:
        """Arguments of a backend's TensorTable, but for those of GPUs."""
        counts = {"n_tensors": len(self.sizes), "n_chunks": self.n_chunks, "chunk": CHUNK}
        addresses = {
            name: address
            for name, address in self.addresses.items()
            if name not in ("scratch", "snapshot", "steps", "loss")
        }
        return {**addresses, **counts, "l1": self.l1, "tuned": False, "launches": self.launches}

    @property
    def shown(self):
        """What a snapshot shows of the control vector."""
        return self.views["control"][shown(len(GROUPS))]

    def __getitem__(self, slot: str) -> float:
        return float(self.views["control"][SLOT[slot]])

    def __setitem__(self, slot: str, value: float) -> None:
        self.views["control"][SLOT[slot]] = value

    def new_gradients(self, scale: float, bad: float | None) -> None:
        """Others in place of all, one element of them being `bad`."""
        views = [found for (row, _), found in self.arrays.items() if row == Row.GRAD and len(found[1])]
        for dtype, view in views:
            view[:] = stored(dtype, scale * self.random.standard_normal(len(view)))
        if bad is not None:
            dtype, view = views[self.random.integers(len(views))]
            view[self.random.integers(len(view))] = stored(dtype, [bad])[0]


def control(window: int):
    """A control vector at the start."""
    slots = SCHEDULE | {"n_groups": len(GROUPS), "smooth": float(window > 0), "window_size": window}
    spikes = 1.0 / (1 + np.arange(2 * SPIKES) % 7)
    vector = np.concatenate([np.zeros(ring_begin(len(GROUPS)) + window), spikes])
    for name, value in slots.items():
        vector[SLOT[name]] = value
    for name in BLOCKS:
        ladder = np.arange(1, len(GROUPS) + 1) if LEVELS[name] == LEVELS["lr"] else 1.0
        vector[block(name, len(GROUPS))] = LEVELS[name] * ladder
    return vector


def name_of_slot(index: int) -> str:
    return SLOTS[index] if index < len(SLOTS) else f"value {index}"
