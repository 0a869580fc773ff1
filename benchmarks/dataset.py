"""The dataset of a city: all of it written as one table."""

import resource
from collections.abc import Iterator

import geopandas as gpd
import numpy as np
import pyarrow as pa

from benchmarks.downloads import lay_down
from benchmarks.inputs import SyntheticCity
from benchmarks.measure import Clock, Measured, in_turn, measure
from benchmarks.surroundings import Home
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.city import City, load_city
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.dataset import dataset
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.tables import (
    SELECTION_SCHEMA,
    images_table,
    selected_images_table,
    street_points_table,
)
from vsvi_assets.dataset.export import write_table

POINTS_PER_IMAGE = 5


def city_of(home: Home, rows: int) -> City:
    """Return the city whose dataset has so many rows."""
    return load_city(home.folder / "cities" / f"rows{rows}.json", home.folder / "data")


# In processes of their own


def prepare(clock: Clock, home: Home, rows: int) -> None:
    """Make a city of so many street points, each with a photograph on disk."""
    size = SyntheticCity.of_size(rows // POINTS_PER_IMAGE)
    size.write(home.folder / "cities", f"rows{rows}")
    city = city_of(home, rows)
    images = size.image_table()
    image = np.repeat(np.arange(len(images)), POINTS_PER_IMAGE)
    places = (images[name].to_numpy()[image] for name in ("lon", "lat"))
    ids = np.arange(len(image))
    points = gpd.GeoDataFrame(
        {"id": ids, "osmid": ids, "street": [f"Street {id_ % 9973}" for id_ in ids.tolist()]},
        geometry=gpd.points_from_xy(*places),
        crs=4326,
    )
    known = {
        "street_point_id": pa.array(ids),
        "image_id": images["id"].take(pa.array(image)),
        "sequence_id": images["sequence_id"].take(pa.array(image)),
        "distance": pa.array(np.zeros(len(ids))),
    }
    selection = pa.table(
        [known.get(field.name, pa.nulls(len(ids), field.type)) for field in SELECTION_SCHEMA],
        schema=SELECTION_SCHEMA,
    )
    tables = [
        street_points_table(points, city),
        images_table([images], city),
        selected_images_table(selection, city),
    ]
    replace_tables(Postgis(home.postgis.vsvi_url), city.name, tables)
    sequences = images.group_by("sequence_id").aggregate([("id", "list")]).to_pylist()
    for sequence in sequences:
        folder = city.sequences_folder / sequence["sequence_id"]
        lay_down(folder, sequence["id_list"], b"photograph")


def project_export(clock: Clock, home: Home, rows: int) -> None:
    city, postgis = city_of(home, rows), Postgis(home.postgis.vsvi_url)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with clock:
        written = write_table(dataset(postgis, city), city.dataset_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    clock.facts = {"rows": written, "cpu": cpu}


# The lines of the table


def export(home: Home, rows: int, repeat: int) -> Iterator[Row]:
    """Export a city as GeoParquet, beside a tenth of it for its memory."""

    def exported(count: int) -> Measured:
        measure(prepare, home, count)
        [found] = in_turn(repeat, lambda: measure(project_export, home, count))
        assert found.facts["rows"] == count
        return found

    tenth, whole = exported(rows // 10), exported(rows)
    yield Row(
        f"export of {rows:,} rows as GeoParquet, {rows // POINTS_PER_IMAGE:,} photographs on disk",
        "–",
        f"{seconds(whole.seconds)} ({seconds(whole.facts['cpu'])} of them computing)",
        "",
        f"{megabytes(whole.memory)} ({megabytes(tenth.memory)} at a tenth)",
        "<= 20 s, flat memory",
        whole.seconds <= 20 and whole.memory < 1.3 * tenth.memory,
    )
