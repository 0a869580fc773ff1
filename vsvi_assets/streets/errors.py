"""What can go wrong with the streets of a box, each with what to do."""

from collections.abc import Iterable
from typing import ClassVar

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees (EPSG:4326)."""


def describe_box(box: Box) -> str:
    """Return a box in words."""
    west, south, east, north = box
    return f"the box west {west}, south {south}, east {east}, north {north} (degrees)"


class NoStreetsError(ValueError):
    """No street lies in a bounding box."""

    def __init__(self, box: Box) -> None:
        super().__init__(
            f"No street lies in {describe_box(box)}. Check the bounding box and network_type, or "
            "name a streets_file that covers the box."
        )


class NoStreetsOfClassError(ValueError):
    """No street of the chosen classes lies in the area."""

    def __init__(self, chosen: Iterable[str], present: Iterable[str]) -> None:
        super().__init__(
            f"No street of the classes {', '.join(chosen)} lies in the area. The classes there "
            f"are {', '.join(present)}: check street_classes and network_type."
        )


class StreetsFileError(ValueError):
    """A file is not a whole street network."""


class PlaceError(Exception):
    """Nominatim did not give the polygons of a place."""


class OverpassError(Exception):
    """Overpass did not give the streets of a bounding box.

    `may_pass` says whether the same may succeed later, without anybody changing anything.
    """

    may_pass: ClassVar[bool] = False


class OverpassUnreachableError(OverpassError):
    """Overpass does not answer, or gives only a part of its answer."""

    may_pass = True


class OverpassBusyError(OverpassError):
    """Overpass was too busy, for as often as it may be asked."""


class OverpassRefusedError(OverpassError):
    """Overpass does not accept the query, or gave up on it."""
