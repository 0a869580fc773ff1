"""The coverage report: one HTML file that shows where a city has photographs, and where none."""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import chain
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from vsvi_assets.city import City
from vsvi_assets.city.area import Polygons
from vsvi_assets.city.districts import district_of
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import (
    creators_of_selected,
    quality_of_selected,
    take_inventory,
)
from vsvi_assets.database.queries import (
    coverage,
    points_of_years,
    points_without_good_image,
    street_lines,
)
from vsvi_assets.photographs.inventory import Inventory

ON_DISK, GAP, MISSING, UNAVAILABLE, NOT_GOOD_ENOUGH = range(5)
"""What a street point has: a photograph, none near it, one yet to come, one that is gone, and only
some near it that are not good enough."""

NO_IMAGE = -1
MOST_GROUPS = 250
"""Street classes, or districts, that the report distinguishes."""

UNKNOWN_CLASS = "unknown"
NO_DISTRICT = "outside all districts"
UNKNOWN_TIME = 0


@dataclass(frozen=True)
class Covered:
    """How much of a street class, year or district has photographs.

    Attributes
    ----------
    points, kilometres
        All of the group; the kilometres are 0 where streets are not known.
    covered_points, covered_kilometres
        Those with a photograph on disk.
    """

    name: str
    points: int
    covered_points: int
    kilometres: float
    covered_kilometres: float


@dataclass(frozen=True)
class CoverageReport:
    """A report and what it says in numbers.

    Attributes
    ----------
    html
        The page, which loads nothing but the photographs, by paths relative to the city's
        folder.
    groups
        Coverage by `street class`, `year` and, where the city file names districts, `district`.
    points
        Number of street points.
    on_disk, gaps, missing, unavailable
        How many of them have a photograph on disk; none within `max_distance` that is good
        enough; one that is yet to be downloaded; one that Mapillary has no longer.
    images
        Number of photographs that the points share.
    inventory
        What the city has of its selection.
    """

    html: str
    groups: Mapping[str, Sequence[Covered]]
    points: int
    on_disk: int
    gaps: int
    missing: int
    unavailable: int
    images: int
    inventory: Inventory


def make_report(city: City, postgis: Postgis) -> CoverageReport:
    """Report on a city's tables and on what is on disk of its selection.

    Each street point is shown with the nearest selected image within `max_distance`.
    """
    points = coverage(postgis, city)
    image_ids = pc.unique(points["image_id"].combine_chunks().drop_null()).sort()
    image_of_point = _positions(points["image_id"].combine_chunks(), image_ids)
    images = points.take(pc.index_in(image_ids, points["image_id"].combine_chunks()))
    inventory = take_inventory(city, postgis)
    states, creators = _what_became_of(city, postgis, inventory, images)
    point_states = np.append(states, np.uint8(GAP))[image_of_point]
    if city.quality:
        not_good = points_without_good_image(postgis, city)
        is_not_good = pc.is_in(points["street_point_id"], not_good.combine_chunks())
        point_states[is_not_good.to_numpy()] = NOT_GOOD_ENOUGH
    counts = np.bincount(point_states, minlength=5).tolist()
    groups = _groups(city, postgis, points, point_states == ON_DISK)
    return CoverageReport(
        html=_page(city, postgis, points, image_of_point, point_states, images, creators),
        groups=groups,
        points=len(points),
        on_disk=counts[ON_DISK],
        gaps=counts[GAP] + counts[NOT_GOOD_ENOUGH],
        missing=counts[MISSING],
        unavailable=counts[UNAVAILABLE],
        images=len(images),
        inventory=inventory,
    )


def _groups(
    city: City, postgis: Postgis, points: pa.Table, covered: NDArray[np.bool_]
) -> Mapping[str, Sequence[Covered]]:
    """Count coverage by class of street, by year and by district."""
    kilometres = np.nan_to_num(_float64(points["metres"])) / 1000

    def count(names: NDArray[np.object_]) -> Sequence[Covered]:
        found = []
        for name in dict.fromkeys(names):
            of_group = names == name
            with_photograph = of_group & covered
            found.append(
                Covered(
                    name,
                    int(of_group.sum()),
                    int(with_photograph.sum()),
                    float(kilometres[of_group].sum()),
                    float(kilometres[with_photograph].sum()),
                )
            )
        return sorted(found, key=lambda group: (-group.kilometres, -group.points, group.name))

    classes = np.array(
        [highway or UNKNOWN_CLASS for highway in points["highway"].to_pylist()], object
    )
    groups = {"street class": count(classes), "year": _by_year(city, postgis, points, covered)}
    if city.district_polygons:
        names = [*(district.name for district in city.district_polygons), NO_DISTRICT]
        number = district_of(
            city.district_polygons, _float64(points["lon"]), _float64(points["lat"])
        )
        groups["district"] = count(np.array(names, object)[number])
    return groups


def _by_year(
    city: City, postgis: Postgis, points: pa.Table, covered: NDArray[np.bool_]
) -> Sequence[Covered]:
    """Count the points that have a photograph of each year, of all points of the city."""
    kilometres = np.nan_to_num(_float64(points["metres"])) / 1000
    if city.per_year:
        of_years = points_of_years(postgis, city)
        ids = points["street_point_id"].combine_chunks()
        row = pc.index_in(of_years["street_point_id"].combine_chunks(), ids).to_numpy()
        years = of_years["year"].to_pylist()
    else:
        row = np.flatnonzero(covered)
        years = [
            None if time is None else datetime.fromtimestamp(time / 1000, UTC).year
            for time in points["captured_at"].filter(pa.array(covered)).to_pylist()
        ]
    found = []
    for year in sorted({*years}, key=lambda year: (year is None, year)):
        of_year = row[np.array([each == year for each in years], bool)]
        of_year = of_year[covered[of_year]]
        found.append(
            Covered(
                "unknown" if year is None else str(year),
                len(points),
                len(of_year),
                float(kilometres.sum()),
                float(kilometres[of_year].sum()),
            )
        )
    return found


def _years_of_points(city: City, postgis: Postgis, points: pa.Table) -> dict[str, NDArray[Any]]:
    """Return of how many years each point has an image; no column where that is not chosen."""
    if not city.per_year:
        return {}
    ids = points["street_point_id"].combine_chunks()
    rows = pc.index_in(points_of_years(postgis, city)["street_point_id"], ids)
    return {"years": np.bincount(rows.to_numpy(), minlength=len(points)).astype(np.int32)}


def _positions(values: pa.Array, of: pa.Array) -> NDArray[np.int32]:
    """Return where in `of` each value stands, -1 for null."""
    return pc.fill_null(pc.index_in(values, of), NO_IMAGE).to_numpy().astype(np.int32)


def _what_became_of(
    city: City, postgis: Postgis, inventory: Inventory, images: pa.Table
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Return the state of each image, and who took those on disk."""
    missing = set(chain(inventory.not_answered, inventory.rejected, *inventory.missing.values()))
    unavailable = {*inventory.unavailable, *inventory.refused}
    creators = creators_of_selected(postgis, city)
    states = np.full(len(images), ON_DISK, np.uint8)
    names: list[str | None] = [None] * len(images)
    for position, image_id in enumerate(images["image_id"].to_pylist()):
        if image_id in missing:
            states[position] = MISSING
        elif image_id in unavailable:
            states[position] = UNAVAILABLE
        else:
            names[position] = creators.get(image_id)
    return states, names


def _quality_of(measured: pa.Table, images: pa.Table) -> dict[str, NDArray[Any]]:
    """Return what was measured of each image, NaN where nothing was; no column for none at all."""
    if not len(measured):
        return {}
    rows = pc.index_in(images["image_id"], measured["image_id"].combine_chunks())
    found = measured.take(rows)
    return {
        "sharpness": _float64(found["sharpness"]).astype(np.float32),
        "brightness": _float64(found["brightness"]).astype(np.float32),
        "overExposure": _float64(found["over_exposure"]).astype(np.float32),
        "night": _float64(found["night"].cast(pa.float64())).astype(np.float32),
    }


def _page(
    city: City,
    postgis: Postgis,
    points: pa.Table,
    image_of_point: NDArray[np.int32],
    point_states: NDArray[np.uint8],
    images: pa.Table,
    creators: list[str | None],
) -> str:
    lines = street_lines(postgis, city)
    streets = points["street"].dictionary_encode().combine_chunks()
    sequences = images["sequence_id"].dictionary_encode().combine_chunks()
    names = pa.array(creators, pa.string()).dictionary_encode()
    classes = pc.unique(
        pa.chunked_array([points["highway"].combine_chunks(), lines["highway"].combine_chunks()])
    ).drop_null()[:MOST_GROUPS]
    districts = city.district_polygons[:MOST_GROUPS]
    district = district_of(districts, _float64(points["lon"]), _float64(points["lat"]))
    folder = os.path.relpath(str(city.sequences_folder), str(city.folder))
    data = {
        "city": city.name,
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "maxDistance": city.max_distance,
        "sequencesFolder": quote(folder),
        "streets": streets.dictionary.to_pylist(),
        "sequences": sequences.dictionary.to_pylist(),
        "creators": names.dictionary.to_pylist(),
        "classes": classes.to_pylist(),
        "districts": [each.name for each in districts],
        "areaName": city.area_name,
        "places": [
            None if place_id is None else {"id": place_id, **orjson.loads(place or "{}")}
            for place_id, place in zip(
                points["place_id"].to_pylist(), points["place"].to_pylist(), strict=True
            )
        ]
        if city.places is not None
        else [],
        "lines": _packed_lines(
            shapely.from_wkb(lines["hex"].to_pylist()),
            _positions(lines["highway"].combine_chunks(), classes),
        ),
        "outlines": _packed_lines(
            *_rings([city.area.outline, *(each.polygons for each in districts)])
        ),
        "points": _packed(
            lon=_float64(points["lon"]),
            lat=_float64(points["lat"]),
            street=_indices(streets),
            image=image_of_point,
            state=point_states,
            distance=_float64(points["distance"]).astype(np.float32),
            metres=_float64(points["metres"]).astype(np.float32),
            highway=_positions(points["highway"].combine_chunks(), classes),
            district=district.astype(np.int32),
            **_years_of_points(city, postgis, points),
        ),
        "images": _packed(
            id=images["image_id"].to_numpy().astype(np.int64),
            lon=_float64(images["image_lon"]),
            lat=_float64(images["image_lat"]),
            sequence=_indices(sequences),
            creator=_indices(names),
            capturedAt=pc.fill_null(images["captured_at"], UNKNOWN_TIME)
            .to_numpy()
            .astype(np.float64),
            compassAngle=_float64(images["compass_angle"]).astype(np.float32),
            isPano=pc.fill_null(images["is_pano"], False).to_numpy().astype(np.uint8),
            **_quality_of(quality_of_selected(postgis, city), images),
        ),
    }
    # No "<" is left that could end the script element, whatever people call themselves.
    text = orjson.dumps(data).decode().replace("<", "\\u003c")
    page = files("vsvi_assets.views").joinpath("report.html").read_text(encoding="utf-8")
    return page.replace("{{city}}", html.escape(city.name)).replace("{{data}}", text)


def _rings(areas: Sequence[Polygons]) -> tuple[Any, NDArray[np.int32]]:
    """Return the rings of areas, and of each the number of its area."""
    parts, area = shapely.get_parts(list(areas), return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return shapely.simplify(rings, 1e-5), area[part].astype(np.int32)


def _packed_lines(lines: Any, group: NDArray[np.int32]) -> Mapping[str, Mapping[str, str]]:
    """Return lines as columns: the vertices of all, where each line begins, and its group."""
    vertices = shapely.get_coordinates(lines)
    starts = np.append(0, shapely.get_num_coordinates(lines).cumsum())
    lon, lat = (vertices * 1e6).round().astype(np.int32).T
    return _packed(lon=lon, lat=lat, start=starts.astype(np.int32), group=group)


def _float64(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return numbers, NaN for null."""
    return pc.fill_null(column, float("nan")).to_numpy().astype(np.float64)


def _indices(encoded: pa.DictionaryArray) -> NDArray[np.int32]:
    """Return where in the dictionary each value stands, -1 for null."""
    return pc.fill_null(encoded.indices, NO_IMAGE).to_numpy(zero_copy_only=False).astype(np.int32)


def _packed(**columns: NDArray[Any]) -> Mapping[str, Mapping[str, str]]:
    """Return columns as JavaScript's typed arrays hold them, little-endian in base64."""
    return {
        name: {
            "type": values.dtype.name,
            "base64": base64.b64encode(
                values.astype(values.dtype.newbyteorder("<")).tobytes()
            ).decode(),
        }
        for name, values in columns.items()
    }
