"""Points along the streets of a network."""

from collections.abc import Iterator

from benchmarks import reference
from benchmarks.inputs import SRID, SyntheticCity
from benchmarks.measure import Clock, in_turn, measure
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.streets.networks import streets_of_graph
from vsvi_assets.streets.points import street_points

INTERVAL = 50.0


VILLAGE = SyntheticCity.of_size(1)
"""Comes before the city that is timed: what only a process's first one costs is left out."""


def project_points(clock: Clock, city: SyntheticCity) -> None:
    network = city.network()
    street_points(streets_of_graph(VILLAGE.network()), VILLAGE.box, SRID, INTERVAL)
    with clock:
        points = street_points(streets_of_graph(network), city.box, SRID, INTERVAL)
    clock.facts = {"points": len(points)}


def reference_points(clock: Clock, city: SyntheticCity) -> None:
    network = city.network()
    reference.street_points(VILLAGE.network(), SRID, INTERVAL)
    with clock:
        reference.street_points(network, SRID, INTERVAL)


def points(images: int, repeat: int) -> Iterator[Row]:
    """Street points of a network that is given."""
    city = SyntheticCity.of_size(images)
    ours, theirs = in_turn(
        repeat, lambda: measure(project_points, city), lambda: measure(reference_points, city)
    )
    ratio = theirs.seconds / ours.seconds
    yield Row(
        f"{ours.facts['points']:,} points along {len(city.streets()):,} streets",
        seconds(theirs.seconds),
        seconds(ours.seconds),
        f"{ratio:.1f}",
        f"{megabytes(ours.memory)} (reference {megabytes(theirs.memory)})",
        ">= 10",
        ratio >= 10,
    )
