import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from vsvi_assets.city.views import Views
from vsvi_assets.dataset.perspective import View
from vsvi_assets.dataset.views import (
    ViewsMade,
    front_along_street,
    view_headings,
    write_views,
)
from vsvi_assets_tests.dataset.test_perspective import heading_seen, marked_panorama


def rules_of(directions: tuple[str | float, ...] | None = None, **keys: object) -> Views:
    keys |= {"directions": directions} if directions else {}
    return Views.model_validate({"width": 640, "height": 480} | keys)


IMAGE = {
    "image_id": 1,
    "sequence_id": "s",
    "file": "s/1.jpg",
    "sha256": "ab",
    "compass_angle": 15.0,
    "is_pano": True,
    "image_lon": 4.35,
    "image_lat": 52.01,
    "creator": "somebody",
    "distance": 3.0,
    "bearing": 210.0,
}
SCHEMA = pa.Table.from_pylist([IMAGE]).schema


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs: 1 a panorama whose middle looks to 15 degrees, 2 a flat one."""
    folder = tmp_path / "sequences"
    (folder / "s").mkdir(parents=True)
    marked_panorama(15).save(folder / "s" / "1.jpg", quality=95)
    Image.new("RGB", (64, 48), "red").save(folder / "s" / "2.jpg")
    return folder


def made(
    photographs: Path, *images: dict[str, object], rules: Views | None = None
) -> tuple[ViewsMade, Path]:
    """Make views of images and return what was made, and the sequence's folder."""
    table = photographs.parent / "dataset.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(images), SCHEMA), table)
    folder = photographs.parent / "views"
    [result] = write_views(table, photographs, folder, rules or rules_of(), 2)
    return result, folder / "s"


def described(folder: Path) -> list[dict[str, object]]:
    content = json.loads((folder / "views.geojson").read_text())
    return [feature["properties"] for feature in content["features"]]


def test_each_view_looks_where_its_sidecar_and_name_say(photographs: Path) -> None:
    result, folder = made(photographs, IMAGE)
    assert (result.views, result.kept, result.skipped) == (4, 0, {})
    # The camera looks to 15 degrees, so along the street means 30 rather than 210.
    expected = {"front": 30, "right": 120, "back": 210, "left": 300}
    views = described(folder)
    assert {str(view["direction"]): view["heading"] for view in views} == expected
    for view in views:
        heading = expected[str(view["direction"])]
        name = f"1_{view['direction']}_heading{heading:03}_pitch+00_fov090.jpg"
        assert (view["file"], view["parent"], view["fov"], view["pitch"]) == (name, 1, 90, 0)
        picture = Image.open(folder / name)
        assert picture.size == (640, 480)
        seen = heading_seen(picture.convert("RGB"), heading, View(heading, 0, 90, 640, 480))
        assert seen == pytest.approx(heading, abs=1)
    assert {path.name for path in folder.iterdir()} == {
        "views.geojson",
        *(str(view["file"]) for view in views),
    }


@pytest.mark.parametrize(
    ("rules", "headings"),
    [
        (rules_of(("north", "south")), [0, 180]),
        (rules_of(("front", "left"), relative_to="camera"), [15, 285]),
        (rules_of((45.0, -90.0)), [45, 270]),
        (rules_of(("front",), heading_at="left"), [30]),
    ],
)
def test_directions_of_the_compass_and_of_the_camera(
    photographs: Path, rules: Views, headings: list[float]
) -> None:
    _, folder = made(photographs, IMAGE, rules=rules)
    assert [view["heading"] for view in described(folder)] == headings


def test_a_flat_photograph_is_taken_along(photographs: Path) -> None:
    flat = IMAGE | {"image_id": 2, "file": "s/2.jpg", "is_pano": False, "compass_angle": 361.0}
    result, folder = made(photographs, IMAGE, flat)
    assert (result.views, result.flat) == (4, 1)
    view = described(folder)[-1]
    assert (view["file"], view["heading"], view["fov"]) == ("2_flat.jpg", 1, None)
    assert (folder / "2_flat.jpg").read_bytes() == (photographs / "s" / "2.jpg").read_bytes()


@pytest.mark.parametrize(
    ("change", "rules", "reason"),
    [
        ({"compass_angle": None}, rules_of(), "compass angle is unknown"),
        ({"bearing": None}, rules_of(), "direction of its street is unknown"),
        ({"file": "s/2.jpg"}, rules_of(), "twice as wide as high"),
    ],
)
def test_a_panorama_without_views_is_listed_with_the_reason(
    photographs: Path, change: dict[str, object], rules: Views, reason: str
) -> None:
    result, folder = made(photographs, IMAGE | change, rules=rules)
    assert reason in result.skipped[1]
    assert reason in json.loads((folder / "views.geojson").read_text())["skipped"]["1"]
    assert [path.name for path in folder.iterdir()] == ["views.geojson"]


def test_what_is_made_already_is_not_made_again(photographs: Path) -> None:
    flat = IMAGE | {"image_id": 2, "file": "s/2.jpg", "is_pano": False}
    _, folder = made(photographs, IMAGE, flat)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}
    (photographs / "s" / "1.jpg").write_bytes(b"not to be read")
    result, _ = made(photographs, IMAGE, flat)
    assert (result.views, result.flat, result.kept) == (4, 1, 5)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")} == before


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"sha256": "cd"}, rules_of()),
        ({}, rules_of(width=320)),
        ({"compass_angle": 16.0}, rules_of()),
        ({}, rules_of(heading_at="left")),
    ],
    ids=["another photograph", "another size", "another angle", "another convention"],
)
def test_views_of_something_else_are_made_anew(
    photographs: Path, change: dict[str, object], rules: Views
) -> None:
    made(photographs, IMAGE)
    result, _ = made(photographs, IMAGE | change, rules=rules)
    assert (result.views, result.kept) == (4, 0)


def test_views_that_are_no_longer_asked_for_go_and_other_files_stay(photographs: Path) -> None:
    _, folder = made(photographs, IMAGE)
    (folder / "mine.jpg").write_bytes(b"mine")
    result, _ = made(photographs, IMAGE, rules=rules_of(("front",)))
    assert result.kept == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "1_front_heading030_pitch+00_fov090.jpg",
        "mine.jpg",
        "views.geojson",
    ]


def test_a_sidecar_cannot_name_files_elsewhere(photographs: Path) -> None:
    _, folder = made(photographs, IMAGE)
    victim = folder.parent / "victim.txt"
    victim.write_text("mine")
    sidecar = folder / "views.geojson"
    content = json.loads(sidecar.read_text())
    content["features"][0]["properties"]["file"] = "../victim.txt"
    sidecar.write_text(json.dumps(content))
    made(photographs, IMAGE)
    assert victim.read_text() == "mine"


def test_the_same_photographs_give_the_same_bytes(photographs: Path) -> None:
    _, folder = made(photographs, IMAGE)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    made(photographs, IMAGE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_the_street_of_the_nearest_point_counts(photographs: Path) -> None:
    far = IMAGE | {"distance": 50.0, "bearing": 90.0}
    _, folder = made(photographs, far, IMAGE, far, rules=rules_of(("front",)))
    assert [view["heading"] for view in described(folder)] == [30]


def test_front_is_where_the_camera_faces() -> None:
    generator = np.random.default_rng(4)
    for bearing, camera in generator.uniform(-720, 720, (1000, 2)):
        front = front_along_street(bearing, camera)
        assert 0 <= front < 360
        assert (front - bearing) % 180 == pytest.approx(0, abs=1e-6) or (
            front - bearing
        ) % 180 == pytest.approx(180, abs=1e-6)
        assert abs((front - camera + 180) % 360 - 180) <= 90 + 1e-6
    assert view_headings(("front",), None) is None
    assert view_headings(("north", 30.0), None) == {"north": 0, "30": 30}
