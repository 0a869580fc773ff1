"""Views of a city's panoramas on disk: perspective pictures in directions that a study asks for.

Beside the views of each sequence, `views.geojson` says of each where it looks and what it was
made of. Flat photographs are taken along as they are.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
from PIL import Image

from vsvi_assets.city.views import COMPASS_DIRECTIONS, RELATIVE_DIRECTIONS, Views
from vsvi_assets.dataset.manifest import photographs_on_disk
from vsvi_assets.dataset.perspective import (
    NotAPanoramaError,
    Panorama,
    View,
    heading_of_centre,
)
from vsvi_assets.files import DataPath, atomic_write, content_of, copy_file, in_store
from vsvi_assets.photographs.attribution import LICENCE
from vsvi_assets.photographs.sidecar import IMAGE_PAGE

VIEWS_NAME = "views.geojson"

_JPEG_QUALITY = 92
_COLUMNS = (
    *("image_id", "sequence_id", "file", "sha256", "compass_angle", "is_pano"),
    *("image_lon", "image_lat", "creator", "distance"),
)


@dataclass
class ViewsMade:
    """What became of a city's photographs.

    Attributes
    ----------
    photographs
        Number of photographs that were looked at.
    views, flat
        Number of views of panoramas, and of flat photographs taken along.
    kept
        How many of both were there already.
    skipped
        Why a panorama has no views, by image id.
    """

    photographs: int = 0
    views: int = 0
    flat: int = 0
    kept: int = 0
    skipped: dict[int, str] = field(default_factory=dict)

    def add(self, other: "ViewsMade") -> None:
        """Add what became of other photographs."""
        self.photographs += other.photographs
        self.views += other.views
        self.flat += other.flat
        self.kept += other.kept
        self.skipped |= other.skipped


def write_views(
    table: Path, photographs: DataPath, folder: DataPath, rules: Views, workers: int
) -> Iterator[ViewsMade]:
    """Write the views of each sequence to `<folder>/<sequence_id>/`, sequence by sequence.

    What was made of the same photograph by the same rules is kept; what is no longer asked for
    is removed. Each file appears whole or not at all. Yields what was made of each sequence.

    Parameters
    ----------
    table
        As `manifest.photographs_on_disk` takes it.
    photographs
        The folder below which the table's `file` lie.
    workers
        How many panoramas are decoded at a time.
    """
    with ThreadPoolExecutor(workers) as pool:
        for sequence_id, images in groupby(_images(table), key=itemgetter("sequence_id")):
            target = folder / sequence_id
            target.mkdir(parents=True, exist_ok=True)
            known = _known_views(target)
            make = partial(
                _make_views, photographs=photographs, target=target, rules=rules, known=known
            )
            made = list(pool.map(make, images))
            features = [feature for features, _ in made for feature in features]
            result = ViewsMade()
            for _, part in made:
                result.add(part)
            _write_sidecar(target, features, result.skipped)
            for name in known.keys() - {feature["properties"]["file"] for feature in features}:
                (target / name).unlink(missing_ok=True)
            yield result


def view_headings(
    directions: Sequence[str | float], front: float | None
) -> dict[str, float] | None:
    """Return the heading of each direction, by its name, in degrees from 0 to below 360.

    `front` is the heading that relative directions count from; None where it is unknown, and
    then the result is None if it is needed.
    """
    headings = {}
    for direction in directions:
        if isinstance(direction, str) and direction in RELATIVE_DIRECTIONS:
            if front is None:
                return None
            headings[direction] = (front + RELATIVE_DIRECTIONS[direction]) % 360
        elif isinstance(direction, str):
            headings[direction] = float(COMPASS_DIRECTIONS[direction])
        else:
            headings[f"{direction:g}"] = direction % 360
    return headings


def front_along_street(bearing: float, camera: float) -> float:
    """Return that direction of a street which the camera faces rather than its opposite."""
    difference = (bearing - camera) % 360
    return bearing % 360 if difference <= 90 or difference >= 270 else (bearing + 180) % 360


def _images(table: Path) -> Iterator[dict[str, Any]]:
    """Yield each photograph on disk once, with the bearing of its nearest point's street."""
    present = pyarrow.parquet.read_schema(table).names
    names = [name for name in (*_COLUMNS, "bearing") if name in present]
    for rows in photographs_on_disk(table, names):
        yield min(rows, key=lambda row: (row["distance"] is None, row["distance"]))


def _make_views(
    image: dict[str, Any],
    photographs: DataPath,
    target: DataPath,
    rules: Views,
    known: Mapping[str, dict[str, Any]],
) -> tuple[list[dict[str, Any]], ViewsMade]:
    """Make what is missing of one photograph; return the features of all that belongs to it."""
    made = ViewsMade(photographs=1)
    photograph = photographs / image["file"]
    if not image["is_pano"]:
        angle = image["compass_angle"]
        heading = None if angle is None else angle % 360
        name = f"{image['image_id']}_flat.jpg"
        feature = _feature(image, name, "flat", heading, None, None)
        made.flat = 1
        if _is_made(feature, target, known):
            made.kept = 1
        else:
            _take_along(photograph, target / name)
        return [feature], made
    headings, reason = _headings(image, rules)
    if headings is None:
        made.skipped[image["image_id"]] = reason
        return [], made
    features = {}
    for direction, heading in headings.items():
        view = View(heading, rules.pitch, rules.fov, rules.width, rules.height)
        name = (
            f"{image['image_id']}_{direction}_heading{round(heading) % 360:03}"
            f"_pitch{rules.pitch:+03.0f}_fov{rules.fov:03.0f}.jpg"
        )
        feature = _feature(image, name, direction, heading, rules.pitch, rules.fov)
        feature["properties"] |= {
            "width": view.width,
            "height": view.height,
            "parent_compass_angle": image["compass_angle"],
            "compass_angle_at": rules.heading_at,
        }
        features[name] = (feature, view)
    missing = {
        name: view
        for name, (feature, view) in features.items()
        if not _is_made(feature, target, known)
    }
    if missing:
        centre = heading_of_centre(image["compass_angle"], rules.heading_at)
        width = max(view.panorama_width for view in missing.values())
        try:
            with content_of(photograph) as content, Image.open(io.BytesIO(content)) as opened:
                panorama = Panorama(opened, centre, width)
        except (NotAPanoramaError, OSError) as error:
            made.skipped[image["image_id"]] = str(error)
            return [], made
        for name, view in missing.items():
            with atomic_write(target / name) as file:
                panorama.view(view).save(file, "JPEG", quality=_JPEG_QUALITY)
    made.views = len(features)
    made.kept = len(features) - len(missing)
    return [feature for feature, _ in features.values()], made


def _headings(image: dict[str, Any], rules: Views) -> tuple[dict[str, float] | None, str]:
    """Return the headings of a panorama's views; or None, and why there are none."""
    camera = image["compass_angle"]
    if camera is None:
        return None, "its compass angle is unknown"
    front: float | None = camera % 360
    if rules.relative_to == "street":
        bearing = image.get("bearing")
        front = None if bearing is None else front_along_street(bearing, camera)
    return view_headings(rules.directions, front), "the direction of its street is unknown"


def _feature(
    image: dict[str, Any],
    name: str,
    direction: str,
    heading: float | None,
    pitch: float | None,
    fov: float | None,
) -> dict[str, Any]:
    place = [image["image_lon"], image["image_lat"]]
    return {
        "type": "Feature",
        "geometry": None if None in place else {"type": "Point", "coordinates": place},
        "properties": {
            "file": name,
            "parent": image["image_id"],
            "parent_sha256": image["sha256"],
            "direction": direction,
            "heading": None if heading is None else round(heading, 4),
            "pitch": pitch,
            "fov": fov,
            "creator": image["creator"],
            "licence": LICENCE,
            "url": IMAGE_PAGE.format(id=image["image_id"]),
        },
    }


def _is_made(
    feature: dict[str, Any], target: DataPath, known: Mapping[str, dict[str, Any]]
) -> bool:
    """Return whether the file is there and was made of the same photograph in the same way."""
    name = feature["properties"]["file"]
    return known.get(name) == feature["properties"] and (target / name).is_file()


def _take_along(photograph: DataPath, target: DataPath) -> None:
    """Let a second name lead to the photograph; copy it where the disk has no such names."""
    if not in_store(target):
        target.unlink(missing_ok=True)
        with suppress(OSError):
            os.link(photograph, target)
            return
    copy_file(photograph, target)


def _known_views(folder: DataPath) -> dict[str, dict[str, Any]]:
    """Return what `views.geojson` says of each file; nothing where it cannot be read."""
    try:
        content = orjson.loads((folder / VIEWS_NAME).read_bytes())
        views = {
            feature["properties"]["file"]: feature["properties"] for feature in content["features"]
        }
        return {name: view for name, view in views.items() if Path(name).name == name}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _write_sidecar(
    folder: DataPath, features: list[dict[str, Any]], skipped: Mapping[int, str]
) -> None:
    with atomic_write(folder / VIEWS_NAME) as file:
        file.write(b'{"type":"FeatureCollection","features":[\n')
        file.write(b",\n".join(map(orjson.dumps, features)))
        reasons = {str(image_id): reason for image_id, reason in skipped.items()}
        file.write(b'\n],"skipped":%b}\n' % orjson.dumps(reasons))
