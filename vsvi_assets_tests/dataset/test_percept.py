"""What percept-vsvi-filter relies on, as its scripts read it."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from vsvi_assets.dataset.percept import PerceptInputs, write_percept_inputs
from vsvi_assets_tests.dataset.parts import row, write_photographs, written_table

ROWS = [row(number) for number in range(75)]


def inputs(folder: Path, rows: list[dict[str, object]] = ROWS, city: str = "demo") -> PerceptInputs:
    return write_percept_inputs(
        written_table(rows, folder),
        write_photographs(rows, folder / "sequences"),
        city,
        folder / "percept",
    )


def tiles_db(folder: Path) -> dict[int, dict[str, Any]]:
    """Read tiles as make_tiles_db.py and torch_process_segm.py do."""
    db = {}
    for path in folder.glob("mly1_public*"):
        for feature in json.loads(path.read_text())["features"]:
            lon, lat = feature["geometry"]["coordinates"]
            db[feature["properties"]["id"]] = {
                "seqid": feature["properties"]["sequence_id"],
                "angle": feature["properties"]["compass_angle"],
                "lat": lat,
                "lon": lon,
                "is_pano": feature["properties"]["is_pano"],
            }
    return db


def changed(number: int, **values: object) -> list[dict[str, object]]:
    """Return the rows, with other values for the image of row `number`."""
    image_id = ROWS[number]["image_id"]
    return [known | values if known["image_id"] == image_id else known for known in ROWS]


def test_the_tiles_have_the_names_fields_and_types_that_the_scripts_read(tmp_path: Path) -> None:
    inputs(tmp_path)
    db = tiles_db(tmp_path / "percept" / "tiles")
    known = {known["image_id"]: known for known in ROWS if known["image_id"]}
    assert db.keys() == known.keys()
    for image_id, entry in db.items():
        assert [type(value) for value in entry.values()] == [str, float, float, float, bool]
        assert 0 <= entry["angle"] + 0.0 < 360
        assert entry["seqid"] == known[image_id]["sequence_id"]
        assert (entry["lon"], entry["is_pano"]) in {
            (other["image_lon"], other["is_pano"]) for other in ROWS if other["image_id"]
        }


@pytest.mark.parametrize("missing", ["compass_angle", "image_lon", "image_lat"])
def test_an_image_without_angle_or_place_is_segmented_but_ends_no_script(
    tmp_path: Path, missing: str
) -> None:
    result = inputs(tmp_path, changed(30, **{missing: None}))
    assert result.without_place == 1
    assert ROWS[30]["image_id"] not in tiles_db(tmp_path / "percept" / "tiles")
    assert str(ROWS[30]["image_id"]) in (tmp_path / "percept" / "photographs.txt").read_text()


def test_angles_of_360_and_more_become_the_same_direction_below(tmp_path: Path) -> None:
    inputs(tmp_path, changed(30, compass_angle=361.39))
    entry = tiles_db(tmp_path / "percept" / "tiles")[int(str(ROWS[30]["image_id"]))]
    assert entry["angle"] == pytest.approx(1.39)


def test_an_image_of_unknown_kind_counts_as_flat(tmp_path: Path) -> None:
    inputs(tmp_path, changed(30, is_pano=None))
    entry = tiles_db(tmp_path / "percept" / "tiles")[int(str(ROWS[30]["image_id"]))]
    assert entry["is_pano"] is False


def test_the_lists_name_each_selected_photograph_once_and_no_orphaned_one(tmp_path: Path) -> None:
    orphaned = tmp_path / "sequences" / "gone" / "1.jpg"
    orphaned.parent.mkdir(parents=True)
    orphaned.write_bytes(b"orphaned")
    result = inputs(tmp_path)
    lines = (tmp_path / "percept" / "photographs.txt").read_text().splitlines()
    assert result.photographs == len(lines) == len(set(lines)) == 25
    expected = {tmp_path / "sequences" / str(known["file"]) for known in ROWS if known["file"]}
    assert {Path(line).resolve() for line in lines} == expected
    exclude = re.compile(".*(npz|mask|out|_x[0-9]+).*")  # as torch_segm_images.py has it
    for line in lines:
        path = Path(line)
        assert path.is_absolute()
        assert path.suffix == ".jpg"
        assert not exclude.match(path.name)
        assert int(path.stem)
    segmentations = (tmp_path / "percept" / "segmentations.txt").read_text().splitlines()
    assert segmentations == [line.removesuffix("jpg") + "npz" for line in lines]


def test_the_paths_in_its_sql_lead_to_the_photographs(tmp_path: Path) -> None:
    result = inputs(tmp_path)
    command = shlex.split(result.commands[-1])
    prefix, city = (command[command.index(option) + 1] for option in ("-D", "-C"))
    for image_id, entry in tiles_db(tmp_path / "percept" / "tiles").items():
        assert Path(f"{prefix}/{city}/{entry['seqid']}/{image_id}.jpg").is_file()


def test_the_commands_run_in_order_on_files_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "a folder's"
    folder.mkdir()
    commands = [shlex.split(line) for line in inputs(folder).commands]
    assert [command[0] for command in commands] == [
        "./make_tiles_db.py",
        "./torch_segm_images.py",
        "./torch_process_segm.py",
    ]
    assert Path(commands[0][1]).is_dir()
    assert Path(commands[1][-1]).is_file()
    assert commands[2][commands[2].index("-T") + 1] == commands[0][-1]


def test_what_was_made_of_replaced_photographs_is_reported_and_made_again(tmp_path: Path) -> None:
    inputs(tmp_path)
    replaced, kept = (tmp_path / "sequences" / str(ROWS[number]["file"]) for number in (0, 3))
    derived = []
    for photograph in (replaced, kept):
        for ending in (".npz", ".out", "_x120.jpg", "_mask.npz"):
            path = photograph.with_name(photograph.stem + ending)
            path.write_bytes(b"made by the suite")
            derived.append(path)
    foreign = replaced.with_name("notes.npz")
    foreign.write_bytes(b"mine")
    os.utime(foreign, (1, 1))
    for path in derived[:4]:
        os.utime(path, (1, 1))
    result = write_percept_inputs(
        tmp_path / "dataset.parquet", tmp_path / "sequences", "demo", tmp_path / "percept"
    )
    assert sorted(result.stale) == sorted(derived[:4])
    again, all_of_them = (shlex.split(line) for line in result.commands[1:3])
    assert (again[2], all_of_them[2]) == ("-O", "-F")
    listed = Path(again[-1]).read_text().splitlines()
    assert [Path(line).resolve() for line in listed] == [replaced]
    assert result.commands[-1].endswith("--overwrite")
