"""A city's dataset, compared with what `vsvi status` counts of the same city."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc
import pytest

from vsvi_assets.city import City
from vsvi_assets.database.dataset import DATASET_SCHEMA, GAP, MISSING, OldTablesError, dataset
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.database.queries import coverage
from vsvi_assets.photographs.sidecar import sha256_of
from vsvi_assets.sandbox import Faults
from vsvi_assets.views.status import city_status
from vsvi_assets_tests.project import Project


def rows_of(project: Project, city: City) -> list[dict[str, Any]]:
    return dataset(project.postgis, city).read_all().to_pylist()


def images_by_state(rows: list[dict[str, Any]]) -> Counter[str]:
    """Count images, each once, by what became of them."""
    states = {row["image_id"]: row["state"] for row in rows if row["image_id"] is not None}
    return Counter(states.values())


@pytest.mark.parametrize("keys", [{}, {"selection": "all"}, {"imgid_file": "ids.txt"}])
def test_its_counts_are_those_of_the_status(project: Project, keys: dict[str, Any]) -> None:
    ids = sorted(project.sandbox.world.images)
    (project.settings.data_dir).mkdir()
    (project.settings.data_dir / "ids.txt").write_text("\n".join(map(str, ids[::3])))
    project.sandbox.faults = Faults(gone_ids=frozenset({ids[0], ids[33]}))
    city = project.write_city(max_distance=25, **keys)
    project.run_city(city)
    inventory = take_inventory(city, project.postgis)
    assert inventory.on_disk > 10
    stored = [row for row in rows_of(project, city) if row["file"]]
    (city.sequences_folder / stored[0]["file"]).unlink()
    (city.sequences_folder / stored[-1]["file"]).write_bytes(b"half")

    rows = rows_of(project, city)
    status = city_status(city, project.postgis)
    inventory = take_inventory(city, project.postgis)

    points = [row["street_point_id"] for row in rows if row["street_point_id"] is not None]
    assert sorted(points) == sorted(set(points))
    assert len(points) == status.street_points
    gaps = [row for row in rows if row["state"] == GAP]
    assert len(gaps) == status.points_without_image
    assert 0 < len(gaps) < len(points)
    states = images_by_state(rows)
    assert states.total() == inventory.selected
    assert states["stored"] == inventory.on_disk
    assert states[MISSING] == sum(map(len, inventory.missing.values())) == 2
    assert states["not_answered"] == len(inventory.not_answered)
    sizes = {row["image_id"]: row["bytes"] for row in rows if row["file"]}
    assert sum(sizes.values()) == inventory.bytes


def test_each_row_has_what_is_known_of_point_image_and_photograph(project: Project) -> None:
    city = project.write_city()
    project.run_city(city)
    rows = rows_of(project, city)
    found = {row["street_point_id"]: row for row in coverage(project.postgis, city).to_pylist()}
    assert any(row["image_id"] for row in rows)
    for row in rows:
        known = found[row["street_point_id"]]
        for name in ("lon", "lat", "street", "distance", "image_id", "image_lon", "compass_angle"):
            assert row[name] == known[name], name
        if row["image_id"] is None:
            assert row["state"] == GAP
            assert row["file"] is row["page"] is row["licence"] is None
            continue
        image = project.sandbox.world.images[row["image_id"]]
        assert row["captured_at"].timestamp() * 1000 == image.captured_at
        assert row["sequence_id"] == image.sequence_id
        assert row["licence"] == "CC BY-SA 4.0"
        assert row["page"] == f"https://www.mapillary.com/app/?pKey={row['image_id']}"
        path = city.sequences_folder / row["file"]
        assert (row["bytes"], row["sha256"]) == (path.stat().st_size, sha256_of(path))
        assert (row["width"], row["height"], row["state"]) == (64, 48, "stored")
        assert row["creator"]


def test_rows_of_a_sequence_and_of_an_image_lie_together_and_gaps_at_the_end(
    project: Project,
) -> None:
    city = project.write_city(max_distance=25)
    project.materialize_metadata(city)
    rows = rows_of(project, city)
    images = [row for row in rows if row["image_id"] is not None]
    assert 0 < len(images) < len(rows)
    assert rows[: len(images)] == images
    order = [(row["sequence_id"], row["image_id"], row["street_point_id"]) for row in images]
    assert order == sorted(order)
    assert {row["state"] for row in images} == {MISSING}


def test_tables_of_an_earlier_version_are_reported_with_what_to_do(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    with project.postgis.transaction() as cursor:
        cursor.execute("ALTER TABLE town.street_points DROP COLUMN bearing")
    with pytest.raises(OldTablesError, match="run `vsvi materialize town`"):
        rows_of(project, city)


def test_every_column_is_described() -> None:
    for field in DATASET_SCHEMA:
        assert (field.metadata or {}).get(b"description"), field.name
    assert len(set(DATASET_SCHEMA.names)) == len(DATASET_SCHEMA)


def test_batches_are_small_whatever_the_city(project: Project) -> None:
    city = project.write_city(interval=5)
    project.materialize_metadata(city)
    batches = list(dataset(project.postgis, city))
    assert all(batch.nbytes <= 10_000_000 for batch in batches)
    points = pc.count_distinct(dataset(project.postgis, city).read_all()["street_point_id"])
    assert sum(batch.num_rows for batch in batches) == points.as_py()
