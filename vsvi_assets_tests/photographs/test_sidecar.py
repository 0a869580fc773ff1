import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsvi_assets.mapillary.errors import InvalidSequenceIdError, InvalidSidecarError
from vsvi_assets.photographs.sidecar import (
    SIDECAR_NAME,
    ImageRecord,
    Sidecar,
    differences,
    image_path,
    read_sidecar,
    sequence_folder,
    sha256_of,
    write_sidecar,
)

IDS = st.integers(1, 2**63 - 1)
COORDINATES = st.floats(-180, 180)
RECORDS = st.builds(
    ImageRecord,
    id=IDS,
    lon=COORDINATES,
    lat=COORDINATES,
    captured_at=st.none() | st.integers(0, 4_102_444_800_000),
    compass_angle=st.none() | st.floats(0, 400),
    is_pano=st.none() | st.booleans(),
    creator=st.none() | st.text(),
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
    bytes=st.integers(1, 2**40),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)
SIDECARS = st.builds(
    Sidecar,
    images=st.lists(RECORDS).map(lambda records: {record.id: record for record in records}),
    unavailable=st.sets(IDS),
    failed=st.dictionaries(IDS, st.text()),
)


@given(SIDECARS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_written_sidecar_reads_as_it_was(tmp_path: Path, sidecar: Sidecar) -> None:
    write_sidecar(tmp_path, sidecar)
    assert read_sidecar(tmp_path) == sidecar


def record(image_id: int, content: bytes, folder: Path) -> ImageRecord:
    path = image_path(folder, image_id)
    path.write_bytes(content)
    return ImageRecord(
        id=image_id,
        lon=4.9,
        lat=52.4,
        captured_at=1_600_000_000_123,
        compass_angle=12.5,
        is_pano=False,
        creator="walker",
        width=4,
        height=3,
        bytes=len(content),
        sha256=sha256_of(path),
    )


def test_it_is_geojson_with_dates_and_links_for_people(tmp_path: Path) -> None:
    write_sidecar(tmp_path, Sidecar({7: record(7, b"image", tmp_path)}))
    content = json.loads((tmp_path / SIDECAR_NAME).read_text())
    (feature,) = content["features"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [4.9, 52.4]}
    assert feature["properties"]["captured_at"] == "2020-09-13T12:26:40.123Z"
    assert feature["properties"]["url"] == "https://www.mapillary.com/app/?pKey=7"


def test_differences_from_what_was_downloaded_are_found(tmp_path: Path) -> None:
    records = {id: record(id, b"image %d" % id, tmp_path) for id in (1, 2, 3, 4)}
    write_sidecar(tmp_path, Sidecar(records))
    assert differences(tmp_path) == {}
    image_path(tmp_path, 2).unlink()
    image_path(tmp_path, 3).write_bytes(b"shorter")
    image_path(tmp_path, 4).write_bytes(b"imagE 4")
    wrong = differences(tmp_path)
    assert wrong.keys() == {2, 3, 4}
    assert wrong[2] == "missing"


def test_newer_knowledge_takes_the_place_of_older(tmp_path: Path) -> None:
    one, two = record(1, b"1", tmp_path), record(2, b"2", tmp_path)
    before = Sidecar({1: one}, unavailable={5}, failed={2: "busy", 3: "busy"})
    after = before.updated(Sidecar({2: two}, unavailable={3}, failed={5: "half"}))
    assert after == Sidecar({1: one, 2: two}, unavailable={3}, failed={5: "half"})


def test_no_sidecar_is_empty_and_a_broken_one_an_error(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path) == Sidecar()
    for text in ("", "[]", "<html>", '{"features": [{}]}', '{"type": "FeatureCollection"}'):
        (tmp_path / SIDECAR_NAME).write_text(text)
        with pytest.raises(InvalidSidecarError, match=SIDECAR_NAME):
            read_sidecar(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def _altered(sidecar: Sidecar, path: list[int], value: object) -> bytes:
    """Return a written sidecar in which one value, found along `path`, is another."""
    with tempfile.TemporaryDirectory() as folder:
        write_sidecar(Path(folder), sidecar)
        content = json.loads((Path(folder) / SIDECAR_NAME).read_text())
    inner: Any = content
    for step in path:
        if not isinstance(inner, dict | list) or not inner:
            break
        keys = [*inner] if isinstance(inner, dict) else range(len(inner))
        outer, key = inner, keys[step % len(keys)]
        inner = outer[key]
    outer[key] = value
    return json.dumps(content).encode()


@given(
    st.binary()
    | JSON.map(lambda content: json.dumps(content).encode())
    | st.builds(_altered, SIDECARS, st.lists(st.integers(0, 20), min_size=1, max_size=5), JSON)
)
@settings(max_examples=100, deadline=None)
def test_malformed_sidecars_raise_nothing_else(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SIDECAR_NAME).write_bytes(content)
        try:
            sidecar = read_sidecar(Path(folder))
        except InvalidSidecarError:
            return
        write_sidecar(Path(folder), sidecar)
        assert read_sidecar(Path(folder)) == sidecar


@given(st.text())
def test_no_sequence_id_leads_out_of_the_folder(sequence_id: str) -> None:
    seqdir = Path("/data/sequences")
    try:
        folder = sequence_folder(seqdir, sequence_id)
    except InvalidSequenceIdError:
        return
    assert folder.parent == seqdir
    assert folder.name == sequence_id
