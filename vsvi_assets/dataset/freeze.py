"""A city's dataset frozen for publication: a bag of table, manifest, descriptions, photographs."""

import io
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute
import pyarrow.parquet
import yaml

from vsvi_assets.city import City
from vsvi_assets.dataset.bag import new_bag
from vsvi_assets.dataset.descriptions import abstract, attribution, citation_file, croissant
from vsvi_assets.dataset.errors import ChangedPhotographError, MissingPhotographError
from vsvi_assets.dataset.manifest import (
    MANIFEST_NAME,
    PHOTOGRAPHS_FOLDER,
    TABLE_NAME,
    Counts,
    FrozenTable,
    FrozenTile,
    Manifest,
    photographs_on_disk,
    table_rows,
)
from vsvi_assets.files import DataPath
from vsvi_assets.photographs.sidecar import sha256_of
from vsvi_assets.settings import PROJECT_PAGE

_PACKAGES = ("vsvi-assets", "dagster", "geopandas", "numpy", "osmnx", "pillow", "pyarrow")


def freeze(
    path: Path,
    *,
    city: str,
    city_file: Mapping[str, Any],
    services: str,
    tiles: Sequence[FrozenTile],
    table: Path,
    photographs: DataPath | None,
    now: datetime,
) -> Manifest:
    """Write a bag of a city's dataset to `path`, a folder or, ending in `.zip`, a zip file.

    Every photograph is read, and its SHA-256 compared with the table's.

    Parameters
    ----------
    table
        GeoParquet as `vsvi export` writes it, rows of one image beside each other.
    photographs
        The folder below which the table's `file` lie; None leaves the photographs out.
    now
        The date of the dataset, with timezone.

    Raises
    ------
    MissingPhotographError, ChangedPhotographError
        When a photograph is not what the table says.
    FolderExistsError
        When `path` is a folder that is there already.
    """
    rows, counts, creators = _summary(table)
    manifest = Manifest(
        city=city,
        city_file=dict(city_file),
        services=services,
        frozen_at=now.astimezone(UTC),
        software={"python": platform.python_version()}
        | {package: version(package) for package in _PACKAGES},
        tiles=tuple(tiles),
        table=FrozenTable(file=TABLE_NAME, sha256=sha256_of(table), rows=rows),
        counts=counts,
        creators=creators,
        with_photographs=photographs is not None,
    )
    schema = pyarrow.parquet.read_schema(table)
    texts = {
        MANIFEST_NAME: _json(manifest.model_dump(mode="json")),
        "croissant.json": _json(croissant(manifest, schema)),
        "CITATION.cff": yaml.safe_dump(
            citation_file(manifest), allow_unicode=True, sort_keys=False
        ),
        "ATTRIBUTION.txt": attribution(manifest),
    }
    with new_bag(path, _bag_info(manifest)) as bag:
        with table.open("rb") as file:
            bag.add(TABLE_NAME, file)
        for name, text in texts.items():
            bag.add(name, io.BytesIO(text.encode()))
        if photographs is not None:
            for row, *_ in photographs_on_disk(table, ["image_id", "file", "sha256"]):
                source = photographs / row["file"]
                try:
                    file = source.open("rb")
                except FileNotFoundError as error:
                    raise MissingPhotographError(source) from error
                with file:
                    found = bag.add(f"{PHOTOGRAPHS_FOLDER}/{row['file']}", file)
                if found != row["sha256"]:
                    raise ChangedPhotographError(source)
    return manifest


def frozen_tiles(city: City) -> list[FrozenTile]:
    """Return when each of a city's tiles on disk was fetched, and the SHA-256 of its file."""
    return [
        FrozenTile(
            tile=key,
            fetched_at=datetime.fromtimestamp(entry.stat().st_mtime, UTC),
            sha256=sha256_of(city.tile_path(key)),
        )
        for key, entry in city.stored_tiles().items()
    ]


def _summary(table: Path) -> tuple[int, Counts, dict[str, int]]:
    """Return the number of a table's rows, what they hold, and the photographs by creator."""
    rows = gaps = bytes_ = 0
    states: Counter[str] = Counter()
    creators: Counter[str] = Counter()
    last_image = None
    for row in table_rows(table, ["image_id", "state", "bytes", "creator", "file"]):
        rows += 1
        if row["image_id"] is None:
            gaps += 1
        elif row["image_id"] != last_image:
            last_image = row["image_id"]
            states[row["state"]] += 1
            if row["file"] is not None:
                bytes_ += row["bytes"]
                creators[row["creator"] or ""] += 1
    points = pyarrow.parquet.read_table(table, columns=["street_point_id"])
    counts = Counts(
        street_points=pyarrow.compute.count_distinct(points["street_point_id"]).as_py(),
        gaps=gaps,
        images=states.total(),
        photographs=creators.total(),
        bytes=bytes_,
        states=dict(sorted(states.items())),
    )
    return rows, counts, dict(creators.most_common())


def _json(content: Mapping[str, Any]) -> str:
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _bag_info(manifest: Manifest) -> dict[str, str]:
    return {
        "External-Description": abstract(manifest),
        "External-Identifier": f"sha256:{manifest.table.sha256}",
        "Bagging-Date": f"{manifest.frozen_at:%Y-%m-%d}",
        "Bag-Software-Agent": f"vsvi-assets {manifest.software['vsvi-assets']} <{PROJECT_PAGE}>",
    }
