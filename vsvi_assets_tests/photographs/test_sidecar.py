import json
import os
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsvi_assets.mapillary.errors import InvalidSequenceIdError
from vsvi_assets.photographs.errors import InvalidSidecarError
from vsvi_assets.photographs.quality import Quality
from vsvi_assets.photographs.sidecar import (
    SIDECAR_NAME,
    ImageRecord,
    Sidecar,
    image_path,
    known_images,
    read_sidecar,
    sequence_folder,
    sha256_of,
    write_sidecar,
)
from vsvi_assets.photographs.states import Absence, Refusal, State

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
IDS = st.integers(1, 2**63 - 1)
MOMENTS = st.datetimes(datetime(2004, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)
ABSENCES = st.builds(
    lambda first, hours, answers: Absence(first, first + timedelta(hours=hours), answers),
    MOMENTS,
    st.integers(0, 1000),
    st.integers(1, 100),
)
COORDINATES = st.floats(-180, 180)
RECORDS = st.builds(
    ImageRecord,
    id=IDS,
    lon=COORDINATES,
    lat=COORDINATES,
    captured_at=st.none() | st.integers(0, 4_102_444_800_000),
    compass_angle=st.none() | st.floats(0, 400),
    is_pano=st.none() | st.booleans(),
    creator=st.none() | TEXTS,
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
    bytes=st.integers(1, 2**40),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    image_size=st.none() | st.sampled_from(["original", "2048"]),
    stored_at=st.none() | MOMENTS,
    quality=st.none() | st.builds(Quality, *4 * [st.floats(0, 1e5)], night=st.booleans()),
)
SIDECARS = st.builds(
    Sidecar,
    images=st.lists(RECORDS).map(lambda records: {record.id: record for record in records}),
    absent=st.dictionaries(IDS, ABSENCES),
    refused=st.dictionaries(IDS, st.builds(Refusal, reason=TEXTS, asked=MOMENTS)),
    failed=st.dictionaries(IDS, TEXTS),
    services=st.none() | st.sampled_from(["mapillary", "sandbox"]),
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


def test_newer_knowledge_takes_the_place_of_older(tmp_path: Path) -> None:
    one, two = record(1, b"1", tmp_path), record(2, b"2", tmp_path)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    before = Sidecar({1: one}, absent={5: Absence(now, now)}, failed={2: "busy", 3: "busy"})
    newer = Sidecar({2: two}, absent={3: Absence(now, now)}, failed={5: "half"})
    assert before.updated(newer) == Sidecar(
        {1: one, 2: two}, absent={3: Absence(now, now)}, failed={5: "half"}
    )


def test_an_old_sidecar_is_read_and_its_unavailable_images_are_not_believed(
    tmp_path: Path,
) -> None:
    (tmp_path / SIDECAR_NAME).write_text(
        '{"type":"FeatureCollection","features":[{"type":"Feature","geometry":null,"properties":'
        '{"id":7,"captured_at":null,"compass_angle":null,"is_pano":null,"creator":null,'
        '"width":4,"height":3,"bytes":5,"sha256":"00","url":""}}],'
        '"unavailable":[8],"failed":{"9":"busy"}}'
    )
    written = datetime(2026, 1, 1, tzinfo=UTC)
    os.utime(tmp_path / SIDECAR_NAME, (written.timestamp(), written.timestamp()))
    sidecar = read_sidecar(tmp_path)
    assert sidecar.images.keys() == {7}
    assert sidecar.failed == {9: "busy"}
    assert sidecar.services is None
    assert sidecar.absent == {8: Absence(written, written)}
    assert sidecar.absent[8].state == State.NOT_ANSWERED
    assert sidecar.absent[8].is_due(written + timedelta(hours=20))


def test_a_broken_sidecar_still_says_which_services_it_is_of(tmp_path: Path) -> None:
    write_sidecar(tmp_path, Sidecar({1: record(1, b"1", tmp_path)}, services="sandbox"))
    path = tmp_path / SIDECAR_NAME
    path.write_bytes(path.read_bytes()[:100])
    assert known_images(tmp_path) == Sidecar(services="sandbox")


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


def test_what_is_measured_is_written_and_nothing_where_it_is_not(tmp_path: Path) -> None:
    quality = Quality(12.5, 0.5, 0.25, 0.0, night=True)
    measured = replace(record(1, b"1", tmp_path), quality=quality)
    write_sidecar(tmp_path, Sidecar({1: measured, 2: record(2, b"2", tmp_path)}))
    first, second = json.loads((tmp_path / SIDECAR_NAME).read_text())["features"]
    assert first["properties"] | quality._asdict() == first["properties"]
    assert not second["properties"].keys() & quality._asdict()
    assert read_sidecar(tmp_path).images[1] == measured
