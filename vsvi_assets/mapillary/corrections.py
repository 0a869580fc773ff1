"""How many images of a city keep their cameras' own positions and headings."""

import math
from dataclasses import dataclass

from vsvi_assets.city import City
from vsvi_assets.mapillary.client import IMAGES_PER_REQUEST
from vsvi_assets.mapillary.tiles import TileImages


@dataclass
class Corrections:
    """What Mapillary corrected of the images in a city's tiles, where the city goes by that.

    Attributes
    ----------
    images
        In the tiles.
    without_position, without_heading
        How many keep the camera's own, for lack of a corrected one; 0 where none was asked for.
    heading_requests
        How many requests to the Graph API the headings of all tiles take.
    """

    images: int = 0
    without_position: int = 0
    without_heading: int = 0
    heading_requests: int = 0

    def add(self, tile: TileImages) -> None:
        """Count a tile."""
        self.images += len(tile)
        self.without_position += tile.uncorrected or 0
        if tile.uncorrected_headings is not None:
            self.without_heading += tile.uncorrected_headings
            self.heading_requests += math.ceil(len(tile) / IMAGES_PER_REQUEST)

    def uncorrected(self, city: City) -> dict[str, int]:
        """Return of how many images the camera's own position, and heading, is kept."""
        counts = {}
        if city.positions == "computed":
            counts["position"] = self.without_position
        if city.heading == "computed":
            counts["heading"] = self.without_heading
        return counts

    def sentences(self, city: City) -> list[str]:
        """Say the same for people."""
        return [
            f"{count:,} of {self.images:,} images in the tiles have no corrected {what}, and keep "
            "the camera's own"
            for what, count in self.uncorrected(city).items()
        ]
