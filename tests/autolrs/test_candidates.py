"""Which learning rate is tried next."""

import math

import pytest

from greedylr_fused.autolrs import candidates

LOW, HIGH = 1e-4, 1e-2


def position(lr):
    return math.log(lr / LOW) / math.log(HIGH / LOW)


def tries(loss, count=10, seed=0):
    lr = candidates.first(LOW, HIGH, f"{seed}")
    told, found = [(lr, loss(position(lr)))], [lr]
    while len(found) < count:
        lr, told = candidates.following(told, LOW, HIGH, seed)
        found.append(lr)
        told.append((lr, loss(position(lr))))
    return found, told


def test_the_first_is_drawn_from_the_whole_range_and_by_its_seed():
    drawn = [position(candidates.first(LOW, HIGH, f"{seed}")) for seed in range(400)]
    assert 0 < min(drawn) < 0.02 and 0.98 < max(drawn) < 1
    # The mean of 400 uniform numbers has a deviation of 1 / sqrt(12 * 400): within four of them.
    assert abs(sum(drawn) / 400 - 0.5) < 4 / math.sqrt(12 * 400)
    assert candidates.first(LOW, HIGH, "1") == candidates.first(LOW, HIGH, "1") != candidates.first(LOW, HIGH, "2")


def test_what_is_known_least_is_tried():
    """Ends and gaps, whatever the losses were: with this kappa they only tell how far one LR speaks for others."""
    found, told = tries(lambda u: 1e6 if u > 0.8 else 2 + 4 * (u - 0.6) ** 2)
    assert len(set(found)) == 10 and all(LOW <= lr <= HIGH for lr in found)
    assert {LOW, HIGH} <= set(found), "to the bit"
    places = sorted(map(position, found))
    widest = max(after - before for before, after in zip(places, places[1:], strict=False))
    assert widest < 2.5 / 9, "no gap is much wider than that of ten in equal distance"
    assert dict(told).keys() == set(found)
    assert candidates.following(told[:4], LOW, HIGH, 0) == candidates.following(told[:4], LOW, HIGH, 0)


def bounds_at(told, places):
    rates = [LOW * (HIGH / LOW) ** place for place in places]
    return dict(zip(places, candidates._lower_bounds(told, rates, LOW, HIGH, 0), strict=True))


def test_the_bound_is_lowest_in_the_middle_of_the_widest_gap():
    told = [(LOW, 3.0), (LOW * (HIGH / LOW) ** 0.3, 2.5), (HIGH, 2.0)]
    found = bounds_at(told, [0.0, 0.15, 0.3, 0.5, 0.65, 0.8, 1.0])
    assert min(found, key=found.get) == 0.65
    assert max(found[place] for place in (0.15, 0.5, 0.65, 0.8)) < min(found[place] for place in (0.0, 0.3, 1.0))


def test_noise_of_the_losses_is_not_uncertainty_of_their_mean():
    """Nine losses at one place, with a deviation of nearly 1/2: that of their mean is a third of it at most."""
    middle = math.sqrt(LOW * HIGH)
    told = [(middle, 3.0 + 0.5 * (-1) ** n) for n in range(8)] + [(middle, 3.0)]
    ((_, bound),) = bounds_at(told, [0.5]).items()
    assert 0 < -bound / 1e6 < 0.5 / 3


def test_an_lr_that_was_tried_is_told_again(monkeypatch):
    """As often as the process asks for it, and then its loss is that of before."""
    grid_ends = iter([1.0, 1.0, 0.0])

    def bounds(told, grid, *_):
        wanted = next(grid_ends)
        return [abs(position(lr) - wanted) for lr in grid]

    monkeypatch.setattr(candidates, "_lower_bounds", bounds)
    lr, told = candidates.following([(HIGH, 4.0)], LOW, HIGH, 0)
    assert lr == LOW and told == [(HIGH, 4.0)] * 3


def test_a_process_that_asks_for_one_lr_for_ever_ends_in_the_widest_gap(monkeypatch):
    monkeypatch.setattr(candidates, "_lower_bounds", lambda told, grid, *_: [position(lr) for lr in grid])
    lr, told = candidates.following([(LOW, 1.0), (HIGH, 1.0)], LOW, HIGH, 0)
    assert position(lr) == pytest.approx(0.5, abs=1e-3) and len(told) == 22
