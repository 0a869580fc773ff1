"""What the benchmarks work on: a synthetic city, the same for the same size."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mercantile
import networkx as nx
import numpy as np
import pyarrow as pa
import shapely
from PIL import Image

from vsvi_assets.city import ZOOM, tile_key
from vsvi_assets.mapillary.tiles import IMAGE_LAYER, IMAGE_SCHEMA
from vsvi_assets.sandbox.vector_tiles import TileMessage

CORNER = mercantile.tile(4.75, 52.43, ZOOM)
"""The north-western tile of the city, at Amsterdam's place."""

SRID = 28992
IMAGES_PER_TILE = 1_000_000 / 209
STREETS_PER_TILE = 20_000 / 209
MEAN_STREET = 330.0
"""Metres; 20,000 streets get about 79,000 points 50 m apart."""

CENTRAL_SHARE, CENTRE = 0.75, 0.12
"""The share of the streets that gather about the middle, and how closely: the standard deviation
of their distance from it, in widths of the city."""

EXTENT = 4096
_METRES_PER_DEGREE = 111_320.0


@dataclass(frozen=True)
class SyntheticCity:
    """A rectangle of z14 tiles full of streets, with photographs on some of them.

    Streets are denser in the middle, as in a city whose box holds its outskirts too.
    Photographs lie where people drive: the busiest tenth of the streets has more than half of
    them, a third of the streets has hardly any.
    """

    columns: int
    rows: int
    images: int
    images_per_sequence: int = 100

    @classmethod
    def of_size(cls, images: int, images_per_sequence: int = 100) -> "SyntheticCity":
        """Make the city in which so many images lie as densely as 1,000,000 in 209 tiles."""
        tiles = max(round(images / IMAGES_PER_TILE), 1)
        columns = max(divisor for divisor in range(1, 12) if tiles % divisor == 0)
        return cls(columns, tiles // columns, images, images_per_sequence)

    @property
    def tiles(self) -> list[mercantile.Tile]:
        return [
            mercantile.Tile(CORNER.x + column, CORNER.y + row, ZOOM)
            for column in range(self.columns)
            for row in range(self.rows)
        ]

    @property
    def tile_keys(self) -> list[str]:
        return [tile_key(tile) for tile in self.tiles]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees, just within the tiles' outer border."""
        first, last = mercantile.bounds(self.tiles[0]), mercantile.bounds(self.tiles[-1])
        margin = 1e-7
        return first.west + margin, last.south + margin, last.east - margin, first.north - margin

    def write(self, cities_dir: Path, name: str, **keys: object) -> None:
        """Write the city file."""
        west, south, east, north = self.box
        content = {
            "bounding_box": {"west": west, "south": south, "east": east, "north": north},
            "srid": SRID,
            "required_disk_space": 0,
        } | keys
        cities_dir.mkdir(parents=True, exist_ok=True)
        (cities_dir / f"{name}.json").write_text(json.dumps(content))

    def streets(self) -> np.ndarray:
        """Return the streets as an array (street, vertex, 2) of degrees, six vertices each."""
        random = np.random.default_rng(1)
        west, south, east, north = self.box
        count = round(STREETS_PER_TILE * self.columns * self.rows)
        start = random.uniform((west, south), (east, north), (count, 1, 2))
        central = start[: round(CENTRAL_SHARE * count)]
        central[:] = random.normal(0.5, CENTRE, central.shape) * (east - west, north - south)
        central += (west, south)
        heading = random.uniform(0, 2 * np.pi, (count, 1)) + random.normal(0, 0.2, (count, 5))
        length = random.gamma(2.0, MEAN_STREET / 2, (count, 1)) / 5
        scale = np.array([np.cos(np.radians((south + north) / 2)), 1.0]) * _METRES_PER_DEGREE
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=2) * length[..., None] / scale
        lines = start + np.concatenate([np.zeros((count, 1, 2)), steps.cumsum(axis=1)], axis=1)
        return lines.clip((west, south), (east, north))

    def network(self) -> nx.MultiDiGraph:
        """Return the streets as osmnx gives them: an edge for each direction, with its line."""
        network = nx.MultiDiGraph(crs="EPSG:4326", network_type="all")
        for way, line in enumerate(self.streets()):
            start, end = 2 * way, 2 * way + 1
            for node, (x, y) in ((start, line[0].tolist()), (end, line[-1].tolist())):
                network.add_node(node, x=x, y=y)
            street = {"osmid": way, "name": f"Street {way}"}
            network.add_edge(start, end, geometry=shapely.LineString(line), **street)
            network.add_edge(end, start, geometry=shapely.LineString(line[::-1]), **street)
        return network

    def write_extract(self, path: Path) -> None:
        """Write the streets as an extract of OpenStreetMap, an `.osm` file."""
        with path.open("w") as file:
            file.write('<osm version="0.6">\n')
            for way, line in enumerate(self.streets().tolist(), 1):
                nodes = range(10 * way, 10 * way + len(line))
                for node, (lon, lat) in zip(nodes, line, strict=True):
                    file.write(f'<node id="{node}" lon="{lon!r}" lat="{lat!r}"/>\n')
                references = "".join(f'<nd ref="{node}"/>' for node in nodes)
                tags = f'<tag k="highway" v="residential"/><tag k="name" v="Street {way}"/>'
                file.write(f'<way id="{way}">{references}{tags}</way>\n')
            file.write("</osm>\n")

    def image_table(self) -> pa.Table:
        """Return all images (`IMAGE_SCHEMA`), on the grid of 4096 cells that tiles have."""
        random = np.random.default_rng(2)
        lines = self.streets()
        per_drive = self.images_per_sequence
        drives = -(-self.images // per_drive)
        popularity = random.pareto(1.2, len(lines)) + 0.05
        street = random.choice(len(lines), drives, p=popularity / popularity.sum())
        street = np.repeat(street, per_drive)[: self.images]
        along = np.tile(np.linspace(0, 4.999, per_drive), drives)[: self.images]
        vertex = along.astype(int)
        share = (along - vertex)[:, None]
        position = lines[street, vertex] * (1 - share) + lines[street, vertex + 1] * share
        position += random.normal(0, 3 / _METRES_PER_DEGREE, position.shape)
        south_west, north_east = np.array(self.box).reshape(2, 2)
        lon, lat = _to_grid(position.clip(south_west + 1e-4, north_east - 1e-4))
        sequence = np.arange(self.images) // per_drive
        names = [_sequence_id(number) for number in range(drives)]
        organization = np.where(sequence % 3 == 0, 991_655_281_702_248, 0)
        return pa.table(
            {
                "id": random.permutation(self.images) * 1_000_003 + 100_000_000_000_000,
                "sequence_id": pa.array(names).take(pa.array(sequence)),
                "captured_at": 1_400_000_000_000 + sequence * 10_000_000 + along * 1e5 // 1,
                "compass_angle": random.uniform(0, 360, self.images),
                "is_pano": sequence % 5 == 0,
                "creator_id": 100_000_000_000_000 + sequence % 97,
                "organization_id": pa.array(organization, mask=organization == 0),
                "lon": lon,
                "lat": lat,
            }
        ).cast(IMAGE_SCHEMA)

    def vector_tiles(self) -> Iterator[tuple[mercantile.Tile, bytes]]:
        """Yield each tile as Mapillary would serve it."""
        images = self.image_table()
        column, row = _cells(images)
        tile_of_image = column // EXTENT * 100_000 + row // EXTENT
        order = np.argsort(tile_of_image, kind="stable")
        starts = np.searchsorted(tile_of_image[order], [t.x * 100_000 + t.y for t in self.tiles])
        ends = np.searchsorted(
            tile_of_image[order], [t.x * 100_000 + t.y for t in self.tiles], "right"
        )
        for tile, start, end in zip(self.tiles, starts, ends, strict=True):
            yield tile, encode_tile(images.take(pa.array(order[start:end])), tile)


def dense_tile(images: int = 50_000) -> tuple[mercantile.Tile, bytes]:
    """Return one tile with that many images."""
    [(tile, data)] = SyntheticCity(1, 1, images).vector_tiles()
    return tile, data


def encode_tile(images: pa.Table, tile: mercantile.Tile) -> bytes:
    """Encode a table of images as a Mapbox vector tile with the layer `image`."""
    message = TileMessage()
    layer = message.layers.add(name=IMAGE_LAYER, version=2, extent=EXTENT)
    values: dict[tuple[type, Any], int] = {}
    tags: list[list[int]] = [[] for _ in range(len(images))]
    for name in images.column_names:
        if name in ("lon", "lat"):
            continue
        key = len(layer.keys)
        layer.keys.append(name)
        for tagged, value in zip(tags, images[name].to_pylist(), strict=True):
            if value is not None:
                tagged += (key, values.setdefault((type(value), value), len(values)))
    attributes = {int: "int_value", str: "string_value", float: "double_value", bool: "bool_value"}
    for kind, value in values:
        setattr(layer.values.add(), attributes[kind], value)
    column, row = _cells(images)
    xs = ((column - tile.x * EXTENT) << 1).tolist()
    ys = ((row - tile.y * EXTENT) << 1).tolist()
    for number, (x, y, tagged) in enumerate(zip(xs, ys, tags, strict=True)):
        layer.features.add(id=number, type=1, geometry=(9, x, y), tags=tagged)
    return bytes(message.SerializeToString())


def photograph(bytes_: int) -> bytes:
    """Return a JPEG of about that many bytes."""
    random = np.random.default_rng(3)
    side = max(int((bytes_ / 0.844) ** 0.5), 8)
    pixels = random.integers(0, 256, (side, side), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _sequence_id(number: int) -> str:
    return f"sequence_{number:013d}"


def _to_grid(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move positions to the middle of their cells (Web Mercator)."""
    cells = EXTENT << ZOOM
    column = np.floor((position[:, 0] + 180) / 360 * cells) + 0.5
    latitude = np.radians(position[:, 1])
    row = np.floor((0.5 - np.arcsinh(np.tan(latitude)) / (2 * np.pi)) * cells) + 0.5
    lon = column / cells * 360 - 180
    return lon, np.degrees(np.arctan(np.sinh((1 - 2 * row / cells) * np.pi)))


def _cells(images: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    cells = EXTENT << ZOOM
    column = (images["lon"].to_numpy() + 180) / 360 * cells
    latitude = np.radians(images["lat"].to_numpy())
    row = (0.5 - np.arcsinh(np.tan(latitude)) / (2 * np.pi)) * cells
    return np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
