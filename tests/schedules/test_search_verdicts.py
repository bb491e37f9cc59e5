"""Each way in which a trial of Climb and its control may end: the specification's verdict, in words."""

import pytest
from support import second_search
from support.searches import VERDICTS, hexadecimal, rows, verdict

from greedylr_fused.schedules import Phase, SearchSpec

THIRD = 1 / 3
#: The level at the end; where there is time for one trial alone the second number.
LEVELS = {
    "explodes": (THIRD, THIRD),
    "a spike in the first": (1.0, THIRD),
    "both lose, together by enough": (THIRD, THIRD),
    "both lose, and not by enough": (1.0, 1.0),
    "the first wins by little, the second loses": (1.0, 1.0),
    "a tie, and a tie": (1.0, 1.0),
    "the first fails, the second loses": (THIRD, THIRD),
    "the first fails, the second ties": (1.0, THIRD),
    "the second fails": (THIRD, 1.0),
    "all win": (9.0, 1.0),
    "the third fails": (1.0, 1.0),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name, late):
    config, losses = verdict(name, late=late)
    spec = SearchSpec(config)
    assert rows(spec, losses) == hexadecimal(second_search.Run(config, losses).rows)
    assert spec.phase is Phase.FROZEN and spec.level == pytest.approx(LEVELS[name][late])
