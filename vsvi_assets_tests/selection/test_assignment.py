"""No image twice: as many places as possible, at the least cost of all."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from vsvi_assets.selection import assignment
from vsvi_assets.selection.assignment import Wishes, assign


def wishes_of(table: np.ndarray, listed: int) -> Wishes:
    """Return the first wishes of each row of a table of costs, in which infinite means none."""
    places, images, costs, ranks = [], [], [], []
    for place, row in enumerate(table):
        for rank, image in enumerate(np.lexsort([np.arange(len(row)), row])[:listed], 1):
            if np.isfinite(row[image]):
                places.append(place)
                images.append(image)
                costs.append(row[image])
                ranks.append(rank)
    return Wishes(
        np.array(places, np.int64),
        np.array(images, np.int64),
        np.array(costs, float),
        np.array(ranks, np.int64),
        np.isfinite(table).sum(axis=1),
    )


def assigned(table: np.ndarray) -> tuple[int, float]:
    """Assign with lists that are as long as is asked for; return how many, and their cost."""
    listed = 1
    while True:
        wishes = wishes_of(table, listed)
        chosen, wanting = assign(wishes)
        if not len(wanting):
            break
        assert not chosen.any()
        assert (wishes.wishes[wanting] > listed).all()
        listed += 1
    place, image = wishes.place[chosen], wishes.image[chosen]
    assert len(np.unique(place)) == len(np.unique(image)) == len(place)
    return len(place), float(wishes.cost[chosen].sum())


def best(table: np.ndarray) -> tuple[int, float]:
    finite = np.where(np.isfinite(table), table, 1e9)
    chosen = table[linear_sum_assignment(finite)]
    chosen = chosen[np.isfinite(chosen)]
    return len(chosen), float(chosen.sum())


def greedy(table: np.ndarray) -> tuple[int, float]:
    left, costs = table.copy(), []
    while np.isfinite(left).any():
        place, image = np.unravel_index(np.argmin(left), left.shape)
        costs.append(left[place, image])
        left[place, :] = left[:, image] = np.inf
    return len(costs), float(sum(costs))


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Draw costs of places and images, which have at least one wish each; many are equal."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    costs = numbers.integers(0, draw(st.sampled_from([3, 20, 10**6])), shape).astype(float)
    costs[numbers.random(shape) > draw(st.sampled_from([0.15, 0.4, 1.0]))] = np.inf
    return costs[np.isfinite(costs).any(axis=1)]


@settings(deadline=None)
@given(tables())
@example(np.array([[1.0, 100.0], [2.0, np.inf]]))
@example(np.array([[5.0], [4.0], [4.0]]))
def test_the_most_places_are_served_at_the_least_cost(table: np.ndarray) -> None:
    if len(table):
        assert assigned(table) == best(table)


@settings(deadline=None)
@given(tables())
def test_it_is_never_worse_than_greedy(table: np.ndarray) -> None:
    if len(table):
        (served, cost), (by_greed, cost_of_greed) = assigned(table), greedy(table)
        assert served >= by_greed
        assert served > by_greed or cost <= cost_of_greed


@settings(deadline=None)
@given(tables())
def test_a_crowd_that_is_too_large_is_served_greedily(table: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "MAX_COMPONENT", 0)
        if len(table):
            served, cost = assigned(table)
            expected, expected_cost = greedy(table)
            assert served == expected
            assert cost == pytest.approx(expected_cost)


def test_lists_stay_short_where_images_abound() -> None:
    table = np.abs(np.arange(60)[:, None] * 5 - np.arange(300)[None, :]).astype(float)
    chosen, wanting = assign(wishes_of(table, 1))
    assert not len(wanting)
    assert chosen.sum() == 60
