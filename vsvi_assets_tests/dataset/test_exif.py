import hashlib
import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base
from PIL.MpoImagePlugin import MpoImageFile

from vsvi_assets.dataset.errors import DatasetError
from vsvi_assets.dataset.exif import write_described_copy
from vsvi_assets.photographs.sidecar import ImageRecord

RECORD = ImageRecord(
    id=498763468214164,
    lon=-4.35712341,
    lat=52.01112345,
    captured_at=1_530_958_485_123,
    compass_angle=361.39,
    is_pano=False,
    creator="Jürgen <&> 名前",
    width=160,
    height=80,
    bytes=1,
    sha256="",
)

needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="exiftool is not installed"
)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (80, 160, 3), np.uint8))


def photograph(folder: Path, **options: object) -> Path:
    """Write a photograph and return its path."""
    path = folder / "photograph.jpg"
    options = {"format": "JPEG", "quality": 80} | options
    noise().save(path, **options)  # type: ignore[arg-type]
    return path


def described(folder: Path, record: ImageRecord = RECORD, **options: object) -> Path:
    copy = folder / "copies" / "copy.jpg"
    write_described_copy(photograph(folder, **options), copy, record)
    return copy


def read_by_exiftool(path: Path) -> dict[str, object]:
    command = ["exiftool", "-json", "-n", "-G1", "-api", "struct=0", str(path)]
    answer = subprocess.run(command, check=True, capture_output=True).stdout
    return json.loads(answer)[0]


@needs_exiftool
def test_exiftool_reads_where_when_and_by_whom(tmp_path: Path) -> None:
    tags = read_by_exiftool(described(tmp_path))
    assert tags["Composite:GPSLatitude"] == pytest.approx(RECORD.lat, abs=1e-8)
    assert tags["Composite:GPSLongitude"] == pytest.approx(RECORD.lon, abs=1e-8)
    assert tags["GPS:GPSImgDirection"] == pytest.approx(1.39)
    assert tags["GPS:GPSImgDirectionRef"] == "T"
    assert tags["Composite:GPSDateTime"] == "2018:07:07 10:14:45Z"
    assert tags["Composite:SubSecDateTimeOriginal"] == "2018:07:07 10:14:45.123+00:00"
    assert tags["XMP-xmp:CreateDate"] == "2018:07:07 10:14:45.123+00:00"
    assert tags["IFD0:Artist"] == tags["XMP-dc:Creator"] == RECORD.creator
    assert str(tags["IFD0:Copyright"]).startswith(f"© {RECORD.creator}, Mapillary, CC BY-SA 4.0")
    assert tags["XMP-cc:License"] == "https://creativecommons.org/licenses/by-sa/4.0/"
    assert int(str(tags["ExifIFD:ImageUniqueID"])) == tags["XMP-dc:Identifier"] == RECORD.id
    page = f"https://www.mapillary.com/app/?pKey={RECORD.id}"
    assert tags["XMP-dc:Source"] == tags["XMP-xmpRights:WebStatement"] == page
    assert not any(tag.startswith("XMP-GPano") for tag in tags)


@needs_exiftool
def test_exiftool_reads_what_a_viewer_of_panoramas_needs(tmp_path: Path) -> None:
    tags = read_by_exiftool(described(tmp_path, replace(RECORD, is_pano=True)))
    assert tags["XMP-GPano:ProjectionType"] == "equirectangular"
    assert tags["XMP-GPano:UsePanoramaViewer"] is True
    assert tags["XMP-GPano:PoseHeadingDegrees"] == pytest.approx(1.39)
    for part in ("FullPano", "CroppedAreaImage"):
        assert tags[f"XMP-GPano:{part}WidthPixels"] == 160
        assert tags[f"XMP-GPano:{part}HeightPixels"] == 80


@needs_exiftool
def test_the_heading_of_a_panorama_s_middle_follows_the_convention(tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    record = replace(RECORD, is_pano=True, compass_angle=200.0)
    write_described_copy(photograph(tmp_path), copy, record, "left")
    tags = read_by_exiftool(copy)
    assert tags["XMP-GPano:PoseHeadingDegrees"] == tags["GPS:GPSImgDirection"] == 20


@needs_exiftool
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0broken"}])
def test_exiftool_misses_but_one_tag_that_nobody_reads(
    tmp_path: Path, options: dict[str, object]
) -> None:
    copy = described(tmp_path, replace(RECORD, is_pano=True), **options)
    command = ["exiftool", "-validate", "-warning", "-error", "-a", "-json", str(copy)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]
    missing = "Missing required JPEG ExifIFD tag 0x9101 ComponentsConfiguration"
    assert (answer["Validate"], answer["Warning"]) == ("1 Warning", missing), answer


@needs_exiftool
def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    unknown = replace(
        RECORD, lon=None, lat=None, captured_at=None, compass_angle=None, is_pano=None, creator=None
    )
    tags = read_by_exiftool(described(tmp_path, unknown))
    assert tags["XMP-cc:AttributionName"] == "© Mapillary contributors"
    absent = ("GPSLatitude", "GPSImgDirection", "DateTimeOriginal", "CreateDate", "Artist")
    assert not [tag for tag in tags if tag.split(":")[-1] in absent]


@needs_exiftool
def test_the_camera_and_the_orientation_stay(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Orientation], exif[Base.Artist] = "OnePlus", 6, "somebody else"
    tags = read_by_exiftool(described(tmp_path, replace(RECORD, creator=None), exif=exif))
    assert (tags["IFD0:Make"], tags["IFD0:Orientation"]) == ("OnePlus", 6)
    assert "IFD0:Artist" not in tags


def from_first_table(data: bytes) -> bytes:
    """Return a JPEG from its first quantization table on: all that makes its pixels."""
    return data[data.index(b"\xff\xdb") :]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"exif": Image.Exif().tobytes(), "comment": b"kept"},
        {"xmp": b"<x/>"},
        {"icc_profile": b"profile" * 20_000},
    ],
    ids=["baseline", "progressive", "exif", "xmp", "large profile"],
)
def test_no_byte_of_the_picture_changes(tmp_path: Path, options: dict[str, object]) -> None:
    path = photograph(tmp_path, **options)
    before = path.read_bytes()
    copy = tmp_path / "copy.jpg"
    write_described_copy(path, copy, RECORD)
    assert from_first_table(copy.read_bytes()) == from_first_table(before)
    assert Image.open(copy).tobytes() == Image.open(path).tobytes()
    assert Image.open(copy).info.get("icc_profile") == options.get("icc_profile")
    assert copy.read_bytes().count(b"Exif\0\0") == 1
    assert copy.read_bytes().count(b"http://ns.adobe.com/xap/1.0/\0") == 1


def test_the_photograph_keeps_its_hash(tmp_path: Path) -> None:
    path = photograph(tmp_path)
    before = hashlib.sha256(path.read_bytes()).digest()
    write_described_copy(path, tmp_path / "copy.jpg", RECORD)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    (tmp_path / "link.jpg").hardlink_to(path)
    for same_file in (path, tmp_path / "link.jpg"):
        with pytest.raises(DatasetError, match="another file"):
            write_described_copy(path, same_file, RECORD)


def test_all_pictures_of_a_multi_picture_file_are_found_in_its_copy(tmp_path: Path) -> None:
    path, copy = tmp_path / "two.jpg", tmp_path / "copy.jpg"
    noise().save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (90, 60), "red")])
    write_described_copy(path, copy, RECORD)
    with Image.open(copy) as picture:
        assert isinstance(picture, MpoImageFile)
        assert picture.n_frames == 2
        picture.seek(1)
        assert picture.size == (90, 60)
        assert picture.convert("RGB").getpixel((5, 5)) == (254, 0, 0)


def test_copying_a_copy_changes_nothing(tmp_path: Path) -> None:
    copy, again = described(tmp_path), tmp_path / "again.jpg"
    write_described_copy(copy, again, RECORD)
    assert again.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10JFIF"]
)
def test_what_is_no_jpeg_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photograph.jpg"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"photograph\.jpg"):
        write_described_copy(path, tmp_path / "copies" / "copy.jpg", RECORD)
    assert not list(tmp_path.glob("copies/*"))


@settings(max_examples=60, deadline=None)
@given(
    lon=st.floats(-180, 180),
    lat=st.floats(-90, 90),
    captured_at=st.integers(1_072_915_200_000, 4_102_444_800_000),
    compass_angle=st.none() | st.floats(-1e6, 1e6),
    creator=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
)
def test_pillow_reads_back_any_position(
    tmp_path_factory: pytest.TempPathFactory,
    lon: float,
    lat: float,
    captured_at: int,
    compass_angle: float | None,
    creator: str | None,
) -> None:
    record = replace(
        RECORD,
        lon=lon,
        lat=lat,
        captured_at=captured_at,
        compass_angle=compass_angle,
        creator=creator,
    )
    copy = described(tmp_path_factory.mktemp("photograph"), record)
    position = Image.open(io.BytesIO(copy.read_bytes())).getexif().get_ifd(0x8825)
    for (degrees, minutes, seconds), side, value in (
        (position[2], position[1], lat),
        (position[4], position[3], lon),
    ):
        sign = -1 if side in "SW" else 1
        assert sign * (degrees + minutes / 60 + seconds / 3600) == pytest.approx(value, abs=1e-8)
    if compass_angle is not None:
        assert 0 <= position[17] <= 360
