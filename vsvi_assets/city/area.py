"""Where a city is: a bounding box, or polygons."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeAlias

import mercantile
import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vsvi_assets.city.tiles import ZOOM

MAX_TILES = 20_000
MAX_LATITUDE = 85.0511
"""Where the Web Mercator square of the tiles ends, in degrees."""


class BoundingBox(BaseModel):
    """A box in degrees (EPSG:4326)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    west: float = Field(ge=-180, le=180)
    south: float = Field(ge=-MAX_LATITUDE, le=MAX_LATITUDE)
    east: float = Field(ge=-180, le=180)
    north: float = Field(ge=-MAX_LATITUDE, le=MAX_LATITUDE)

    @model_validator(mode="after")
    def _has_an_inside(self) -> Self:
        if self.west >= self.east:
            raise ValueError(
                f"west ({self.west}) must be less than east ({self.east}); "
                "a box across the antimeridian must be written as two cities"
            )
        if self.south >= self.north:
            raise ValueError(f"south ({self.south}) must be less than north ({self.north})")
        return self

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        return self.west, self.south, self.east, self.north

    def count_tiles(self) -> int:
        """Count the z14 tiles that meet the box, without listing them."""
        first = mercantile.tile(self.west, self.north, ZOOM)
        last = mercantile.tile(self.east, self.south, ZOOM)
        return (last.x - first.x + 1) * (last.y - first.y + 1)


Polygons: TypeAlias = shapely.Polygon | shapely.MultiPolygon


@dataclass(frozen=True)
class Area:
    """Where a city is.

    Attributes
    ----------
    box
        The area itself, or the bounds of its polygons.
    polygons
        A shapely Polygon or MultiPolygon in degrees (EPSG:4326); None where the box is the area.
    """

    box: BoundingBox
    polygons: Polygons | None = None

    @classmethod
    def of_polygons(cls, polygons: Polygons) -> "Area":
        """Return the area of polygons.

        Raises
        ------
        ValueError
            When they reach across the antimeridian, or beyond the latitudes of the tiles.
        """
        west, south, east, north = map(float, polygons.bounds)
        if west < -180 or east > 180 or east - west > 180:
            raise ValueError(
                f"reaches from {west:g} to {east:g} degrees of longitude; a region across the "
                "antimeridian must be written as two cities"
            )
        if south < -MAX_LATITUDE or north > MAX_LATITUDE:
            raise ValueError(
                f"reaches from {south:g} to {north:g} degrees of latitude; Mapillary's tiles end "
                f"at {MAX_LATITUDE:g}"
            )
        shapely.prepare(polygons)
        return cls(BoundingBox(west=west, south=south, east=east, north=north), polygons)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        return self.box.bounds

    @cached_property
    def outline(self) -> Polygons:
        """The area as a shapely geometry, whatever it is given by."""
        return shapely.box(*self.bounds) if self.polygons is None else self.polygons

    def covers(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which positions (degrees) lie in the area or on its edge."""
        west, south, east, north = self.bounds
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        if self.polygons is not None:
            inside[inside] = shapely.intersects_xy(self.polygons, lon[inside], lat[inside])
        return inside

    def tiles(self) -> tuple[mercantile.Tile, ...]:
        """Return the z14 tiles that meet the area, column by column.

        Raises
        ------
        ValueError
            When there is none, or more than `MAX_TILES`.
        """
        if self.polygons is None:
            if (count := self.box.count_tiles()) > MAX_TILES:
                raise ValueError(
                    f"bounding_box covers {count:,} tiles; at most {MAX_TILES:,} make one city: "
                    "write several cities, each with a part of the box"
                )
            # mercantile takes 1e-11 degrees off the box.
            of_box = tuple(mercantile.tiles(*self.bounds, ZOOM))
            if not of_box:
                raise ValueError("bounding_box is too small to meet a tile: less than 1 mm wide")
            return of_box
        tiles = [mercantile.Tile(0, 0, 0)]
        for _ in range(ZOOM):
            children = [child for tile in tiles for child in mercantile.children(tile)]
            boxes = np.array([mercantile.bounds(child) for child in children])
            meets = shapely.intersects(self.polygons, shapely.box(*boxes.T))
            tiles = [child for child, meeting in zip(children, meets, strict=True) if meeting]
            if len(tiles) > MAX_TILES:
                raise ValueError(
                    f"the area meets more than {MAX_TILES:,} tiles, the most that make one city: "
                    "write several cities, each with a part of it"
                )
        return tuple(sorted(tiles, key=lambda tile: (tile.x, tile.y)))
