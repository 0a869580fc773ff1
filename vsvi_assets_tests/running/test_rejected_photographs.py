"""Photographs that are not good enough: measured as they come, replaced within the same run."""

import pyarrow.parquet
import pytest
from dagster import AssetKey

from vsvi_assets.city import City
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.photographs.sidecar import read_sidecar
from vsvi_assets.views.status import city_status, status_lines
from vsvi_assets_tests.photographs.parts import show
from vsvi_assets_tests.project import Project

LIMITS = {"min_sharpness": 100, "min_brightness": 0.1, "max_over_exposure": 0.4}


def ask(project: Project, query: str, **parameters: object) -> list[tuple]:
    """Ask the tables of the city `town`."""
    with project.postgis.transaction() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()


def states(project: Project) -> dict[str, list[int]]:
    """Return the ids of the images in the table `photographs`, by state."""
    query = "SELECT state, array_agg(image_id ORDER BY image_id) FROM town.photographs GROUP BY 1"
    return dict(ask(project, query))


def selection(project: Project) -> dict[int, int]:
    """Return the image of each point."""
    return dict(ask(project, "SELECT street_point_id, image_id FROM town.selected_images"))


def near_images(project: Project, city: City) -> dict[int, list[int]]:
    """Return the images within reach of each point, the nearest first, by all pairs."""
    query = """
        SELECT point.id,
            array_agg(image.id ORDER BY ST_Distance(point.geo, image.geo), image.id)
        FROM town.street_points AS point, town.images AS image
        WHERE ST_Distance(point.geo, image.geo) <= %(max_distance)s GROUP BY 1
    """
    return dict(ask(project, query, max_distance=city.max_distance))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("blurred", "sharpness below 100"),
        ("dark", "sharpness below 100, brightness below 0.1"),
        ("overexposed", "over-exposure above 0.4"),
    ],
)
def test_each_kind_is_recognised_and_another_image_selected(
    project: Project, kind: str, reason: str
) -> None:
    show(project.sandbox.world, lambda image: kind if image.id % 10 == 3 else "good")
    city = project.write_city(quality=LIMITS)
    run = project.run_city(city)
    assert run.success, run.failures
    found = states(project)
    assert found["rejected"]
    assert all(image_id % 10 == 3 for image_id in found["rejected"])
    assert not {image_id for image_id in found["stored"] if image_id % 10 == 3}
    query = "SELECT DISTINCT reason FROM town.photographs WHERE state = 'rejected'"
    assert ask(project, query) == [(reason,)]
    inventory = take_inventory(city, project.postgis)
    assert (inventory.on_disk, inventory.rejected) == (inventory.selected, [])
    lines = "\n".join(status_lines(city, city_status(city, project.postgis)))
    assert f"{len(found['rejected'])} {reason}" in lines


def test_a_point_gets_the_nearest_good_one_of_the_images_that_are_tried(project: Project) -> None:
    show(project.sandbox.world, lambda image: "good" if image.id % 7 == 0 else "blurred")
    city = project.write_city(quality=LIMITS | {"tries": 3}, max_distance=100)
    run = project.run_city(city)
    assert run.success, run.failures
    found = selection(project)
    near = near_images(project, city)
    expected = {
        point: next((image_id for image_id in ids[:3] if image_id % 7 == 0), None)
        for point, ids in near.items()
    }
    assert found == {point: image for point, image in expected.items() if image}
    assert None in expected.values()
    # Nothing beyond the tries was fetched, and nothing twice.
    tried = {image_id for ids in near.values() for image_id in ids[:3]}
    asked = project.sandbox.stats.images_asked
    assert asked.keys() <= tried
    assert set(asked.values()) == {1}
    # Each sequence with a selected image is materialized, and no other one is registered.
    images = project.sandbox.world.images
    sequences = {images[image_id].sequence_id for image_id in found.values()}
    assert set(project.sequences(city)) == sequences
    files = AssetKey([city.name, "image_files"])
    assert project.instance.get_materialized_partitions(files) >= sequences

    before = asked.copy()
    assert project.run_city(city).success
    assert asked == before


def test_a_point_without_a_good_image_is_a_gap_with_its_reason(project: Project) -> None:
    show(project.sandbox.world, lambda image: "blurred" if image.lon < 5.209 else "good")
    city = project.write_city(quality=LIMITS | {"tries": 50})
    assert project.run_city(city).success
    images = project.sandbox.world.images
    assert all(images[image_id].lon >= 5.209 for image_id in selection(project).values())
    near = near_images(project, city)
    rows = pyarrow.parquet.read_table(city.dataset_path).to_pylist()
    gaps = {row["street_point_id"]: row["reason"] for row in rows if row["state"] == "gap"}
    assert {reason for point, reason in gaps.items() if point in near} == {
        "no image near the point is good enough"
    }
    assert {reason for point, reason in gaps.items() if point not in near} <= {None}
    assert not [row for row in rows if row["state"] == "rejected"]


def test_other_limits_take_effect_without_a_download(project: Project) -> None:
    show(project.sandbox.world, lambda image: "good" if image.id % 2 else "dark")
    city = project.write_city(quality={})
    assert project.run_city(city).success
    first = selection(project)
    strict = project.write_city(quality={"min_brightness": 0.1})
    assert project.run_city(strict).success
    assert all(image_id % 2 for image_id in selection(project).values())
    asked = project.sandbox.stats.images_asked.copy()
    assert project.run_city(project.write_city()).success
    assert selection(project) == first
    assert "rejected" not in states(project)
    assert project.sandbox.stats.images_asked == asked


def test_photographs_in_store_are_measured_by_the_next_run_and_not_fetched(
    project: Project,
) -> None:
    show(project.sandbox.world, lambda image: "good")
    city = project.write_city()
    assert project.run_city(city).success
    folders = list(city.sequences_folder.glob("*/images.geojson"))
    assert "sharpness" not in folders[0].read_text()
    asked = project.sandbox.stats.images_asked.copy()

    city = project.write_city(quality={})
    assert take_inventory(city, project.postgis).unmeasured
    assert project.run_city(city).success
    assert project.sandbox.stats.images_asked == asked
    assert not take_inventory(city, project.postgis).unmeasured
    images = [image for path in folders for image in read_sidecar(path.parent).images.values()]
    assert all(image.quality and image.quality.sharpness > 100 for image in images)


def test_every_image_of_the_box_but_the_rejected_ones(project: Project) -> None:
    show(project.sandbox.world, lambda image: "good" if image.id % 5 else "overexposed")
    city = project.write_city(selection="all", quality=LIMITS)
    assert project.run_city(city).success
    selected = {id_ for (id_,) in ask(project, "SELECT image_id FROM town.selected_images")}
    assert selected
    assert all(image_id % 5 for image_id in selected)
    assert set(states(project)["rejected"]) == {
        id_ for id_ in project.sandbox.world.images if id_ % 5 == 0
    }
