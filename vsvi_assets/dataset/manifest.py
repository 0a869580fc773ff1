"""The manifest of a frozen dataset: what it is made of, and what it takes to fetch it again."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute
import pyarrow.parquet
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from vsvi_assets.dataset.errors import ManifestError
from vsvi_assets.photographs.attribution import LICENCE, LICENCE_PAGE
from vsvi_assets.photographs.sidecar import sha256_of

MANIFEST_NAME = "manifest.json"
TABLE_NAME = "dataset.parquet"
PHOTOGRAPHS_FOLDER = "photographs"
STREETS_LICENCE = "© OpenStreetMap contributors, ODbL 1.0"
STREETS_LICENCE_PAGE = "https://www.openstreetmap.org/copyright"

_ROWS_AT_A_TIME = 10_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FrozenTile(_Part):
    """A tile's partition key, when it was fetched, and the SHA-256 of its file."""

    tile: str
    fetched_at: AwareDatetime
    sha256: str


class FrozenTable(_Part):
    """The table beside the manifest: one row per point and image, gaps included."""

    file: str = Field(pattern=r"^\w[\w.-]*$")
    sha256: str
    rows: int


class Counts(_Part):
    """What the table holds.

    `gaps` are street points without an image, `photographs` the images on disk, `bytes` all
    of these together, `images` the selected ones, and `states` what became of them.
    """

    street_points: int
    gaps: int
    images: int
    photographs: int
    bytes: int
    states: dict[str, int]


class Manifest(_Part):
    """All that is needed to fetch the same photographs again, and to say what they are.

    Attributes
    ----------
    city_file
        The keys of the city file.
    services
        Which services the data come from.
    software
        Versions by package.
    creators
        Number of photographs by creator; the empty name stands for unknown ones.
    with_photographs
        Whether the photographs are beside the table.
    """

    format: Literal["vsvi-dataset-1"] = "vsvi-dataset-1"
    city: str
    city_file: dict[str, Any]
    services: str
    frozen_at: AwareDatetime
    software: dict[str, str]
    tiles: tuple[FrozenTile, ...]
    table: FrozenTable
    counts: Counts
    creators: dict[str, int]
    licence: str = LICENCE
    licence_page: str = LICENCE_PAGE
    streets_licence: str = STREETS_LICENCE
    with_photographs: bool


def read_manifest(path: Path) -> tuple[Manifest, Path]:
    """Read a manifest, and find the table beside it.

    Raises
    ------
    ManifestError
        When it is not what `freeze` writes, or the table is missing or another one.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not the manifest of a frozen dataset ({error})") from error
    table = path.parent / manifest.table.file
    try:
        digest = sha256_of(table)
    except OSError as error:
        raise ManifestError(
            f"{table} cannot be read ({error.strerror}); it has to lie beside {path.name}"
        ) from error
    if digest != manifest.table.sha256:
        raise ManifestError(f"{table} is not the table that {path.name} describes")
    return manifest, table


def photographs_on_disk(table: Path, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each image of a table whose photograph is on disk, in its order.

    Parameters
    ----------
    table
        GeoParquet as `vsvi export` writes it, rows of one image beside each other.
    names
        Columns, `image_id` and `file` among them.
    """
    stored = (row for row in table_rows(table, names) if row["file"] is not None)
    for _, rows in groupby(stored, key=itemgetter("image_id")):
        yield list(rows)


def table_rows(table: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield some columns of a table row by row; memory does not grow with them."""
    with pyarrow.parquet.ParquetFile(table) as file:
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=names):
            yield from batch.to_pylist()


def count_photographs(table: Path) -> int:
    """Return how many images of a table have a photograph on disk."""
    columns = pyarrow.parquet.read_table(table, columns=["image_id", "file"])
    stored = columns.filter(pyarrow.compute.is_valid(columns["file"]))
    return int(pyarrow.compute.count_distinct(stored["image_id"]).as_py())
