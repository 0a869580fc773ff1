"""A made-up dataset: its rows, and its photographs on disk."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from vsvi_assets.dataset.export import write_table

SCHEMA = pa.schema(
    [
        pa.field("street_point_id", pa.int64(), metadata={"description": "The street point."}),
        pa.field("lon", pa.float64()),
        pa.field("lat", pa.float64()),
        pa.field("street", pa.string()),
        pa.field("image_id", pa.int64()),
        pa.field("sequence_id", pa.string()),
        pa.field("image_lon", pa.float64()),
        pa.field("image_lat", pa.float64()),
        pa.field("captured_at", pa.timestamp("us", "UTC")),
        pa.field("compass_angle", pa.float64()),
        pa.field("is_pano", pa.bool_()),
        pa.field("state", pa.string()),
        pa.field("file", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("creator", pa.string()),
    ]
)


def photograph(image_id: int) -> bytes:
    """Return what stands for the pixels of an image."""
    return f"pixels of {image_id}".encode()


def row(number: int) -> dict[str, object]:
    """Return a row; every third one is a gap, and two rows each share an image."""
    point = {
        "street_point_id": number,
        "lon": 4.35 + number * 1e-6,
        "lat": 52.01 - number * 1e-6,
        "street": None if number % 5 else 'Van "der" Straat,\n42',
    }
    if number % 3 == 2:
        return dict.fromkeys(SCHEMA.names) | point
    image_id = 10**15 + number // 3
    return {
        **point,
        "image_id": image_id,
        "sequence_id": "sequence",
        "image_lon": 4.36 + number * 1e-6,
        "image_lat": 52.02,
        "captured_at": datetime(2024, 2, 29, 23, 59, 59, 123000, UTC),
        "compass_angle": number / 7,
        "is_pano": number % 6 == 0,
        "state": "stored",
        "file": f"sequence/{image_id}.jpg",
        "bytes": len(photograph(image_id)),
        "sha256": hashlib.sha256(photograph(image_id)).hexdigest(),
        "creator": None if number % 7 == 3 else f"user {number // 3 % 4}",
    }


def rows_of(rows: list[dict[str, object]], batch_rows: int = 1000) -> pa.RecordBatchReader:
    """Return rows in batches, as they come from the database."""

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), batch_rows):
            yield pa.RecordBatch.from_pylist(rows[start : start + batch_rows], SCHEMA)

    return pa.RecordBatchReader.from_batches(SCHEMA, batches())


def write_photographs(rows: list[dict[str, object]], folder: Path) -> Path:
    """Write the photographs of rows where their files should be, and return the folder."""
    for known in rows:
        if known["file"]:
            path = folder / str(known["file"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(int(str(known["image_id"]))))
    return folder


def written_table(rows: list[dict[str, object]], folder: Path) -> Path:
    """Write rows as GeoParquet and return the file."""
    path = folder / "dataset.parquet"
    write_table(rows_of(rows), path)
    return path
