"""No image twice: the images that serve all points together best."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

MAX_COMPONENT = 20_000
"""Points that compete for images of each other, up to which the best assignment is computed: in
up to 10 s. In a larger crowd the nearest pairs are chosen first."""

_SURPLUS = 1e-9
"""What rounding may add to a sum of costs."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Wishes:
    """What images places would take, in the order of places and ranks.

    The arrays are equally long but for the last.

    Attributes
    ----------
    place
        Who wishes, numbered from 0 without gaps.
    image
        What for.
    cost
        What it costs; at least 0, and not falling with the rank.
    rank
        1 for what is cheapest for the place.
    wishes
        Of each place how many it has; the arrays may hold only the first of them.
    """

    place: Integers
    image: Integers
    cost: NDArray[np.float64]
    rank: Integers
    wishes: Integers


def assign(wishes: Wishes) -> tuple[NDArray[np.bool_], Integers]:
    """Choose wishes, at most one of each place and of each image.

    As many places as possible get an image; and of all ways to do that the costs together are
    the least. What is chosen does not depend on more than costs and numbers.

    It begins with the first wish of each place. The places that share images are a crowd, which
    scipy's `min_weight_full_bipartite_matching` (LAPJVsp, R. Jonker and A. Volgenant 1987)
    solves by itself. By the prices that follow from its solution, it is known how much a place
    would pay for a further image without loss to all; where its next wish costs less, its list
    is made longer, and its crowd is solved again. When no next wish costs less the solution is
    the best of all (linear programming duality). A crowd above `MAX_COMPONENT` is served greedily:
    the cheapest wish first, of equal ones that of the lower place, then of the lower image.

    Returns
    -------
    chosen
        Which wishes are fulfilled.
    wanting
        The places whose lists are too short to decide; then nothing is chosen.
    """
    places = len(wishes.wishes)
    listed = np.bincount(wishes.place, minlength=places)
    start = np.concatenate([[0], listed.cumsum()[:-1]]).astype(np.int64)
    length = np.minimum(wishes.wishes, 1)
    got = np.full(places, -1)
    changed = np.ones(places, bool)
    while True:
        rows = np.flatnonzero(wishes.rank <= length[wishes.place])
        crowd = _crowds(wishes, rows, places)
        is_huge = (np.bincount(crowd) > MAX_COMPONENT)[crowd]
        again = np.isin(crowd, np.unique(crowd[changed]))
        alone = again & (np.bincount(crowd) == 1)[crowd]
        got[alone] = start[alone]
        again &= ~alone
        got[again] = -1
        for of_crowd in _by_crowd(rows[again[wishes.place[rows]]], crowd[wishes.place]):
            solve = _greedy if is_huge[wishes.place[of_crowd[0]]] else _best
            won = solve(wishes, of_crowd)
            got[wishes.place[won]] = won
        # Prices follow from the best solution alone; a place in a large crowd lists all wishes.
        worth = _worth(wishes, rows[~is_huge[wishes.place[rows]]], got)
        worth[is_huge] = np.inf
        is_whole = length == wishes.wishes
        # Of a list that ends too early the next wish costs at least as much as the last.
        following = start + np.minimum(length, listed - 1)
        changed = ~is_whole & (worth > wishes.cost[following] + _SURPLUS)
        if not changed.any():
            break
        wanting = np.flatnonzero(changed & (length == listed))
        if len(wanting):
            return np.zeros(len(wishes.place), bool), wanting
        length = np.where(changed, np.minimum(4 * length, listed), length)
    chosen = np.zeros(len(wishes.place), bool)
    chosen[got[got >= 0]] = True
    return chosen, np.empty(0, np.int64)


def _crowds(wishes: Wishes, rows: Integers, places: int) -> Integers:
    """Number the sets of places that share images among these of their wishes."""
    images, image = np.unique(wishes.image[rows], return_inverse=True)
    ends = (wishes.place[rows], places + image)
    nodes = places + len(images)
    graph = csr_array((np.ones(len(image), bool), ends), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:places].astype(np.int64)


def _by_crowd(rows: Integers, crowd_of_row: Integers) -> Iterator[Integers]:
    """Yield the rows of each crowd."""
    rows = rows[np.argsort(crowd_of_row[rows], kind="stable")]
    ends = np.flatnonzero(np.diff(crowd_of_row[rows])) + 1
    yield from np.split(rows, ends) if len(rows) else []


def _worth(wishes: Wishes, rows: Integers, got: Integers) -> NDArray[np.float64]:
    """Return what each place would pay for an image that nobody has, without loss to all.

    It is what its own image costs it, or more where somebody else would get that image instead;
    without bound for a place that has none. These are the least dual prices of the solution.

    Parameters
    ----------
    rows
        The wishes that were considered.
    got
        Of each place the row of its image, or -1.
    """
    has = got >= 0
    own = np.where(has, wishes.cost[got], np.inf)
    holder = np.full(int(wishes.image.max(initial=0)) + 1, -1)
    holder[wishes.image[got[has]]] = np.flatnonzero(has)
    holds = holder[wishes.image[rows]]
    rival = (holds >= 0) & (holds != wishes.place[rows])
    rows, holds = rows[rival], holds[rival]
    gain = own[holds] - wishes.cost[rows]
    worth = own.copy()
    while True:
        more = worth.copy()
        np.maximum.at(more, holds, worth[wishes.place[rows]] + gain)
        if (more <= worth + _SURPLUS).all():
            return worth
        worth = more


def _best(wishes: Wishes, rows: Integers) -> Integers:
    places, place = np.unique(wishes.place[rows], return_inverse=True)
    images, image = np.unique(wishes.image[rows], return_inverse=True)
    # Each place may also go without, at a cost above all that others could save by it. And no
    # cost is 0, which would mean that there is no such pair.
    cost = wishes.cost[rows] + 1
    without = cost.max() * (len(places) + 1)
    everyone = np.arange(len(places))
    costs = np.concatenate([cost, np.full(len(places), without)])
    pairs = (
        np.concatenate([place, everyone]),
        np.concatenate([image, len(images) + everyone]),
    )
    graph = csr_array((costs, pairs), shape=(len(places), len(images) + len(places)))
    matched, with_image = min_weight_full_bipartite_matching(graph)
    got = np.full(len(places), -1)
    got[matched] = with_image
    return rows[got[place] == image]


def _greedy(wishes: Wishes, rows: Integers) -> Integers:
    order = np.lexsort((wishes.image[rows], wishes.place[rows], wishes.cost[rows]))
    served: set[int] = set()
    taken: set[int] = set()
    chosen = []
    for row, place, image in zip(
        rows[order].tolist(),
        wishes.place[rows[order]].tolist(),
        wishes.image[rows[order]].tolist(),
        strict=True,
    ):
        if place not in served and image not in taken:
            served.add(place)
            taken.add(image)
            chosen.append(row)
    return np.array(chosen, np.int64)
