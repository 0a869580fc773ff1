"""The coverage report: one HTML file that shows where a city has photographs, and where none."""

import base64
import html
import os
from collections.abc import Mapping
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
from numpy.typing import NDArray

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import (
    creators_of_selected,
    quality_of_selected,
    take_inventory,
)
from vsvi_assets.database.queries import coverage, points_without_good_image

ON_DISK, GAP, MISSING, UNAVAILABLE, NOT_GOOD_ENOUGH = range(5)
"""What a street point has: a photograph, none near it, one yet to come, one that is gone, and only
some near it that are not good enough."""

NO_IMAGE = -1
UNKNOWN_TIME = 0


@dataclass(frozen=True)
class CoverageReport:
    """A report and what it says in numbers.

    Attributes
    ----------
    html
        The page, which loads nothing but the photographs, by paths relative to the city's
        folder.
    points
        Number of street points.
    on_disk, gaps, missing, unavailable
        How many of them have a photograph on disk; none within `max_distance` that is good
        enough; one that is yet to be downloaded; one that Mapillary has no longer.
    images
        Number of photographs that the points share.
    """

    html: str
    points: int
    on_disk: int
    gaps: int
    missing: int
    unavailable: int
    images: int


def report_link(city: City, pages_url: str | None) -> str:
    """Return the address of a city's coverage report: of the file itself where none serves it."""
    if pages_url is None:
        return city.coverage_report_path.as_uri()
    return pages_url + quote(os.path.normpath(city.coverage_report_path))


def make_report(city: City, postgis: Postgis) -> CoverageReport:
    """Report on a city's tables and on what is on disk of its selection.

    Each street point is shown with the nearest selected image within `max_distance`.
    """
    points = coverage(postgis, city)
    image_ids = pc.unique(points["image_id"].combine_chunks().drop_null()).sort()
    image_of_point = _positions(points["image_id"].combine_chunks(), image_ids)
    images = points.take(pc.index_in(image_ids, points["image_id"].combine_chunks()))
    states, creators = _what_became_of(city, postgis, images)
    point_states = np.append(states, np.uint8(GAP))[image_of_point]
    if city.quality:
        not_good = points_without_good_image(postgis, city)
        is_not_good = pc.is_in(points["street_point_id"], not_good.combine_chunks())
        point_states[is_not_good.to_numpy()] = NOT_GOOD_ENOUGH
    counts = np.bincount(point_states, minlength=5).tolist()
    quality = _quality_of(quality_of_selected(postgis, city), images)
    return CoverageReport(
        html=_page(city, points, image_of_point, point_states, images, creators, quality),
        points=len(points),
        on_disk=counts[ON_DISK],
        gaps=counts[GAP] + counts[NOT_GOOD_ENOUGH],
        missing=counts[MISSING],
        unavailable=counts[UNAVAILABLE],
        images=len(images),
    )


def _positions(values: pa.Array, of: pa.Array) -> NDArray[np.int32]:
    """Return where in `of` each value stands, -1 for null."""
    return pc.fill_null(pc.index_in(values, of), NO_IMAGE).to_numpy().astype(np.int32)


def _what_became_of(
    city: City, postgis: Postgis, images: pa.Table
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Return the state of each image, and who took those on disk."""
    inventory = take_inventory(city, postgis)
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
    points: pa.Table,
    image_of_point: NDArray[np.int32],
    point_states: NDArray[np.uint8],
    images: pa.Table,
    creators: list[str | None],
    quality: Mapping[str, NDArray[Any]],
) -> str:
    streets = points["street"].dictionary_encode().combine_chunks()
    sequences = images["sequence_id"].dictionary_encode().combine_chunks()
    names = pa.array(creators, pa.string()).dictionary_encode()
    folder = os.path.relpath(city.sequences_folder, city.folder)
    data = {
        "city": city.name,
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "maxDistance": city.max_distance,
        "sequencesFolder": quote(folder),
        "streets": streets.dictionary.to_pylist(),
        "sequences": sequences.dictionary.to_pylist(),
        "creators": names.dictionary.to_pylist(),
        "points": _packed(
            lon=_float64(points["lon"]),
            lat=_float64(points["lat"]),
            street=_indices(streets),
            image=image_of_point,
            state=point_states,
            distance=_float64(points["distance"]).astype(np.float32),
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
            **quality,
        ),
    }
    # No "<" is left that could end the script element, whatever people call themselves.
    text = orjson.dumps(data).decode().replace("<", "\\u003c")
    page = files("vsvi_assets.views").joinpath("report.html").read_text(encoding="utf-8")
    return page.replace("{{city}}", html.escape(city.name)).replace("{{data}}", text)


def _float64(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return numbers, NaN for null."""
    return pc.fill_null(column, float("nan")).to_numpy().astype(np.float64)


def _indices(encoded: pa.DictionaryArray) -> NDArray[np.int32]:
    """Return where in the dictionary each value stands, -1 for null."""
    return pc.fill_null(encoded.indices, NO_IMAGE).to_numpy(zero_copy_only=False).astype(np.int32)


def _packed(**columns: NDArray[Any]) -> Mapping[str, Mapping[str, str]]:
    """Return columns as JavaScript's typed arrays hold them, in base64."""
    types = {
        "float64": "Float64Array",
        "float32": "Float32Array",
        "int64": "BigInt64Array",
        "int32": "Int32Array",
        "uint8": "Uint8Array",
    }
    return {
        name: {
            "type": types[values.dtype.name],
            "base64": base64.b64encode(
                values.astype(values.dtype.newbyteorder("<")).tobytes()
            ).decode(),
        }
        for name, values in columns.items()
    }
