import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mapbox_vector_tile
import mercantile
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsvi_assets.mapillary.errors import (
    InvalidTileError,
    MalformedTileError,
    OtherServicesError,
)
from vsvi_assets.mapillary.tile_files import read_tile, tile_geojson, write_tile
from vsvi_assets.mapillary.tiles import (
    IMAGE_SCHEMA,
    Dropped,
    TileImages,
    decode_tile,
    with_computed_headings,
    with_computed_positions,
)
from vsvi_assets.mapillary.vector_tiles import MAX_FEATURES
from vsvi_assets.sandbox.vector_tiles import TileMessage
from vsvi_assets_tests.mapillary.parts import tile_of

TILE = mercantile.Tile(8415, 5384, 14)
EMPTY_OF_MAPILLARY = bytes.fromhex("1a1678010a0f6d6170696c6c6172792d656d707479288020")
"""What Mapillary's tile server answered for a tile without images (JOSM/Mapillary, 2021)."""


def image(**changes: Any) -> dict[str, Any]:
    properties = {
        "id": 1000,
        "sequence_id": "-aZ_09",
        "captured_at": 1_600_000_000_123,
        "compass_angle": 361.39,
        "is_pano": False,
    } | changes
    return {name: value for name, value in properties.items() if value is not None}


def as_vt2geojson(data: bytes, tile: mercantile.Tile = TILE) -> dict[str, Any]:
    """Return what vt2geojson makes of a tile, by mapbox_vector_tile and its formula."""
    layer = mapbox_vector_tile.decode(data, default_options={"y_coord_down": True})["image"]
    size = layer["extent"] * 2**tile.z
    features = []
    for feature in layer["features"]:
        x, y = feature["geometry"]["coordinates"]
        lon = (x + layer["extent"] * tile.x) * 360 / size - 180
        mercator = 180 - (y + layer["extent"] * tile.y) * 360 / size
        lat = 360 / math.pi * math.atan(math.exp(mercator * math.pi / 180)) - 90
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [lon, lat]},
                "properties": feature["properties"],
            }
        )
    return {"type": "FeatureCollection", "features": features}


def geojson(tile: TileImages) -> dict[str, Any]:
    return json.loads(b"".join(tile_geojson(tile, "mapillary")))


def assert_same_as_vt2geojson(data: bytes) -> None:
    ours = geojson(decode_tile(data, TILE))
    theirs = as_vt2geojson(data)
    assert ours.pop("services") == "mapillary"
    assert ours.pop("dropped") == []
    assert ours.keys() == theirs.keys()
    assert len(ours["features"]) == len(theirs["features"])
    for our, their in zip(ours["features"], theirs["features"], strict=True):
        assert our["properties"] == their["properties"]
        assert [type(our["properties"][name]) for name in their["properties"]] == [
            type(value) for value in their["properties"].values()
        ]
        assert our["geometry"]["coordinates"] == pytest.approx(
            their["geometry"]["coordinates"], rel=0, abs=1e-9
        )


IMAGES = st.builds(
    image,
    id=st.integers(1, 2**63 - 1),
    sequence_id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    captured_at=st.none() | st.integers(-(2**62), 2**62),
    compass_angle=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    is_pano=st.none() | st.booleans(),
    creator_id=st.none() | st.integers(1, 2**63 - 1),
    organization_id=st.none() | st.integers(1, 2**63 - 1),
    a_newer_property=st.none() | st.text(),
)


@given(st.lists(st.tuples(IMAGES, st.tuples(st.integers(-64, 4160), st.integers(-64, 4160)))))
@settings(max_examples=60, deadline=None)
def test_geojson_is_that_of_vt2geojson(images: list[tuple[dict[str, Any], Any]]) -> None:
    if images:
        properties, cells = zip(*images, strict=True)
        assert_same_as_vt2geojson(tile_of(list(properties), at=cells))


def test_a_written_tile_reads_as_it_was(tmp_path: Path) -> None:
    data = tile_of(
        [image(id=5), image(id=6, is_pano=True, creator_id=9), image(compass_angle=None)]
    )
    tile = decode_tile(data, TILE)
    path = tmp_path / "mly1_public_8415_5384_14"
    write_tile(tile, path, "mapillary")
    assert tile.images.schema.equals(IMAGE_SCHEMA)
    assert_equal(read_tile(path, "mapillary"), tile)
    assert list(tmp_path.iterdir()) == [path]
    laid_out_otherwise = tmp_path / "tile"
    laid_out_otherwise.write_text(json.dumps(json.loads(path.read_bytes()), indent=4))
    assert_equal(read_tile(laid_out_otherwise, "mapillary"), tile)


def assert_equal(read: TileImages, tile: TileImages) -> None:
    assert read.images.equals(tile.images)
    assert read.dropped == tile.dropped


def test_a_large_tile_is_written_and_read_in_parts(tmp_path: Path) -> None:
    count = 120_000
    table = pa.table(
        {
            "id": np.arange(1, count + 1),
            "sequence_id": pa.array([f"sequence{n // 100}" for n in range(count)]),
            "captured_at": np.full(count, 1_600_000_000_000),
            "compass_angle": np.linspace(0, 359, count),
            "is_pano": np.arange(count) % 2 == 0,
            "creator_id": pa.nulls(count, pa.int64()),
            "organization_id": pa.nulls(count, pa.int64()),
            "lon": np.linspace(4.8, 4.9, count),
            "lat": np.linspace(52.3, 52.4, count),
        }
    ).cast(IMAGE_SCHEMA)
    path = tmp_path / "tile"
    write_tile(TileImages(table), path, "mapillary")
    assert path.stat().st_size > 25_000_000
    assert read_tile(path, "mapillary").images.equals(table)
    assert len(json.loads(path.read_bytes())["features"]) == count


DENSEST_TILE = """
import resource, sys
from pathlib import Path
from vsvi_assets.mapillary.tile_files import read_tile, write_tile
from vsvi_assets.mapillary.tiles import decode_tile
from vsvi_assets_tests.mapillary.test_tiles import TILE
from vsvi_assets_tests.sandbox.large_tile import large_tile

path = Path(sys.argv[1])
if not path.exists():
    path.write_bytes(large_tile(2_500_000))
elif not path.with_suffix(".json").exists():
    write_tile(decode_tile(path.read_bytes(), TILE), path.with_suffix(".json"), "mapillary")
else:
    assert len(read_tile(path.with_suffix(".json"), "mapillary")) == 2_500_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.timeout(900)
def test_a_tile_denser_than_any_known_is_decoded_and_read_in_3_gb(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DENSEST_TILE, str(tmp_path / "tile")]
    # Each in a process of its own, whose peak is that of this work alone.
    made, decoded, read = (int(subprocess.check_output(command)) for _ in range(3))
    print(f"MB at most: {made} encoding, {decoded} decoding and writing, {read} reading")
    assert (tmp_path / "tile").stat().st_size > 160_000_000
    assert max(decoded, read) < 3000


def test_the_tile_cache_of_percept_vsvi_filter_is_read(tmp_path: Path) -> None:
    data = tile_of([image(id=5), image(id=6, a_newer_property="x")])
    path = tmp_path / "tile"
    with path.open("w") as file:
        json.dump(as_vt2geojson(data), file, indent=4)
    table = read_tile(path, "mapillary").images
    assert table["id"].to_pylist() == [5, 6]
    assert table.schema.equals(IMAGE_SCHEMA)


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize(
    ("written_for", "read_for"),
    [("sandbox", "mapillary"), ("mapillary", "sandbox"), (None, "sandbox")],
)
def test_tiles_of_other_services_are_refused(
    tmp_path: Path, written_for: str | None, read_for: str, indent: int | None
) -> None:
    path = tmp_path / "tile"
    tile = decode_tile(tile_of([image()]), TILE)
    write_tile(tile, path, written_for or "mapillary")
    content = json.loads(path.read_bytes())
    if written_for is None:  # as percept-vsvi-filter writes it
        del content["services"]
    if indent or written_for is None:
        path.write_text(json.dumps(content, indent=indent))
    with pytest.raises(OtherServicesError, match=f"{path}: comes from .* tile_cache_dir"):
        read_tile(path, read_for)
    assert_equal(read_tile(path, written_for or "mapillary"), tile)


@pytest.mark.parametrize(
    "data", [b"", EMPTY_OF_MAPILLARY, tile_of([{"id": "s"}], layer="sequence"), tile_of([])]
)
def test_a_tile_without_images_is_a_table_without_rows(data: bytes, tmp_path: Path) -> None:
    tile = decode_tile(data, TILE)
    assert tile == TileImages(IMAGE_SCHEMA.empty_table())
    assert geojson(tile)["features"] == []
    path = tmp_path / "tile"
    write_tile(tile, path, "mapillary")
    assert_equal(read_tile(path, "mapillary"), tile)


def test_the_layers_come_in_either_order() -> None:
    images, sequences = tile_of([image()]), tile_of([{"id": "s"}], layer="sequence")
    assert decode_tile(images + sequences, TILE) == decode_tile(sequences + images, TILE)


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html></html>", b'{"error": {"code": 2}}', b"\x0a\x05Sorry"]
)
def test_an_error_page_never_becomes_an_empty_tile(page: bytes, tmp_path: Path) -> None:
    with pytest.raises(MalformedTileError, match="tile 14/8415/5384"):
        decode_tile(page, TILE)
    path = tmp_path / "tile"
    path.write_bytes(page)
    with pytest.raises(InvalidTileError, match=str(path)):
        read_tile(path, "mapillary")


UNUSABLE = [
    ({"id": None}, "images without id", "feature 4"),
    ({"id": 0}, "images whose id is none", "image 0"),
    ({"id": -4}, "images whose id is none", "image -4"),
    ({"id": "../1"}, "images without id", "feature 4"),
    ({"sequence_id": None}, "images without sequence_id", "image 1000"),
    ({"sequence_id": ""}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": "../../../../tmp/escaped"}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": "/etc/passwd"}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": ".."}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": "a\0b"}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": "a\n"}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": "x" * 10_000_000}, "images whose sequence_id is none", "image 1000"),
    ({"sequence_id": 5}, "images without sequence_id", "image 1000"),
]


def as_files(images: list[dict[str, Any]], path: Path) -> Iterator[Path]:
    """Write images as this project lays tile files out, and as others do."""
    place = {"type": "Point", "coordinates": [4.9, 52.4]}
    features = [{"type": "Feature", "geometry": place, "properties": image} for image in images]
    collection = {"type": "FeatureCollection", "features": features}
    for data in (json.dumps(collection).encode(), _as_written(collection)):
        path.write_bytes(data)
        yield path


@pytest.mark.parametrize(("changes", "reason", "name"), UNUSABLE)
def test_a_single_image_that_cannot_be_used_is_left_out_and_named(
    changes: dict[str, Any], reason: str, name: str, tmp_path: Path
) -> None:
    images = [*(image(id=id) for id in (1, 2, 3)), image(**changes), image(id=4)]
    tiles = [decode_tile(tile_of(images), TILE)]
    tiles += [read_tile(path, "mapillary") for path in as_files(images, tmp_path / "tile")]
    for tile in tiles:
        assert tile.images["id"].to_pylist() == [1, 2, 3, 4]
        assert tile.dropped == (Dropped(reason, 1, (name,)),)
        assert len(str(tile.dropped[0])) < 100
        # What was left out is reported by the file too.
        write_tile(tile, tmp_path / "stored", "mapillary")
        assert_equal(read_tile(tmp_path / "stored", "mapillary"), tile)


@pytest.mark.parametrize(
    "changes", [*(changes for changes, *_ in UNUSABLE), {"captured_at": "yesterday"}]
)
@pytest.mark.parametrize(("broken", "whole"), [(1, 0), (2, 197), (3, 290)])
def test_more_than_one_in_a_hundred_make_the_tile_be_refused_in_few_words(
    changes: dict[str, Any], broken: int, whole: int, tmp_path: Path
) -> None:
    if "captured_at" in changes and broken == 1:
        return  # The image can be used.
    images = [image(id=id) for id in range(1, whole + 1)] + [image(**changes)] * broken
    messages = []
    with pytest.raises(InvalidTileError, match="tile 14/8415/5384") as refused:
        decode_tile(tile_of(images), TILE)
    messages.append(str(refused.value))
    for path in as_files(images, tmp_path / "tile"):
        with pytest.raises(InvalidTileError, match=str(path)) as refused:
            read_tile(path, "mapillary")
        messages.append(str(refused.value))
    assert max(map(len, messages)) < 400


@pytest.mark.parametrize("name", ["organization_id", "compass_angle", "quality_score"])
def test_a_property_of_an_odd_type_that_nothing_needs_costs_itself_alone(
    name: str, tmp_path: Path
) -> None:
    images = [image(id=id) | {name: "odd" if id % 2 else 7.5} for id in range(1, 51)]
    tile = decode_tile(tile_of(images), TILE)
    assert tile.images["id"].to_pylist() == list(range(1, 51))
    assert tile.images["captured_at"].null_count == 0
    assert name in tile.dropped[0].reason
    if name == "quality_score":
        assert name not in tile.images.column_names
    for path in as_files(images, tmp_path / "tile"):
        assert len(read_tile(path, "mapillary")) == 50


def test_a_property_whose_name_or_values_cannot_be_read_costs_itself_alone() -> None:
    message = TileMessage()
    message.ParseFromString(tile_of([image(zzzz="a", long="x" * 2000), image(zzzz="b")]))
    data = message.SerializeToString().replace(b"zzzz", b"z\xff\x00z")
    tile = decode_tile(data, TILE)
    assert tile.images.schema.equals(IMAGE_SCHEMA)
    assert [dropped.count for dropped in tile.dropped] == [2, 1]


@pytest.mark.parametrize(
    "line",
    [
        '{"geometry":{"coordinates":[4.9]},"properties":{"id":1,"sequence_id":"s"}}',
        '{"geometry":{"coordinates":[4.9,52.4,0]},"properties":{"id":1,"sequence_id":"s"}}',
        '{"geometry":null,"properties":{"id":1,"sequence_id":"s"}}',
        '{"properties":{"id":1,"sequence_id":"s"}}',
        '{"geometry":{"coordinates":[4.9,91]},"properties":{"id":1,"sequence_id":"s"}}',
    ],
)
def test_an_image_at_no_place_is_left_out(line: str, tmp_path: Path) -> None:
    whole = '{"geometry":{"coordinates":[4.9,52.4]},"properties":{"id":2,"sequence_id":"s"}}'
    path = tmp_path / "tile"
    lines = f"{whole},\n{line},\n{whole}"
    path.write_text(f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n')
    tile = read_tile(path, "mapillary")
    assert tile.images["id"].to_pylist() == [2, 2]
    assert tile.dropped == (Dropped("images that are no point of the tile", 1, ("image 1",)),)


@pytest.mark.parametrize("line", ['{"geometry":{"coordinates":[4.9,52.4]}}\n' * 2, ""])
def test_a_line_that_is_no_feature_is_refused(line: str, tmp_path: Path) -> None:
    whole = '{"geometry":{"coordinates":[4.9,52.4]},"properties":{"id":2,"sequence_id":"s"}}'
    path = tmp_path / "tile"
    lines = f"{whole},\n{line},\n{whole}"
    path.write_text(f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n')
    with pytest.raises(InvalidTileError, match=str(path)):
        read_tile(path, "mapillary")


@pytest.mark.parametrize("geometry", [[], [9, 2], [17, 2, 2, 2, 2], [10, 2, 2], [9, 2**31, 2]])
def test_an_image_that_is_no_point_of_the_tile_is_left_out(geometry: list[int]) -> None:
    message = TileMessage()
    message.ParseFromString(tile_of([image(id=1), image(id=2)]))
    feature = message.layers[0].features[0]
    del feature.geometry[:]
    feature.geometry.extend(geometry)
    tile = decode_tile(message.SerializeToString(), TILE)
    assert tile.images["id"].to_pylist() == [2]
    assert tile.dropped == (Dropped("images that are no point of the tile", 1, ("image 1",)),)


def test_a_file_or_tile_beyond_any_city_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tile"
    with path.open("wb") as file:
        file.truncate(1_000_000_000)
    with pytest.raises(InvalidTileError, match="1,000,000,000 bytes"):
        read_tile(path, "mapillary")
    layer = b"\x0a\x05image\x78\x02" + b"\x12\x00" * (MAX_FEATURES + 1)
    length = len(layer)
    varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128])
    tile = b"\x1a" + varint + bytes([length >> 21]) + layer
    with pytest.raises(InvalidTileError, match="more than 3,000,000 features"):
        decode_tile(tile, TILE)


SOME_TILE = tile_of([image(id=number, creator_id=7) for number in range(1, 6)])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["features", "properties", "geometry", "coordinates", "id"])
            | st.sampled_from(IMAGE_SCHEMA.names),
            inner,
        )
    ),
    max_leaves=20,
)
FILES = JSON | st.builds(
    lambda coordinates, properties: {
        "type": "FeatureCollection",
        "features": [{"geometry": {"coordinates": coordinates}, "properties": properties}],
    },
    JSON | st.tuples(st.floats(), st.floats()),
    JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(IMAGE_SCHEMA.names, JSON)),
)


@given(
    st.binary()
    | st.integers(0, len(SOME_TILE)).map(lambda length: SOME_TILE[:length])
    | st.lists(
        st.tuples(st.integers(0, len(SOME_TILE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ).map(lambda damages: _damaged(SOME_TILE, damages))
)
@settings(max_examples=300, deadline=None)
def test_malformed_tiles_raise_nothing_else(data: bytes) -> None:
    try:
        tile = decode_tile(data, TILE)
    except InvalidTileError:
        return
    geojson(tile)


def _as_written(content: Any) -> bytes:
    """Lay a collection out as `write_tile` does: a feature a line."""
    if not isinstance(content, dict) or not isinstance(content.get("features"), list):
        return json.dumps(content).encode()
    lines = ",\n".join(json.dumps(feature) for feature in content["features"])
    return b'{"type":"FeatureCollection","features":[\n%b\n]}\n' % lines.encode()


@given(
    FILES.map(lambda content: json.dumps(content).encode()) | FILES.map(_as_written) | st.binary()
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_malformed_files_raise_nothing_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tile"
    path.write_bytes(content)
    try:
        tile = read_tile(path, "mapillary")
    except (InvalidTileError, OtherServicesError):
        return
    assert tile.images.schema.equals(IMAGE_SCHEMA)


def _damaged(data: bytes, damages: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(data)
    for position, value in damages:
        damaged[position] = value
    return bytes(damaged)


def images_at(positions: dict[int, tuple[float, float]]) -> TileImages:
    columns = {name: [None] * len(positions) for name in IMAGE_SCHEMA.names} | {
        "id": list(positions),
        "sequence_id": ["sequence"] * len(positions),
        "compass_angle": [90.0] * len(positions),
        "lon": [lon for lon, _ in positions.values()],
        "lat": [lat for _, lat in positions.values()],
    }
    return TileImages(pa.table(columns, IMAGE_SCHEMA), (Dropped("images without id", 3),))


IDS = st.integers(1, 40)
PLACES = st.dictionaries(IDS, st.tuples(st.floats(4, 5), st.floats(52, 53)), min_size=1)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, PLACES, st.dictionaries(IDS, st.floats(0, 360)))
def test_images_take_the_corrected_values_that_there_are(
    tmp_path: Path,
    own: dict[int, tuple[float, float]],
    corrected: dict[int, tuple[float, float]],
    headings: dict[int, float],
) -> None:
    """And a tile's file says the same, and how many images have none."""
    tile = with_computed_positions(images_at(own), images_at(corrected))
    tile = with_computed_headings(tile, headings)
    assert tile.uncorrected == len(own.keys() - corrected.keys())
    assert tile.uncorrected_headings == len(own.keys() - headings.keys())
    write_tile(tile, tmp_path / "tile", "mapillary")
    for read in (tile, read_tile(tmp_path / "tile", "mapillary")):
        rows = read.images.to_pylist()
        assert [row["id"] for row in rows] == list(own)
        for row in rows:
            assert (row["lon"], row["lat"]) == corrected.get(row["id"], own[row["id"]])
            assert row["compass_angle"] == headings.get(row["id"], 90.0)
        assert replace(read, images=tile.images) == tile
    for row in tile.images.to_pylist():
        place = (row["original_lon"], row["original_lat"])
        assert place == (own[row["id"]] if row["id"] in corrected else (None, None))
