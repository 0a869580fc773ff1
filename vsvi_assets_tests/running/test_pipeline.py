"""The whole graph, through real HTTP and a real PostGIS."""

from PIL import Image

from vsvi_assets.database.photographs import take_inventory
from vsvi_assets_tests.project import Project


def test_a_box_becomes_photographs_once(project: Project) -> None:
    city = project.write_city()
    assert project.materialize_metadata(city).success
    assert project.materialize_images(city).success

    ids = [int(line) for line in city.selected_image_ids_path.read_text().split()]
    world = project.sandbox.world
    assert len(ids) > 50
    for image_id in ids:
        image = world.images[image_id]
        path = city.sequences_folder / image.sequence_id / f"{image_id}.jpg"
        assert path.read_bytes() == world.picture(image, "original")
        Image.open(path).load()
    inventory = take_inventory(city, project.postgis)
    assert (inventory.selected, inventory.on_disk) == (len(ids), len(ids))

    asked = dict(project.sandbox.stats.requests)
    assert project.materialize_images(city).success
    assert project.sandbox.stats.requests == asked
    assert project.sandbox.stats.token_leaks == 0
