from pathlib import Path

from vsvi_assets.photographs.sidecar import SIDECAR_NAME, Sidecar, image_path, write_sidecar
from vsvi_assets.photographs.verification import verify_photographs
from vsvi_assets_tests.photographs.test_sidecar import record

LITTER = [".DS_Store", "._1.jpg", "Thumbs.db", "desktop.ini", ".nfs00000a1", "@eaDir/1.jpg/x"]


def sequence(seqdir: Path, name: str, *image_ids: int) -> Path:
    """Make a sequence's folder with photographs and their sidecar."""
    folder = seqdir / name
    folder.mkdir()
    records = {id_: record(id_, b"image %d" % id_, folder) for id_ in image_ids}
    write_sidecar(folder, Sidecar(records))
    return folder


def test_differences_from_what_was_downloaded_are_found(tmp_path: Path) -> None:
    folder = sequence(tmp_path, "first", 1, 2, 3, 4)
    assert verify_photographs(tmp_path).differences == []
    image_path(folder, 2).unlink()
    image_path(folder, 3).write_bytes(b"short")
    image_path(folder, 4).write_bytes(b"imagE 4")
    found = verify_photographs(tmp_path)
    assert found.differences == [
        "first/2.jpg: missing",
        "first/3.jpg: 5 bytes instead of 7",
        "first/4.jpg: other bytes than were downloaded",
    ]
    assert found.photographs == 1


def test_files_of_other_programs_are_no_differences(tmp_path: Path) -> None:
    folder = sequence(tmp_path, "first", 1)
    for place in (tmp_path, folder):
        for name in LITTER:
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for name in ("1.npz", "2.npz", "1.out", "1_x3.jpg", "7.jpg", ".8.jpg.0a.part"):
        (folder / name).touch()
    found = verify_photographs(tmp_path)
    assert found.differences == []
    assert found.unlisted == ["first/.8.jpg.0a.part", "first/7.jpg"]
    assert found.others == {".npz": 2, ".out": 1, ".jpg": 1}


def test_one_broken_folder_takes_no_other_down(tmp_path: Path) -> None:
    broken, linked = sequence(tmp_path, "a", 1), sequence(tmp_path, "b", 2)
    sequence(tmp_path, "c", 3)
    (broken / SIDECAR_NAME).write_text("{")
    image_path(linked, 2).unlink()
    image_path(linked, 2).symlink_to("/not/mounted/2.jpg")
    found = verify_photographs(tmp_path)
    assert found.photographs == 1
    assert len(found.differences) == 2
    assert "not a list of images" in found.differences[0]
    assert found.differences[1] == "b/2.jpg: missing"
