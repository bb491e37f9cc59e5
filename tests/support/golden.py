"""Golden traces of transformers.optimization.GreedyLR 5.17, as data that every backend replays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from greedylr_fused import GreedyLR


@dataclass(frozen=True)
class Row:
    loss: float
    lr: float
    expected: dict[str, float]
    reason: str


@dataclass(frozen=True)
class Trace:
    config: GreedyLR
    lr: float
    rows: list[Row] = field(default_factory=list)


def _rows(columns, *rows):
    return [Row(loss, lr, dict(zip(columns, values, strict=True)), why) for loss, lr, *values, why in rows]


TRACES = {
    "A": Trace(
        GreedyLR(patience=1, factor=0.5, min_lr=1e-5, max_lr=1e-2, warmup=1, cooldown=1, smooth=False),
        1e-3,
        _rows(
            ("best", "good", "warmup_left"),
            (5.0, 0.001, 5.0, 1, 0, "the first loss beats infinity"),
            (4.0, 0.002, 4.0, 0, 1, "second better one in a row: raise, then wait"),
            (3.0, 0.002, 4.0, 0, 0, "waiting: not compared, best stays"),
            (3.5, 0.002, 3.5, 1, 0, "the 3 was never seen, so 3.5 is a new best"),
            (3.4, 0.004, 3.4, 0, 1, "second in a row: raise"),
            (2.9, 0.004, 3.4, 0, 0, "waiting"),
            (2.8, 0.004, 2.8, 1, 0, "better"),
            (2.7, 0.008, 2.7, 0, 1, "second in a row: raise"),
        ),
    ),
    "B": Trace(
        GreedyLR(patience=0, factor=0.8, min_lr=1e-3, max_lr=2e-3, smooth=True, window_size=3),
        1e-3,
        _rows(
            ("best",),
            (6.0, 0.00125, 6.0, "mean 6 of one: raise by division"),
            (3.0, 0.0015624999999999999, 4.5, "mean 4.5 of two; 0.00125 / 0.8 is not 0.0015625"),
            (9.0, 0.00125, 4.5, "mean 6 of three: cut"),
            (3.0, 0.001, 4.5, "mean 5, the 6 has left the window: cut"),
            (0.0, 0.00125, 4.0, "mean 4: raise"),
            (0.0, 0.0015624999999999999, 1.0, "mean 1: raise"),
            (9.0, 0.00125, 1.0, "mean 3: cut"),
            (9.0, 0.001, 1.0, "mean 6: cut"),
        ),
    ),
    "C": Trace(
        GreedyLR(patience=0, factor=0.5, min_lr=1e-4, max_lr=1e-2, reset_start=2, smooth=False),
        4e-4,
        _rows(
            ("resets_left", "best"),
            (1.0, 8e-4, 2, 1.0, "better: raise"),
            (2.0, 4e-4, 2, 1.0, "cut"),
            (2.0, 2e-4, 2, 1.0, "cut"),
            (2.0, 1e-4, 1, 1.0, "the cut that reaches the floor counts already"),
            (2.0, 4e-4, 2, math.inf, "second cut at the floor: start over"),
            (2.0, 8e-4, 2, 2.0, "anything beats infinity"),
            (2.0, 4e-4, 2, 2.0, "a tie is not better: cut"),
        ),
    ),
    "D": Trace(
        GreedyLR(patience=0, factor=0.9, threshold=0.01, threshold_mode="rel", min_lr=1e-3, max_lr=1.0, smooth=False),
        1e-3,
        _rows(
            (),
            (2.0, 0.0011111111111111111, "first"),
            (1.99, 0.001, "not better by one percent: cut"),
            (1.97, 0.0011111111111111111, "1.97 < 2 * 0.99"),
            (1.95, 0.0012345679012345679, "1.95 < 1.97 * 0.99"),
        ),
    ),
    "R": Trace(
        GreedyLR(patience=0, factor=0.5, min_lr=0.05, max_lr=1.0, cooldown=7, reset_start=2, smooth=False),
        0.1,
        _rows(
            ("resets_left", "cooldown_left", "best"),
            (1.0, 0.2, 2, 0, 1.0, "better: raise"),
            (2.0, 0.1, 2, 7, 1.0, "cut, then wait"),
            *((2.0, 0.1, 2, 6 - i, 1.0, "waiting") for i in range(7)),
            (2.0, 0.05, 1, 7, 1.0, "call 10: cut to the floor, which counts"),
            *((2.0, 0.05, 1, 6 - i, 1.0, "waiting") for i in range(7)),
            (2.0, 0.1, 2, 7, math.inf, "call 18: start over, and then the wait is set, after the reset"),
            *((2.0, 0.1, 2, 6 - i, math.inf, "waiting at the starting LR") for i in range(7)),
            (2.0, 0.2, 2, 0, 2.0, "call 26: anything beats infinity"),
        ),
    ),
}
