"""The city file: one JSON or YAML file a city, in the format of percept-vsvi-filter's users."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import mercantile
import pyproj
import yaml
from croniter import croniter
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

ZOOM = 14
"""The zoom level at which Mapillary's tiles hold single images."""

MAX_TILES = 20_000
MAX_LATITUDE = 85.0511
"""Where the Web Mercator square of the tiles ends, in degrees."""

_TOKEN = re.compile(r"MLY\|[^\s'\"]*")
"""What is not to be repeated in logs and in the UI, should somebody put it into a city file."""

CITY_FILE_SUFFIXES = (".json", ".yaml", ".yml")
REPORT_NAME = "coverage.html"
RESERVED_NAMES = {"public", "information_schema", "tiger", "topology"}


class CityFileError(ValueError):
    """A city file that cannot be used; the text names file, key, value and what would be right."""


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

    @property
    def utm_srid(self) -> int:
        """EPSG code of the WGS 84 UTM zone that holds the middle of the box."""
        zone = min(int(((self.west + self.east) / 2 + 180) // 6) + 1, 60)
        return (32600 if self.south + self.north >= 0 else 32700) + zone

    def count_tiles(self) -> int:
        """Count the z14 tiles that meet the box, without listing them."""
        first = mercantile.tile(self.west, self.north, ZOOM)
        last = mercantile.tile(self.east, self.south, ZOOM)
        return (last.x - first.x + 1) * (last.y - first.y + 1)


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be a moment between the years 1 and 9999 in UTC") from error


def _cron(expression: str) -> str:
    if len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ValueError('must be a cron expression of five fields, such as "0 3 * * 1"')
    return expression


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError('must be a timezone such as "Europe/Amsterdam"') from error
    return name


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) else value


def _possible(path: Path) -> Path:
    if b"\0" in os.fsencode(path):
        raise ValueError("must be a path that a file can have, without a null character")
    return path


UserPath = Annotated[Path, AfterValidator(_possible)]
BigInt = Annotated[int, Field(ge=0, lt=2**63)]


class City(BaseModel):
    """A city as its file describes it.

    Distances are in metres, the box in degrees. Relative paths lie under the data folder.
    `captured_after` is inclusive, `captured_before` exclusive, both UTC where the file names
    no timezone. `services` says which servers the city uses: the real ones or the sandbox.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bounding_box: BoundingBox
    tile_cache_dir: UserPath | None = None
    seqdir: UserPath | None = None
    srid: int | None = None
    interval: float = Field(50, ge=5, le=10_000)
    max_distance: float = Field(100, gt=0, le=10_000)
    network_type: Literal["all", "all_public", "bike", "drive", "drive_service", "walk"] = "all"
    streets_file: UserPath | None = None
    selection: Literal["nearest", "all"] = "nearest"
    imgid_file: UserPath | None = None
    tile_list_file: UserPath | None = None
    failed_imgid_file: UserPath | None = None
    panorama: Literal["any", "only", "exclude"] = "any"
    captured_after: Annotated[datetime, AfterValidator(_utc)] | None = None
    captured_before: Annotated[datetime, AfterValidator(_utc)] | None = None
    creator_ids: tuple[BigInt, ...] | None = Field(None, min_length=1)
    image_size: Annotated[Literal["original", "2048", "1024", "256"], BeforeValidator(_text)] = (
        "original"
    )
    required_disk_space: float = Field(100, ge=0)
    num_retries: int = Field(8, ge=0, le=100)
    services: Literal["mapillary", "sandbox"] = "mapillary"
    schedule: Annotated[str, AfterValidator(_cron)] | None = None
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"

    _name: str = PrivateAttr()
    _data_dir: Path = PrivateAttr()
    _tiles: tuple[mercantile.Tile, ...] = PrivateAttr()

    @model_validator(mode="after")
    def _srid_fits_the_box(self) -> Self:
        if self.srid is not None:
            _check_srid(self.srid, self.bounding_box)
        return self

    @model_validator(mode="after")
    def _box_is_a_city(self) -> Self:
        count = self.bounding_box.count_tiles()
        if count > MAX_TILES:
            raise ValueError(
                f"bounding_box covers {count:,} tiles; at most {MAX_TILES:,} make one city: "
                "write several cities, each with a part of the box"
            )
        return self

    @model_validator(mode="after")
    def _dates_have_a_between(self) -> Self:
        if (
            self.captured_after
            and self.captured_before
            and self.captured_after >= self.captured_before
        ):
            raise ValueError(
                f"captured_after ({self.captured_after}) must be before "
                f"captured_before ({self.captured_before})"
            )
        return self

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, name: str, data_dir: Path) -> "City":
        """Make the city `name`, whose relative paths lie under `data_dir`, of a file's content.

        Raises
        ------
        pydantic.ValidationError
            When a value is not what it should be.
        CityFileError
            When `tile_list_file` cannot be used.
        """
        city = cls.model_validate(content)
        city._name = name
        city._data_dir = data_dir
        city._tiles = tuple(mercantile.tiles(*city.bounding_box.bounds, ZOOM))
        if city.tile_list_file:
            listed = _read_tile_list(data_dir / city.tile_list_file)
            city._tiles = tuple(tile for tile in city._tiles if tile_file_name(tile) in listed)
            if not city._tiles:
                raise CityFileError(
                    f"tile_list_file = {city.tile_list_file}: none of its {len(listed)} tiles "
                    "meets the bounding box; it must list names such as mly1_public_8415_5384_14"
                )
        return city

    @property
    def name(self) -> str:
        """The city file's name without its ending: asset key prefix and PostGIS schema."""
        return self._name

    @property
    def group(self) -> str:
        """The name as Dagster accepts it for groups, schedules and sensors."""
        return self._name.replace("-", "_")

    @property
    def tiles(self) -> tuple[mercantile.Tile, ...]:
        """The z14 tiles that meet the box, less those that `tile_list_file` leaves out."""
        return self._tiles

    @cached_property
    def tile_keys(self) -> list[str]:
        """The tiles' partition keys, `14/x/y`."""
        return [tile_key(tile) for tile in self._tiles]

    @cached_property
    def projected_srid(self) -> int:
        """EPSG code of the CRS, in metres, in which distances are measured."""
        return self.srid or self.bounding_box.utm_srid

    @property
    def folder(self) -> Path:
        """Where the city's own small files lie."""
        return self._data_dir / self._name

    @property
    def tiles_folder(self) -> Path:
        return self._data_dir / (self.tile_cache_dir or Path(self._name, "tiles"))

    @property
    def sequences_folder(self) -> Path:
        return self._data_dir / (self.seqdir or Path(self._name, "sequences"))

    @property
    def street_points_path(self) -> Path:
        return self.folder / "street_points.geojson"

    @property
    def selected_image_ids_path(self) -> Path:
        return self.folder / "selected_image_ids.txt"

    @property
    def coverage_report_path(self) -> Path:
        return self.folder / REPORT_NAME

    @property
    def qgis_project_path(self) -> Path:
        return self.folder / f"{self._name}.qgs"

    @property
    def streets_path(self) -> Path | None:
        return self._data_dir / self.streets_file if self.streets_file else None

    @property
    def failed_image_ids_path(self) -> Path | None:
        return self._data_dir / self.failed_imgid_file if self.failed_imgid_file else None

    @property
    def required_free_bytes(self) -> int:
        return int(self.required_disk_space * 1e9)

    def latest_tick(self, now: datetime) -> datetime | None:
        """Return when the schedule last ticked, with its timezone; None without a schedule."""
        if self.schedule is None:
            return None
        local = now.astimezone(ZoneInfo(self.timezone))
        return croniter(self.schedule, local).get_prev(datetime)

    def tile_path(self, key: str) -> Path:
        """Where the tile of the partition `key` is kept."""
        return self.tiles_folder / tile_file_name(parse_tile_key(key))

    def read_image_ids(self) -> list[int] | None:
        """Read the ids of `imgid_file`; None where the city file names none.

        The file holds one id a line or, as .json, a list of objects with `mapillary_img_id`.

        Raises
        ------
        CityFileError
            When the file is missing or holds something that is no image id.
        """
        if self.imgid_file is None:
            return None
        path = self._data_dir / self.imgid_file
        where = f"imgid_file = {path}"
        try:
            if path.suffix == ".json":
                ids = [entry["mapillary_img_id"] for entry in json.loads(path.read_text())]
            else:
                ids = path.read_text().split()
            return [_image_id(id_) for id_ in ids]
        except OSError as error:
            raise CityFileError(f"{where}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CityFileError(
                f"{where}: must hold one image id a line, or as .json a list of "
                f'{{"mapillary_img_id": ...}} objects ({error})'
            ) from error


def tile_key(tile: mercantile.Tile) -> str:
    """Return the partition key of a tile, `14/x/y`."""
    return f"{tile.z}/{tile.x}/{tile.y}"


def parse_tile_key(key: str) -> mercantile.Tile:
    """Return the tile of a partition key."""
    z, x, y = map(int, key.split("/"))
    return mercantile.Tile(x, y, z)


def tile_file_name(tile: mercantile.Tile) -> str:
    """Return the name of a tile's file in the tile cache, as percept-vsvi-filter writes it."""
    return f"mly1_public_{tile.x}_{tile.y}_{tile.z}"


def _image_id(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise ValueError(f"{text:.80} is no image id")
    return int(text)


def _read_tile_list(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        raise CityFileError(f"tile_list_file = {path}: cannot be read ({error})") from error


def _check_srid(srid: int, box: BoundingBox) -> None:
    advice = f"must be the EPSG code of a projected CRS in metres, such as {box.utm_srid}"
    try:
        crs = pyproj.CRS.from_epsg(srid)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"srid {srid} is unknown; it {advice}") from error
    if not crs.is_projected or any(axis.unit_conversion_factor != 1 for axis in crs.axis_info):
        raise ValueError(f"srid {srid} ({crs.name}) has no unit of metres; it {advice}")
    area = crs.area_of_use
    if area is None:
        return
    # An area of use across the antimeridian has its west east of its east.
    spans = [(area.west, area.east)]
    if area.west > area.east:
        spans = [(area.west, 180.0), (-180.0, area.east)]
    meets = area.south < box.north and area.north > box.south
    if not meets or not any(west < box.east and east > box.west for west, east in spans):
        raise ValueError(
            f"srid {srid} ({crs.name}) is made for {area.name}, which the bounding box "
            f"does not meet; it {advice}"
        )


@dataclass(frozen=True)
class BrokenCity:
    """A city file that cannot be used, and why."""

    name: str
    path: Path
    error: CityFileError


def load_city(path: Path, data_dir: Path) -> City:
    """Read one city file.

    Raises
    ------
    CityFileError
        When the file cannot be used; the text names the file, the key and its value, and
        what would be right.
    """
    name = path.stem
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,49}", name) or (
        name.lower() in RESERVED_NAMES or name.lower().startswith("pg_")
    ):
        raise CityFileError(
            f"{path}: the city would be called {name!r}; rename the file to at most 50 letters, "
            "digits, - or _, the first a letter, none of PostgreSQL's own schema names"
        )
    try:
        content = _read_mapping(path)
        return City.parse(content, name=name, data_dir=data_dir)
    except ValidationError as error:
        reason = "\n".join(_describe(path, error))
    except CityFileError as error:
        reason = f"{path}: {error}"
    raise CityFileError(_TOKEN.sub("<token>", reason))


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # as Windows' editors write it
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise CityFileError(f"cannot be read ({error.strerror})") from error
    # For values that do not fit their tag PyYAML raises more than its own error.
    except (
        ValueError,
        yaml.YAMLError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise CityFileError(f"cannot be read as {path.suffix[1:].upper()} ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CityFileError('must hold an object of keys such as "bounding_box"')
    return content


def _describe(path: Path, error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = BoundingBox if key.startswith("bounding_box.") else City
            message = f"unknown key; the keys are {', '.join(known.model_fields)}"
        elif problem["type"] == "missing":
            message = "is required"
        value = problem["input"]
        shown = "" if isinstance(value, dict) else f" = {value!r:.80}"
        yield f"{path}: {key}{shown}: {message}" if key else f"{path}: {message}"


def load_cities(cities_dir: Path, data_dir: Path) -> tuple[list[City], list[BrokenCity]]:
    """Read every city file of a folder; one that cannot be used does not stop the others.

    Cities that would get in each other's way (the same name but for case, `-` and `_`, or
    the same seqdir) are all refused, since nothing tells which of them is meant.

    Returns
    -------
    cities, broken
        Both sorted by name.

    Raises
    ------
    CityFileError
        When the folder itself cannot be read.
    """
    if not cities_dir.is_dir():
        raise CityFileError(
            f"{cities_dir}: no such folder; make it, with a city file in it, or set VSVI_CITIES_DIR"
        )
    cities: dict[Path, City] = {}
    broken: list[BrokenCity] = []
    for path in sorted(cities_dir.iterdir()):
        if path.suffix not in CITY_FILE_SUFFIXES or path.name.startswith("."):
            continue
        try:
            cities[path] = load_city(path, data_dir)
        except CityFileError as error:
            broken.append(BrokenCity(path.stem, path, error))
    for clashing, what in _clashes(cities):
        for path in clashing:
            others = ", ".join(other.name for other in clashing if other != path)
            city = cities.pop(path, None)
            if city:
                clash = CityFileError(f"{path}: {what(city)} as {others}; give each its own")
                broken.append(BrokenCity(path.stem, path, clash))
    return list(cities.values()), sorted(broken, key=lambda city: city.name)


def _clashes(cities: Mapping[Path, City]) -> Iterable[tuple[Sequence[Path], Any]]:
    for key, what in (
        (lambda city: city.group.lower(), lambda city: f"the name {city.name} is the same"),
        (
            lambda city: city.sequences_folder.resolve(),
            lambda city: f"seqdir = {city.sequences_folder} is the same folder",
        ),
    ):
        by_key: dict[Any, list[Path]] = {}
        for path, city in cities.items():
            by_key.setdefault(key(city), []).append(path)
        yield from ((paths, what) for paths in by_key.values() if len(paths) > 1)
