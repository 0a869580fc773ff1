"""What must hold for the tiles of a run, found while the run has them in memory."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import mercantile
import numpy as np
import pyarrow as pa
from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec
from numpy.typing import NDArray

from vsvi_assets.city import City, parse_tile_key
from vsvi_assets.database.audit import EXAMPLES, WrongRows
from vsvi_assets.files import DataPath
from vsvi_assets.mapillary.tiles import TileImages
from vsvi_assets.orchestration.checks.rules import Rule
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.views.pictures import tiles_map

TILE_TOLERANCE = 0.01
"""How far outside its tile an image may lie, in widths of the tile."""


class TileSurvey:
    """Takes note of each tile of a run, and reports at the end what its checks found."""

    def __init__(self, city: City) -> None:
        asset = asset_key(city, "tile_metadata")
        self._inside = Rule(
            asset,
            "inside_their_tile",
            f"Every image lies inside its tile, give or take {TILE_TOLERANCE:.0%} of the tile.",
        )
        self._unique = Rule(
            asset,
            "unique_ids",
            "No tile holds an image twice (the table keeps one).",
            AssetCheckSeverity.WARN,
        )
        self._usable = Rule(
            asset,
            "usable",
            "Everything in the tiles can be used. What cannot is left out.",
            AssetCheckSeverity.WARN,
        )
        self._recent = Rule(
            asset,
            "recent",
            "Every tile is as recent as its run asks for. Older ones serve while Mapillary blocks "
            "this network address.",
            AssetCheckSeverity.WARN,
        )
        self._city = city
        self._counts: dict[mercantile.Tile, int] = {}
        self._outside = self._repeated = self._dropped = 0
        self._examples_outside: list[Mapping[str, object]] = []
        self._examples_repeated: list[Mapping[str, object]] = []
        self._examples_dropped: list[Mapping[str, object]] = []
        self._old: list[Mapping[str, object]] = []

    @property
    def specs(self) -> list[AssetCheckSpec]:
        """The checks whose results it reports."""
        rules = (self._inside, self._unique, self._usable, self._recent)
        return [rule.spec for rule in rules]

    def add(self, key: str, tile: TileImages) -> None:
        """Take note of a tile, by its partition key."""
        images = tile.images
        outside = images.filter(_is_outside(images, key))
        repeated = images.filter(_is_repeated(images))
        self._counts[parse_tile_key(key)] = len(tile)
        self._outside += len(outside)
        self._repeated += len(repeated)
        self._examples_outside += _records(key, outside, EXAMPLES - len(self._examples_outside))
        self._examples_repeated += _records(key, repeated, EXAMPLES - len(self._examples_repeated))
        self._dropped += sum(dropped.count for dropped in tile.dropped)
        self._examples_dropped += [
            {"tile": key, "left out": str(dropped)}
            for dropped in tile.dropped[: EXAMPLES - len(self._examples_dropped)]
        ]

    def add_old(self, key: str, path: DataPath) -> None:
        """Take note that a tile on disk serves although it is older than the run asks for."""
        fetched = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        self._old.append({"tile": key, "fetched (UTC)": f"{fetched:%Y-%m-%d %H:%M}"})

    def results(self) -> Iterator[AssetCheckResult]:
        """Yield a result for each check."""
        images = sum(self._counts.values())
        details = {
            "tiles": len(self._counts),
            "tiles without an image": list(self._counts.values()).count(0),
        }
        pictures = {"map": tiles_map(self._counts, self._city.area)}
        outside = WrongRows(self._outside, images, self._examples_outside)
        yield self._inside.result(outside, details, pictures)
        yield self._unique.result(WrongRows(self._repeated, images, self._examples_repeated))
        yield self._usable.result(WrongRows(self._dropped, images, self._examples_dropped))
        yield self._recent.result(WrongRows(len(self._old), len(self._counts), self._old))


def _is_outside(tile: pa.Table, key: str) -> NDArray[np.bool_]:
    bounds = mercantile.bounds(parse_tile_key(key))
    margin_x = TILE_TOLERANCE * (bounds.east - bounds.west)
    margin_y = TILE_TOLERANCE * (bounds.north - bounds.south)
    lon, lat = tile["lon"].to_numpy(), tile["lat"].to_numpy()
    inside = (lon >= bounds.west - margin_x) & (lon <= bounds.east + margin_x)
    return ~(inside & (lat >= bounds.south - margin_y) & (lat <= bounds.north + margin_y))


def _is_repeated(tile: pa.Table) -> NDArray[np.bool_]:
    repeated = np.ones(len(tile), dtype=bool)
    repeated[np.unique(tile["id"].to_numpy(), return_index=True)[1]] = False
    return repeated


def _records(key: str, images: pa.Table, count: int) -> Sequence[Mapping[str, object]]:
    rows = images.slice(0, count).select(["id", "lon", "lat"]).to_pylist()
    return [{"tile": key, "image": row["id"], "lon": row["lon"], "lat": row["lat"]} for row in rows]
