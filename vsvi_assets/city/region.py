"""The key `region` of a city file: the polygons that a city keeps to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import geopandas as gpd
import orjson
import shapely
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vsvi_assets.city.area import Polygons
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.paths import UserPath
from vsvi_assets.city.projection import projected, unprojected
from vsvi_assets.city.vector_files import read_features
from vsvi_assets.files import DataPath, atomic_write, local_copy
from vsvi_assets.settings import ServicesName
from vsvi_assets.store import StoreError, StoreRefusedError

CURVE_SEGMENTS = 16
"""Of a quarter of a circle around a corner of a region with a buffer."""


class RegionSource(BaseModel):
    """Where the polygons of a region come from: a file, a place or a relation of OpenStreetMap.

    Attributes
    ----------
    file
        Anything that GDAL reads, in any CRS.
    layer
        Of the file; needed where it has several.
    place
        A name, as one types it at nominatim.openstreetmap.org.
    osm_relation
        The id of a relation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: UserPath | None = None
    layer: str | None = Field(None, min_length=1)
    place: str | None = Field(None, min_length=2, max_length=300)
    osm_relation: int | None = Field(None, gt=0, lt=2**63)

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if sum(each is not None for each in (self.file, self.place, self.osm_relation)) != 1:
            raise ValueError(
                'must be a file such as "delft.gpkg", or {"place": "Delft, Netherlands"}, or '
                '{"osm_relation": 324431}'
            )
        if self.layer and not self.file:
            raise ValueError("layer is the layer of a file")
        return self

    def __str__(self) -> str:
        return str(self.file or self.place or f"relation {self.osm_relation}")


def _file_of_text(value: object) -> object:
    return {"file": value} if isinstance(value, str) else value


RegionKey = Annotated[RegionSource, BeforeValidator(_file_of_text)]
"""A text is a file."""


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
        self, name: str, services: ServicesName, source: RegionSource, path: DataPath
    ) -> None:
        super().__init__(
            f"region = {source}: Nominatim was not asked for this place yet. "
            f"`vsvi region {name}` asks once, and keeps the answer."
        )
        self.name, self.services, self.source, self.path = name, services, source, path


class Region(NamedTuple):
    """The polygons of a region in degrees (EPSG:4326), and what had to be repaired."""

    polygons: Polygons
    warnings: tuple[str, ...]


def read_region(source: RegionSource, files_dir: Path, frozen: DataPath) -> Region | None:
    """Read the polygons of a region.

    Parameters
    ----------
    files_dir
        The folder that a relative file lies under.
    frozen
        The file in which Nominatim's answer is kept.

    Returns
    -------
    region
        None where it is a place that is not in `frozen`.

    Raises
    ------
    CityFileError
        When the file holds anything but polygons.
    """
    if source.file:
        path = files_dir / source.file
        return polygons_of(read_features(path, "region", source.layer), f"region = {path}")
    try:
        if not frozen.exists():
            return None
        with local_copy(frozen) as copy:
            answer = read_features(copy, "region")
    except (StoreError, StoreRefusedError) as error:
        raise CityFileError(f"region = {source}: {error}") from error
    question = source.model_dump_json(exclude_none=True)
    if list(answer.get("question", ())) != [question]:
        return None
    return polygons_of(answer, f"region = {source} ({frozen})")


def freeze_place(path: DataPath, source: RegionSource, answer: gpd.GeoDataFrame) -> None:
    """Keep Nominatim's answer about a place as GeoJSON, to be read by `read_region`.

    Raises
    ------
    CityFileError
        When the place is not a polygon.
    """
    place = answer.iloc[0]
    polygons_of(answer, f"region = {source} ({place['display_name']})")
    properties = {
        "question": source.model_dump_json(exclude_none=True),
        **{name: place[name] for name in ("display_name", "osm_type", "asked_at")},
        "osm_id": int(place["osm_id"]),
        "licence": "© OpenStreetMap contributors, ODbL",
    }
    write_polygons(path, place.geometry, properties)


def write_polygons(path: DataPath, polygons: Polygons, properties: Mapping[str, object]) -> None:
    """Write polygons in degrees (EPSG:4326) as the one feature of a GeoJSON file."""
    geometry = shapely.geometry.mapping(polygons)
    feature = {"type": "Feature", "properties": properties, "geometry": geometry}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(orjson.dumps({"type": "FeatureCollection", "features": [feature]}))


def polygons_of(table: gpd.GeoDataFrame, what: str) -> Region:
    """Return the polygons of all features as one geometry, repaired where they are not valid.

    Raises
    ------
    CityFileError
        When a feature is no polygon, or all together have no area.
    """
    shapes = table.geometry.dropna().to_numpy()
    shapes = shapes[~shapely.is_empty(shapes)]
    kinds = sorted({shape.geom_type for shape in shapes} - {"Polygon", "MultiPolygon"})
    if kinds:
        raise CityFileError(f"{what}: must be made of polygons, and a {kinds[0]} is in it")
    wrong = ~shapely.is_valid(shapes)
    warnings = tuple(
        f"{what}: a polygon is not valid ({shapely.is_valid_reason(shape)}) and was repaired: "
        "compare the map with what you meant"
        for shape in shapes[wrong][:1]
    )
    shapes[wrong] = shapely.make_valid(shapes[wrong], method="structure", keep_collapsed=False)
    merged = shapely.union_all(shapes)
    if merged.area == 0:
        raise CityFileError(f"{what}: has no polygon with an area in it")
    return Region(merged, warnings)


def buffered(polygons: Polygons, metres: float, srid: int) -> Polygons:
    """Return polygons in degrees that reach so many metres farther, measured in a CRS."""
    larger = shapely.buffer(projected(polygons, srid), metres, quad_segs=CURVE_SEGMENTS)
    return unprojected(larger, srid)
