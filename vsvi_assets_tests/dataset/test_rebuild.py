"""A city is run, frozen, and rebuilt elsewhere, over HTTP to the sandbox."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vsvi_assets.city import City
from vsvi_assets.dataset.errors import ManifestError
from vsvi_assets.dataset.freeze import freeze, frozen_tiles
from vsvi_assets.dataset.manifest import photographs_on_disk, read_manifest
from vsvi_assets.dataset.rebuild import Rebuilt, rebuild, rebuild_city
from vsvi_assets.files import DiskGuard
from vsvi_assets.photographs.verification import verify_photographs
from vsvi_assets.sandbox import Faults
from vsvi_assets_tests.project import Project


@pytest.fixture
def manifest_path(project: Project, tmp_path: Path) -> Path:
    """The manifest of a small city that was run and frozen without its photographs."""
    city = project.write_city(image_size="1024")
    assert project.run_city(city).success
    return frozen(city, tmp_path / "frozen")


def frozen(city: City, path: Path) -> Path:
    freeze(
        path,
        city=city.name,
        city_file=city.model_dump(mode="json", exclude_unset=True),
        services=city.services,
        tiles=frozen_tiles(city),
        table=city.dataset_path,
        photographs=None,
        now=datetime.now(UTC),
    )
    return path / "data" / "manifest.json"


def rebuilt(project: Project, manifest_path: Path, folder: Path) -> Rebuilt:
    manifest, table = read_manifest(manifest_path)
    city = rebuild_city(manifest, folder)
    client = project.resources["mapillary"].client(city)  # type: ignore[attr-defined]
    guard = DiskGuard(folder, city.required_free_bytes)
    return rebuild(manifest, table, client, folder, size=city.image_size, guard=guard)


def photographs_of(manifest_path: Path) -> list[dict[str, Any]]:
    _, table = read_manifest(manifest_path)
    return [row for row, *_ in photographs_on_disk(table, ["image_id", "file"])]


def test_exactly_the_frozen_photographs_come_back_and_are_proved(
    project: Project, manifest_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    expected = {row["file"] for row in photographs_of(manifest_path)}
    assert len(expected) > 50
    found = rebuilt(project, manifest_path, folder)
    assert found == Rebuilt(proved=len(expected))
    photographs = folder / "photographs"
    assert {str(path.relative_to(photographs)) for path in photographs.glob("*/*.jpg")} == expected
    assert not verify_photographs(photographs).differences
    # What was rebuilt is itself a manifest with its table, to be rebuilt again.
    requests = project.sandbox.stats.requests.copy()
    assert rebuilt(project, folder / "manifest.json", folder) == Rebuilt(proved=len(expected))
    assert project.sandbox.stats.requests["images"] == requests["images"]


def test_what_mapillary_has_withdrawn_since_is_listed(
    project: Project, manifest_path: Path, tmp_path: Path
) -> None:
    known = [row["image_id"] for row in photographs_of(manifest_path)]
    gone = set(known[3:40:12])
    project.sandbox.faults = Faults(gone_ids=frozenset(gone))
    found = rebuilt(project, manifest_path, tmp_path / "elsewhere")
    assert (found.proved, set(found.withdrawn)) == (len(known) - len(gone), gone)
    assert not found.failed
    pages = (tmp_path / "elsewhere" / "withdrawn.txt").read_text().split()
    assert sorted(pages) == sorted(
        f"https://www.mapillary.com/app/?pKey={image_id}" for image_id in gone
    )


def test_a_photograph_that_comes_with_other_bytes_is_not_taken_for_the_frozen_one(
    project: Project, manifest_path: Path, tmp_path: Path
) -> None:
    known = {row["image_id"] for row in photographs_of(manifest_path)}
    text = manifest_path.read_text()
    assert '"image_size": "1024"' in text
    manifest_path.write_text(text.replace('"image_size": "1024"', '"image_size": "256"'))
    found = rebuilt(project, manifest_path, tmp_path / "elsewhere")
    assert (found.proved, set(found.other_bytes)) == (0, known)


def test_the_manifest_names_the_tiles_and_the_keys_of_the_city_file(
    project: Project, manifest_path: Path
) -> None:
    manifest, _ = read_manifest(manifest_path)
    assert len(manifest.tiles) == 4
    assert manifest.city_file["image_size"] == "1024"
    assert "num_retries" in manifest.city_file
    assert "interval" not in manifest.city_file


def test_a_frozen_city_file_that_cannot_be_used_is_refused(
    project: Project, manifest_path: Path, tmp_path: Path
) -> None:
    manifest, _ = read_manifest(manifest_path)
    broken = manifest.model_copy(update={"city_file": {"bounding_box": "everywhere"}})
    with pytest.raises(ManifestError, match="bounding_box"):
        rebuild_city(broken, tmp_path)


def test_a_city_of_a_region_is_rebuilt_without_its_file(
    project: Project, manifest_path: Path, tmp_path: Path
) -> None:
    manifest, _ = read_manifest(manifest_path)
    city_file = {**manifest.city_file, "region": "area.gpkg"}
    del city_file["bounding_box"]
    city = rebuild_city(manifest.model_copy(update={"city_file": city_file}), tmp_path)
    assert city.image_size == "1024"
    assert manifest.tiles[0].tile in city.tile_keys
