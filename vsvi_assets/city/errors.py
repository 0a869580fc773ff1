"""The errors of everything that reads a city file."""

from pathlib import Path
from typing import TYPE_CHECKING

from vsvi_assets.settings import ServicesName

if TYPE_CHECKING:
    from vsvi_assets.city.region import RegionSource


class CityFileError(ValueError):
    """A city file that cannot be used.

    The text names the file, the key and its value, and says what would be right.
    """


class PlaceNotLookedUpError(CityFileError):
    """A region that is a place, about which Nominatim was not asked yet.

    Attributes
    ----------
    name, services
        The city's name, and the services that it uses.
    source
        The place.
    path
        Where the answer is to be kept.
    """

    def __init__(
        self, name: str, services: ServicesName, source: "RegionSource", path: Path
    ) -> None:
        super().__init__(
            f"region = {source}: Nominatim was not asked for this place yet. "
            f"`vsvi region {name}` asks once, and keeps the answer."
        )
        self.name, self.services, self.source, self.path = name, services, source, path
