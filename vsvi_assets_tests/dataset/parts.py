"""Rows of a made-up dataset."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("street_point_id", pa.int64(), metadata={"description": "The street point."}),
        pa.field("lon", pa.float64()),
        pa.field("lat", pa.float64()),
        pa.field("street", pa.string()),
        pa.field("image_id", pa.int64()),
        pa.field("captured_at", pa.timestamp("us", "UTC")),
        pa.field("is_pano", pa.bool_()),
        pa.field("file", pa.string()),
    ]
)


def row(number: int) -> dict[str, object]:
    """Return a row; every third one is a gap, and two rows each share an image."""
    gap = number % 3 == 2
    image_id = 10**15 + number // 3
    return {
        "street_point_id": number,
        "lon": 4.35 + number * 1e-6,
        "lat": 52.01 - number * 1e-6,
        "street": None if number % 5 else 'Van "der" Straat,\n42',
        "image_id": None if gap else image_id,
        "captured_at": None if gap else datetime(2024, 2, 29, 23, 59, 59, 123000, UTC),
        "is_pano": None if gap else number % 2 == 0,
        "file": None if gap else f"sequence/{image_id}.jpg",
    }


def rows_of(
    rows: list[dict[str, object]], schema: pa.Schema = SCHEMA, batch_rows: int = 1000
) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), batch_rows):
            yield pa.RecordBatch.from_pylist(rows[start : start + batch_rows], schema)

    return pa.RecordBatchReader.from_batches(schema, batches())
