"""What a city file may say, and where everything of a city is kept."""

import keyword
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import geopandas as gpd
import mercantile
import numpy as np
from croniter import croniter
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from vsvi_assets.city.area import Area, BoundingBox
from vsvi_assets.city.districts import District, read_districts
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.lists import read_image_ids, read_tile_names, shortened
from vsvi_assets.city.paths import FileKey, UserPath, file_of, layer_of
from vsvi_assets.city.places import Places, named, read_places, surroundings, swapped
from vsvi_assets.city.projection import Bounds, check_scale, check_srid, utm_srid
from vsvi_assets.city.quality import QualityRules
from vsvi_assets.city.region import PlaceNotLookedUpError, RegionKey, buffered, read_region
from vsvi_assets.city.rules import DayHours, Duplicates, Elevation, MonthList
from vsvi_assets.city.schedule import check_cron, check_timezone
from vsvi_assets.city.tiles import Origin, parse_tile_key, tile_file_name, tile_key
from vsvi_assets.city.views import Views
from vsvi_assets.files import DataPath, Entry, entries_in, in_store, machine_folder

IMAGE_RULES = ("months", "hours", "daylight", "duplicates", "quality")
"""Keys by which images are left out, each by itself or because of others."""

POINT_RULES = ("same_street", "facing", "prefer", "per_year", "assignment")
"""Keys by which images are chosen for street points."""

REPORT_NAME = "coverage.html"

PROJECT_FOLDERS = frozenset({"dagster", "osmnx", "pages", "postgis", "sandbox", "vsvi"})
"""Folders of the data folder, and schemas of the database, that are the project's own."""

_DAGSTER_WORDS = frozenset(
    {
        *("context", "conf", "config", "meta", "type", "input", "output", "dict", "arg_dict"),
        *("input_arg_dict", "output_arg_dict", "int", "str", "float", "bool"),
    }
)
"""Names that Dagster refuses for sensors and jobs, besides Python's keywords."""


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be a moment between the years 1 and 9999 in UTC") from error


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) else value


StreetClass = Annotated[str, Field(pattern="^[a-z_:;]+$")]
BigInt = Annotated[int, Field(ge=0, lt=2**63)]


class City(BaseModel):
    """A city as its file describes it.

    Distances are in metres, the box in degrees. Where the city is, either `bounding_box` or
    `region` says; `buffer` makes the region larger. `points_file` names places that take the
    place of points on streets; alone it says where the city is, too. Relative paths lie under
    the data folder, `~` is the home folder. `captured_after` is inclusive, `captured_before`
    exclusive, both UTC where the file names no timezone. `services` says which servers the city
    uses: the real ones or the sandbox.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bounding_box: BoundingBox | None = None
    region: RegionKey | None = None
    points_file: FileKey | None = None
    buffer: float = Field(0, ge=0, le=100_000)
    tile_cache_dir: UserPath | None = None
    seqdir: UserPath | None = None
    srid: int | None = None
    interval: float = Field(50, ge=5, le=10_000)
    max_distance: float = Field(100, gt=0, le=10_000)
    network_type: Literal["all", "all_public", "bike", "drive", "drive_service", "walk"] = "all"
    streets_file: FileKey | None = None
    districts: FileKey | None = None
    street_classes: tuple[StreetClass, ...] | None = Field(None, min_length=1)
    selection: Literal["nearest", "all"] = "nearest"
    imgid_file: UserPath | None = None
    tile_list_file: UserPath | None = None
    failed_imgid_file: UserPath | None = None
    positions: Origin = "original"
    heading: Origin = "original"
    panorama: Literal["any", "only", "exclude"] = "any"
    captured_after: Annotated[datetime, AfterValidator(_utc)] | None = None
    captured_before: Annotated[datetime, AfterValidator(_utc)] | None = None
    creator_ids: tuple[BigInt, ...] | None = Field(None, min_length=1)
    months: MonthList | None = None
    hours: DayHours | None = None
    clock: Literal["civil", "solar"] = "civil"
    daylight: Elevation | None = None
    duplicates: Duplicates = "keep"
    prefer: Literal["nearest", "newest"] = "nearest"
    per_year: bool = False
    assignment: Literal["independent", "one_to_one"] = "independent"
    same_street: bool = False
    facing: Literal["any", "along", "across"] = "any"
    facing_tolerance: float = Field(30, gt=0, le=90)
    image_size: Annotated[Literal["original", "2048", "1024", "256"], BeforeValidator(_text)] = (
        "original"
    )
    required_disk_space: float = Field(100, ge=0)
    num_retries: int = Field(8, ge=0, le=100)
    services: Literal["mapillary", "sandbox"] = "mapillary"
    schedule: Annotated[str, AfterValidator(check_cron)] | None = None
    timezone: Annotated[str, AfterValidator(check_timezone)] = "UTC"
    views: Views | None = None
    quality: QualityRules | None = None
    sequence_buckets: int | None = Field(None, ge=1, le=10_000)

    _name: str = PrivateAttr()
    _data_dir: DataPath = PrivateAttr()
    _area: Area = PrivateAttr()
    _districts: tuple[District, ...] = PrivateAttr(())
    _places: Places | None = PrivateAttr(None)
    _tiles: tuple[mercantile.Tile, ...] = PrivateAttr()
    _warnings: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.bounding_box and self.region:
            raise ValueError("either bounding_box or region must say where the city is, not both")
        if not (self.bounding_box or self.region or self.points_file):
            raise ValueError("bounding_box, region or points_file must say where the city is")
        if self.points_file and self.street_classes and not self.streets_file:
            raise ValueError(
                "street_classes chooses among streets, and with points_file there are none"
            )
        if self.buffer and self.region is None:
            raise ValueError("buffer needs a region, which it makes larger")
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

    @model_validator(mode="after")
    def _rules_have_points_to_choose_for(self) -> Self:
        chosen = [key for key in POINT_RULES if self._sets(key)]
        if chosen and not self.chooses_for_points:
            other = "imgid_file" if self.imgid_file else "selection: all"
            raise ValueError(
                f"{' and '.join(chosen)} cannot be used with {other}, which chooses no images for "
                "street points; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_their_rules(self) -> Self:
        if self.facing == "any" and self._sets("facing_tolerance"):
            raise ValueError(
                f"facing_tolerance ({self.facing_tolerance:g}) says how exactly images face along "
                "or across the street; set facing too, or leave it out"
            )
        if self.same_street and (
            self.street_classes or (self.points_file and not self.streets_file)
        ):
            key = "street_classes" if self.street_classes else "points_file without streets_file"
            raise ValueError(
                f"same_street cannot be used with {key}: all streets have to be known, for an "
                "image counts for the one that it was taken along"
            )
        if self._sets("clock") and not (self.months or self.hours or self.per_year):
            raise ValueError(
                f"clock ({self.clock}) says which time months, hours and per_year go by; set one "
                "of them, or leave it out"
            )
        return self

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, name: str, data_dir: DataPath) -> "City":
        """Make the city `name` from a file's content; relative paths lie under `data_dir`.

        Where that is an object store, the user's own files lie under `data` in the current folder.
        The files that the content names are read once, to find mistakes in them early.

        Raises
        ------
        pydantic.ValidationError
            When a value is not what it should be.
        CityFileError
            When `region`, `points_file`, `districts` or another of its files cannot
            be used, the area is too large for one city, or a file of the city would lie in a folder
            that is the project's own.
        PlaceNotLookedUpError
            When the region is a place about which Nominatim was not asked yet.
        """
        city = cls.model_validate(content)
        city._name = name
        city._data_dir = data_dir
        city._require_own_folders()
        try:
            city._area = city._find_area()
            city._srid_in(city.area.bounds)
            city._tiles = city.area.tiles()
            check_scale(city.projected_srid, city.area.bounds)
        except CityFileError:
            raise
        except ValueError as error:
            raise CityFileError(str(error)) from error
        city._look_at_places()
        if city.districts:
            city._districts, warnings = read_districts(
                city._files_dir / file_of(city.districts), layer_of(city.districts)
            )
            city._warnings += warnings
            if not any(city.area.outline.intersects(each.polygons) for each in city._districts):
                city._warnings += (
                    f"districts = {file_of(city.districts)}: none of them meets the "
                    f"{city.area_name}",
                )
        if city.tile_list_file:
            city._keep_listed_tiles(city._files_dir / city.tile_list_file)
        city.read_image_ids()
        if city.streets_path:
            try:
                city.streets_path.open("rb").close()
            except OSError as error:
                raise CityFileError(
                    f"streets_file = {city.streets_path}: cannot be read ({error.strerror})"
                ) from error
        return city

    @classmethod
    def find_area(cls, content: Mapping[str, Any], *, name: str, data_dir: DataPath) -> Area:
        """Return where a file's content puts the city `name`, however large that is.

        Raises what `parse` does.
        """
        city = cls.model_validate(content)
        city._name, city._data_dir = name, data_dir
        return city._find_area()

    def _find_area(self) -> Area:
        if self.points_path:
            self._places = read_places(self.points_path, layer_of(self.points_file), self.interval)
            self._warnings += self._places.warnings
        if self.bounding_box:
            return Area(self.bounding_box)
        if self.region is None:
            return self._area_of_places()
        region = read_region(self.region, self._files_dir, self.region_path)
        if region is None:
            raise PlaceNotLookedUpError(self._name, self.services, self.region, self.region_path)
        polygons, warnings = region
        self._warnings += warnings
        try:
            if self.buffer:
                polygons = buffered(polygons, self.buffer, self._srid_in(polygons.bounds))
            return Area.of_polygons(polygons)
        except ValueError as error:
            raise CityFileError(f"region = {self.region}: {error}") from error

    def _srid_in(self, bounds: Bounds) -> int:
        """Return the EPSG code of the CRS in which distances are measured, checked there."""
        if self.srid is None:
            return utm_srid(bounds)
        check_srid(self.srid, bounds)
        return self.srid

    def _area_of_places(self) -> Area:
        assert self._places is not None
        self._require_none_swapped(None)
        places = self._places.table
        try:
            srid = self._srid_in(tuple(places.total_bounds))
            return Area.of_polygons(surroundings(places, self.max_distance, srid))
        except ValueError as error:
            raise CityFileError(f"points_file = {self.points_path}: {error}") from error

    def _require_none_swapped(self, area: Area | None) -> None:
        assert self._places is not None
        wrong = swapped(self._places.table, area)
        if wrong.any():
            raise CityFileError(
                f"points_file = {self.points_path}: {wrong.sum()} of {len(wrong)} places "
                f"look as if lon and lat were swapped: {named(self._places.table, wrong)}"
            )

    def _look_at_places(self) -> None:
        """Refuse places whose coordinates look swapped, and warn of those outside the area."""
        if self._places is None or self.area_name == "surroundings of the places":
            return
        self._require_none_swapped(self.area)
        outside = self.places_outside
        if outside.any():
            self._warnings += (
                f"points_file = {self.points_path}: {outside.sum()} of {len(outside)} places lie "
                f"outside the {self.area_name}, and get no image: "
                f"{named(self._places.table, outside)}",
            )

    def _require_own_folders(self) -> None:
        for key in ("tile_cache_dir", "seqdir", "failed_imgid_file"):
            path = getattr(self, key)
            if path is None:
                continue
            if in_store(self._data_dir) and (path.is_absolute() or ".." in path.parts):
                raise CityFileError(
                    f"{key} = {path}: the data folder is the object store {self._data_dir}, in "
                    "which everything of a city has to lie; give a relative path, or leave it out"
                )
            below = Path(os.path.relpath(str(self._data_dir / path), str(self._data_dir)))
            if below.parts and below.parts[0].lower() in PROJECT_FOLDERS:
                raise CityFileError(
                    f"{key} = {path}: {self._data_dir / below.parts[0]} is the project's own "
                    "folder; choose another one"
                )

    def _keep_listed_tiles(self, path: Path) -> None:
        listed = dict.fromkeys(read_tile_names(path))
        named = {tile_file_name(tile): tile for tile in self._tiles}
        self._tiles = tuple(tile for name, tile in named.items() if name in listed)
        if not self._tiles:
            raise CityFileError(
                f"tile_list_file = {path}: none of its {len(listed)} tiles meets the "
                f"{self.area_name}; one that does is {next(iter(named))}"
            )
        outside = [name for name in listed if name not in named]
        if outside:
            self._warnings += (
                f"tile_list_file = {path}: {len(outside)} of its {len(listed)} tiles do not meet "
                f"the {self.area_name} and are left out: {shortened(outside)}",
            )

    @property
    def name(self) -> str:
        """The city file's name without its ending: asset key prefix and PostGIS schema."""
        return self._name

    @property
    def group(self) -> str:
        """The name as Dagster accepts it for groups, jobs, schedules and sensors."""
        name = self._name.replace("-", "_")
        return f"{name}_city" if keyword.iskeyword(name) or name in _DAGSTER_WORDS else name

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what looks like a mistake in the city's files, but stops nothing."""
        return self._warnings

    @property
    def area(self) -> Area:
        """Where the city is."""
        return self._area

    @property
    def area_name(self) -> str:
        """What the area is, in words."""
        if self.region:
            return "region"
        return "bounding box" if self.bounding_box else "surroundings of the places"

    @property
    def district_polygons(self) -> tuple[District, ...]:
        """The districts by which coverage is counted; none where the city file names none."""
        return self._districts

    @property
    def places(self) -> gpd.GeoDataFrame | None:
        """The places of `points_file` (see `vsvi_assets.city.places`); None where there is none."""
        return self._places.table if self._places else None

    @property
    def places_outside(self) -> NDArray[np.bool_]:
        """Which of the places lie outside the area."""
        assert self._places is not None
        positions = self._places.table.geometry
        return ~self.area.covers(positions.x.to_numpy(), positions.y.to_numpy())

    @property
    def tiles(self) -> tuple[mercantile.Tile, ...]:
        """The z14 tiles that meet the area, less those that `tile_list_file` leaves out."""
        return self._tiles

    @property
    def goes_by_corrections(self) -> bool:
        """Whether positions or headings are those that Mapillary corrected."""
        return "computed" in (self.positions, self.heading)

    @property
    def tile_requests(self) -> int:
        """How many requests all tiles take: with corrected positions two for each."""
        return self.requests_for(len(self._tiles))

    def requests_for(self, tiles: int) -> int:
        """Return how many requests so many tiles take at most."""
        return tiles * (1 if self.positions == "original" else 2)

    @cached_property
    def tile_keys(self) -> list[str]:
        """The tiles' partition keys, `14/x/y`."""
        return [tile_key(tile) for tile in self._tiles]

    @cached_property
    def projected_srid(self) -> int:
        """EPSG code of the CRS, in metres, in which distances are measured."""
        return self.srid or utm_srid(self.area.bounds)

    @property
    def chooses_for_points(self) -> bool:
        """Whether images are selected for street points, and not for themselves."""
        return self.selection == "nearest" and self.imgid_file is None

    @property
    def rules(self) -> tuple[str, ...]:
        """The keys of `IMAGE_RULES` and `POINT_RULES` that the city file sets."""
        return tuple(key for key in (*IMAGE_RULES, *POINT_RULES) if self._sets(key))

    def _sets(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @property
    def _files_dir(self) -> Path:
        """The folder under which the user's own files lie, where they are relative."""
        return machine_folder(self._data_dir)

    @property
    def folder(self) -> DataPath:
        """The folder of the city's own small files."""
        return self._data_dir / self._name

    @property
    def tiles_folder(self) -> DataPath:
        return self._data_dir / (self.tile_cache_dir or Path(self._name, "tiles"))

    @property
    def sequences_folder(self) -> DataPath:
        return self._data_dir / (self.seqdir or Path(self._name, "sequences"))

    @property
    def region_path(self) -> DataPath:
        """Where Nominatim's answer about the place of `region` is kept."""
        return self.folder / "region.geojson"

    @property
    def street_points_path(self) -> DataPath:
        return self.folder / "street_points.geojson"

    @property
    def streets_table_path(self) -> DataPath:
        """Where the streets are kept on which the points stand."""
        return self.folder / "streets.parquet"

    @property
    def selected_image_ids_path(self) -> DataPath:
        return self.folder / "selected_image_ids.txt"

    @property
    def absent_image_ids_path(self) -> DataPath:
        """Where the ids of `imgid_file` are listed that the city's tables do not have."""
        return self.folder / "absent_image_ids.txt"

    @property
    def coverage_report_path(self) -> DataPath:
        return self.folder / REPORT_NAME

    @property
    def dataset_path(self) -> DataPath:
        return self.folder / "dataset.parquet"

    @property
    def views_folder(self) -> DataPath:
        return self.folder / "views"

    @property
    def qgis_project_path(self) -> Path:
        return self._files_dir / self._name / f"{self._name}.qgs"

    @property
    def streets_path(self) -> Path | None:
        return self._files_dir / file_of(self.streets_file) if self.streets_file else None

    @property
    def points_path(self) -> Path | None:
        return self._files_dir / file_of(self.points_file) if self.points_file else None

    @property
    def streets_layer(self) -> str | None:
        """The layer of `streets_file`, where the city file names one."""
        return layer_of(self.streets_file)

    @property
    def failed_image_ids_path(self) -> DataPath | None:
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

    def tile_path(self, key: str) -> DataPath:
        """Return the file of the tile of the partition `key`."""
        name = tile_file_name(parse_tile_key(key), self.positions, self.heading)
        return self.tiles_folder / name

    def stored_tiles(self) -> dict[str, Entry]:
        """Return the files of the tiles that are there, by partition key."""
        try:
            entries = entries_in(self.tiles_folder)
        except FileNotFoundError:
            return {}
        names = {key: self.tile_path(key).name for key in self.tile_keys}
        return {key: entries[name] for key, name in names.items() if name in entries}

    def read_image_ids(self) -> list[int] | None:
        """Read the ids of `imgid_file` as `lists` does; None where the city file names none."""
        return read_image_ids(self._files_dir / self.imgid_file) if self.imgid_file else None
