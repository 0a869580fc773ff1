import hashlib
import io
import json
import tracemalloc
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import bagit
import mlcroissant
import pytest
import yaml

from vsvi_assets.dataset.bag import new_bag
from vsvi_assets.dataset.descriptions import citation
from vsvi_assets.dataset.errors import (
    ChangedPhotographError,
    FolderExistsError,
    ManifestError,
    MissingPhotographError,
)
from vsvi_assets.dataset.freeze import freeze
from vsvi_assets.dataset.manifest import (
    FrozenTile,
    Manifest,
    photographs_on_disk,
    read_manifest,
)
from vsvi_assets_tests.dataset.parts import photograph, row, write_photographs, written_table

ROWS = [row(number) for number in range(75)]
NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def frozen(folder: Path, name: str = "frozen", *, with_photographs: bool = True) -> Path:
    """Freeze the made-up dataset under a name in a folder."""
    path = folder / name
    freeze(
        path,
        city="delft",
        city_file={"bounding_box": {"west": 4.34, "south": 51.99, "east": 4.38, "north": 52.02}},
        services="sandbox",
        tiles=[FrozenTile(tile="14/8389/5422", fetched_at=NOW, sha256="ab" * 32)],
        table=written_table(ROWS, folder),
        photographs=write_photographs(ROWS, folder / "sequences") if with_photographs else None,
        now=NOW,
    )
    return path


def test_bagit_validates_the_folder_byte_by_byte(tmp_path: Path) -> None:
    bag = bagit.Bag(str(frozen(tmp_path)))
    bag.validate()
    assert len(list(bag.payload_files())) == 25 + 5
    (tmp_path / "frozen/data/photographs/sequence" / f"{10**15}.jpg").write_bytes(b"other")
    with pytest.raises(bagit.BagValidationError):
        bagit.Bag(str(tmp_path / "frozen")).validate()


def test_bagit_validates_the_zip_file_once_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(frozen(tmp_path, "frozen.zip")) as archive:
        archive.extractall(tmp_path / "unpacked")
    bagit.Bag(str(tmp_path / "unpacked" / "frozen")).validate()


def test_without_photographs_the_bag_is_small_and_valid(tmp_path: Path) -> None:
    path = frozen(tmp_path, with_photographs=False)
    bagit.Bag(str(path)).validate()
    assert sorted(file.name for file in (path / "data").iterdir()) == [
        "ATTRIBUTION.txt",
        "CITATION.cff",
        "croissant.json",
        "dataset.parquet",
        "manifest.json",
    ]


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = frozen(tmp_path, "a.zip"), frozen(tmp_path, "again/a.zip")
    assert first.read_bytes() == second.read_bytes()


def test_the_manifest_says_what_the_dataset_is_made_of(tmp_path: Path) -> None:
    manifest, table = read_manifest(frozen(tmp_path) / "data" / "manifest.json")
    assert manifest.counts.model_dump() == {
        "street_points": 75,
        "gaps": 25,
        "images": 25,
        "photographs": 25,
        "bytes": sum(len(photograph(10**15 + number)) for number in range(25)),
        "states": {"stored": 25},
    }
    assert (manifest.city, manifest.services, manifest.frozen_at) == ("delft", "sandbox", NOW)
    assert manifest.city_file["bounding_box"]["west"] == 4.34
    assert manifest.tiles[0].tile == "14/8389/5422"
    assert set(manifest.software) > {"python", "vsvi-assets", "osmnx", "pillow"}
    assert sum(manifest.creators.values()) == 25
    assert manifest.creators[""] == len(
        {known["image_id"] for known in ROWS[::3] if known["creator"] is None}
    )
    stored = photographs_on_disk(table, ["image_id", "file", "sha256"])
    known = {(item["image_id"], item["sha256"]) for item, *_ in stored}
    assert known == {(known["image_id"], known["sha256"]) for known in ROWS if known["file"]}


def test_a_changed_or_lost_photograph_freezes_nothing(tmp_path: Path) -> None:
    table = written_table(ROWS, tmp_path)
    folder = write_photographs(ROWS, tmp_path / "sequences")
    victim = folder / str(ROWS[30]["file"])

    def freeze_again() -> None:
        freeze(
            tmp_path / "frozen",
            city="delft",
            city_file={},
            services="sandbox",
            tiles=[],
            table=table,
            photographs=folder,
            now=NOW,
        )

    victim.write_bytes(b"pixels of another")
    with pytest.raises(ChangedPhotographError, match=victim.name):
        freeze_again()
    victim.unlink()
    with pytest.raises(MissingPhotographError, match=victim.name):
        freeze_again()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.parquet", "sequences"]


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / "mine.txt").write_text("mine")
    with pytest.raises(FolderExistsError, match="there already"):
        frozen(tmp_path)
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == ["mine.txt"]


def test_croissant_s_own_reader_finds_no_fault_and_reads_the_rows(tmp_path: Path) -> None:
    dataset = mlcroissant.Dataset(str(frozen(tmp_path) / "data" / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    rows = list(dataset.records(record_set="rows"))
    assert [row["rows/street_point_id"] for row in rows] == list(range(75))


def test_the_citation_file_has_what_its_schema_requires(tmp_path: Path) -> None:
    content = yaml.safe_load((frozen(tmp_path) / "data" / "CITATION.cff").read_text())
    assert content["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= content.keys()
    assert (content["type"], content["license"]) == ("dataset", "CC-BY-SA-4.0")
    assert content["date-released"] == NOW.date()


def test_every_creator_and_both_licences_are_named(tmp_path: Path) -> None:
    text = (frozen(tmp_path) / "data" / "ATTRIBUTION.txt").read_text()
    assert "CC BY-SA 4.0" in text
    assert "OpenStreetMap contributors, ODbL" in text
    assert all(f"user {number}: " in text for number in range(4))


def test_the_citation_names_the_very_table(tmp_path: Path) -> None:
    manifest, table = read_manifest(frozen(tmp_path) / "data" / "manifest.json")
    assert hashlib.sha256(table.read_bytes()).hexdigest() in citation(manifest)
    assert "25 photographs" in citation(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"format": "vsvi-dataset-9"}, "not the manifest"),
        (lambda content: content | {"more": 1}, "not the manifest"),
        (lambda content: content | {"table": {**content["table"], "file": "../x"}}, "not the man"),
        (lambda content: content | {"table": {**content["table"], "file": "no.parquet"}}, "beside"),
        (lambda content: content | {"table": {**content["table"], "sha256": "0"}}, "not the table"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(
    tmp_path: Path, change: object, message: str
) -> None:
    path = frozen(tmp_path) / "data" / "manifest.json"
    assert callable(change)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)
    with pytest.raises(ManifestError, match="not the manifest"):
        read_manifest(tmp_path)
    assert Manifest.model_fields["format"].default == "vsvi-dataset-1"


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    peaks = {}
    for files in (300, 3000):
        tracemalloc.start()
        with new_bag(tmp_path / f"{files}.bag", {"Source-Organization": "us"}) as bag:
            for number in range(files):
                bag.add(f"{number}.jpg", io.BytesIO(b"x" * 1000))
        peaks[files] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[3000] < 1.5 * peaks[300]
    bagit.Bag(str(tmp_path / "3000.bag")).validate()
