"""Photographs with what is known of them in tar files, as WebDataset reads them for training.

Source of the format: https://github.com/webdataset/webdataset. Files of the same name but for
the ending are one sample; here `<image_id>.jpg` and `<image_id>.json`.
"""

import io
import tarfile
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet

from vsvi_assets.dataset.errors import MissingPhotographError
from vsvi_assets.dataset.manifest import photographs_on_disk
from vsvi_assets.files import DataPath, atomic_write

IMAGES_PER_SHARD = 10_000


def write_shards(
    table: Path,
    photographs: DataPath,
    folder: Path,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> list[Path]:
    """Write `shard-000000.tar` and so on into a folder, and return their paths.

    Shards that are in the folder already are replaced. One photograph is in memory at a time.

    Parameters
    ----------
    table
        GeoParquet as `vsvi export` writes it, rows of one image beside each other. The
        image's JSON file is the list of its rows.
    photographs
        The folder below which the table's `file` lie.

    Raises
    ------
    MissingPhotographError
        When a photograph is not where it should be; shards before it are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in pyarrow.parquet.read_schema(table).names if name != "geometry"]
    samples = photographs_on_disk(table, names)
    shards: list[Path] = []
    while sample := next(samples, None):
        path = folder / f"shard-{len(shards):06}.tar"
        rest = islice(samples, images_per_shard - 1)
        _write_shard(path, chain([sample], rest), photographs)
        shards.append(path)
    for path in set(folder.glob("shard-*.tar")) - set(shards):
        path.unlink()
    return shards


def _write_shard(
    path: Path, samples: Iterable[list[dict[str, Any]]], photographs: DataPath
) -> None:
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w|") as shard:
        for rows in samples:
            photograph = photographs / rows[0]["file"]
            try:
                source = photograph.open("rb")
            except FileNotFoundError as error:
                raise MissingPhotographError(photograph) from error
            with source:
                picture = tarfile.TarInfo(f"{rows[0]['image_id']}.jpg")
                picture.size = source.seek(0, io.SEEK_END)
                source.seek(0)
                shard.addfile(picture, source)
            facts = orjson.dumps(rows)
            description = tarfile.TarInfo(f"{rows[0]['image_id']}.json")
            description.size = len(facts)
            shard.addfile(description, io.BytesIO(facts))
