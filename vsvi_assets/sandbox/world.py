"""What the sandbox serves: images, the streets they were taken on, and their pictures."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

ZOOM = 14
EXTENT = 4096
_CELLS = EXTENT << ZOOM

Tile = tuple[int, int, int]
"""z, x, y"""

Picture = Callable[["StreetImage", str], bytes]
"""Gives the JPEG of an image in one size: `original`, `2048`, `1024` or `256`."""


class SandboxError(Exception):
    """The sandbox cannot serve; the message says what to do."""


@dataclass(frozen=True, slots=True)
class StreetImage:
    """One image as Mapillary knows it; EPSG:4326, degrees clockwise from north, Unix ms.

    The computed position and angle are those corrected by structure from motion; None: as taken.
    What is not reconstructed has none of them, and is not in the tiles with corrected positions.
    """

    id: int
    lon: float
    lat: float
    sequence_id: str
    captured_at: int = 1_600_000_000_000
    compass_angle: float = 0.0
    is_pano: bool = False
    creator_id: int = 100_000_000_000_001
    creator_username: str = "sandbox"
    organization_id: int | None = None
    width: int = 1024
    height: int = 768
    computed_lon: float | None = None
    computed_lat: float | None = None
    computed_compass_angle: float | None = None
    is_reconstructed: bool = True

    def corrected(self) -> "StreetImage":
        """Return the image with its computed position and angle in place of the camera's own."""
        computed = {
            name: value
            for name in ("lon", "lat", "compass_angle")
            if (value := getattr(self, f"computed_{name}")) is not None
        }
        return replace(self, **computed)


@dataclass(frozen=True, slots=True)
class Street:
    """An OpenStreetMap way: the ids of its nodes, and its tags."""

    id: int
    nodes: tuple[int, ...]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """A place as Nominatim knows it: an object of OpenStreetMap, and its GeoJSON geometry."""

    osm_type: str
    osm_id: int
    display_name: str
    geometry: Mapping[str, Any]
    importance: float


@dataclass
class World:
    """A city to serve. Images and streets may be added while a sandbox serves it.

    Parameters
    ----------
    picture
        Called in a worker thread, once for an image and size as long as the sandbox keeps
        the bytes.
    tile_buffer
        Images at most this many grid cells from a tile's border are in the neighbouring
        tile too, as rendered tiles with a buffer have them.
    recorded_tiles
        Vector tiles to be served byte for byte in place of generated ones.
    """

    picture: Picture
    tile_buffer: int = 0
    recorded_tiles: dict[Tile, bytes] = field(default_factory=dict)
    images: dict[int, StreetImage] = field(default_factory=dict)
    nodes: dict[int, tuple[float, float]] = field(default_factory=dict)
    streets: dict[int, Street] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = RLock()
        self._tiles: dict[Tile, list[StreetImage]] = {}
        self._node_ids = {position: id for id, position in self.nodes.items()}
        images, self.images = self.images, {}
        self.add_images(images.values())

    def add_images(self, images: Iterable[StreetImage]) -> None:
        """Add images; those of an id that is known already take its place."""
        with self._lock:
            for image in images:
                if image.id in self.images:
                    self.remove_image(image.id)
                self.images[image.id] = image
                for tile in self.tiles_of(image):
                    self._tiles.setdefault(tile, []).append(image)

    def remove_image(self, image_id: int) -> None:
        """Take an image out of the tiles and the graph, as when its creator deletes it."""
        with self._lock:
            image = self.images.pop(image_id)
            for tile in self.tiles_of(image):
                self._tiles[tile].remove(image)

    def add_street(self, line: Iterable[tuple[float, float]], **tags: str) -> Street:
        """Add a way along (lon, lat) positions; ways meet where positions are equal."""
        with self._lock:
            nodes = []
            for lon, lat in line:
                position = (round(lon, 7), round(lat, 7))
                node = self._node_ids.setdefault(position, 7_000_000_001 + len(self._node_ids))
                self.nodes[node] = position
                nodes.append(node)
            street = Street(1_200_000_001 + len(self.streets), tuple(nodes), tags)
            self.streets[street.id] = street
            return street

    def add_place(
        self,
        display_name: str,
        geometry: Mapping[str, Any],
        *,
        osm_id: int,
        osm_type: str = "relation",
        importance: float = 0.5,
    ) -> Place:
        """Add a place with a name such as "Delft, South Holland, Netherlands"."""
        place = Place(osm_type, osm_id, display_name, geometry, importance)
        with self._lock:
            self.places.append(place)
        return place

    def images_in(self, tile: Tile) -> list[StreetImage]:
        """Return the images of one tile, in the order in which they were added."""
        with self._lock:
            return list(self._tiles.get(tile, ()))

    def corrected_images_in(self, tile: Tile) -> list[StreetImage]:
        """Return the images whose corrected positions lie in one tile, at these positions.

        Their own positions are in this tile or in one beside it.
        """
        z, x, y = tile
        steps = (-1, 0, 1)
        nearby = [
            each for dx in steps for dy in steps for each in self.images_in((z, x + dx, y + dy))
        ]
        corrected = {image.id: image.corrected() for image in nearby if image.is_reconstructed}
        return [image for image in corrected.values() if tile in self.tiles_of(image)]

    def tiles_of(self, image: StreetImage) -> set[Tile]:
        """Return the z14 tiles that an image is in: one, or more where tiles have a buffer."""
        column, row = grid_cell(image.lon, image.lat)
        reach = (-self.tile_buffer, 0, self.tile_buffer)
        return {
            (ZOOM, (column + dx) // EXTENT, (row + dy) // EXTENT) for dx in reach for dy in reach
        }

    def tiles(self) -> set[Tile]:
        """Return the tiles that hold images."""
        with self._lock:
            return {tile for tile, images in self._tiles.items() if images} | set(
                self.recorded_tiles
            )


def grid_cell(lon: float, lat: float) -> tuple[int, int]:
    """Return the column and row of a position in the grid of all z14 tiles' 4096 x 4096 cells.

    Web Mercator (EPSG:3857) as in the Mapbox vector tile specification; rows run southwards.
    """
    column = (lon + 180) / 360
    row = 0.5 - math.asinh(math.tan(math.radians(lat))) / (2 * math.pi)
    return math.floor(column * _CELLS), math.floor(row * _CELLS)


def cell_position(column: float, row: float) -> tuple[float, float]:
    """Return the (lon, lat) of a position in the grid of `grid_cell`."""
    lon = column / _CELLS * 360 - 180
    lat = math.degrees(math.atan(math.sinh((1 - 2 * row / _CELLS) * math.pi)))
    return lon, lat
