"""The IO managers by themselves: what they store where, and what they give back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyarrow as pa
import pytest
import shapely
from dagster import (
    InputContext,
    OutputContext,
    PartitionKeyRange,
    PartitionsDefinition,
    StaticPartitionsDefinition,
    build_input_context,
    build_output_context,
)
from geopandas.testing import assert_geodataframe_equal
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.tables import images_table
from vsvi_assets.mapillary.errors import InvalidSequenceIdError, InvalidTileError
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA, TileImages
from vsvi_assets.orchestration.io_managers.filesystem import (
    CoverageReportFile,
    PartitionMissingError,
    SequenceFolders,
    StoredPartitions,
    StreetPointsFile,
    TileFiles,
)
from vsvi_assets.orchestration.io_managers.postgis import PostgisIOManager
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.photographs.attribution import write_attribution
from vsvi_assets.photographs.sidecar import SIDECAR_NAME, ImageRecord, Sidecar, read_sidecar
from vsvi_assets.streets.points import StreetsAndPoints
from vsvi_assets_tests.project import BOX

SEQUENCES = StaticPartitionsDefinition(["first", "-second", "third", "../escape"])


@pytest.fixture
def city(tmp_path: Path) -> City:
    box = BOX | {"east": BOX["west"] + 0.06}
    return City.parse({"bounding_box": box}, name="old-town", data_dir=tmp_path)


@pytest.fixture
def tiles(city: City) -> PartitionsDefinition:
    return StaticPartitionsDefinition(city.tile_keys)


def output(
    name: str, definition: PartitionsDefinition | None = None, keys: tuple[str, ...] = ()
) -> OutputContext:
    return build_output_context(
        asset_key=["old-town", name],
        asset_partitions_def=definition,
        partition_key=keys[0] if len(keys) == 1 else None,
        asset_partition_key_range=PartitionKeyRange(*keys) if len(keys) == 2 else None,
    )


def input_(
    name: str, definition: PartitionsDefinition | None = None, keys: tuple[str, ...] = ()
) -> InputContext:
    return build_input_context(
        asset_key=["old-town", name],
        asset_partitions_def=definition,
        partition_key=keys[0] if len(keys) == 1 else None,
        asset_partition_key_range=PartitionKeyRange(*keys) if len(keys) == 2 else None,
    )


def images(*ids: int) -> TileImages:
    rows = [
        {"id": id, "sequence_id": "first", "lon": 5.205, "lat": 52.525, "captured_at": id}
        for id in ids
    ]
    return TileImages(pa.Table.from_pylist(rows, IMAGE_SCHEMA))


def record(id: int) -> ImageRecord:
    return ImageRecord(id, 5.2, 52.5, 0, 90.0, False, "anna", 64, 48, 1000, "00" * 32)


def test_street_points_come_back_as_they_were(city: City) -> None:
    manager = StreetPointsFile({city.name: city})
    points = gpd.GeoDataFrame(
        {
            "id": [0, 1],
            "osmid": [12, 10**12],
            "street": ["Été", None],
            "highway": ["residential", None],
        },
        geometry=gpd.points_from_xy([5.2051234, 5.21], [52.525, 52.5261234]),
        crs=4326,
    )
    lines = [shapely.LineString([(5.2, 52.5), (5.3, 52.5)])] * 2
    ways = gpd.GeoDataFrame(
        {
            "osmid": [12, 10**12],
            "name": ["Été", None],
            "highway": ["residential", None],
            "metres": 7.0,
        },
        geometry=lines,
        crs=4326,
    )
    with pytest.raises(PartitionMissingError, match="materialize old-town/street_points first"):
        manager.load_input(input_("street_points"))

    manager.handle_output(output("street_points"), StreetsAndPoints(points, ways))

    assert city.street_points_path.is_file()
    stored = manager.load_input(input_("street_points"))
    assert isinstance(stored, StreetsAndPoints)
    assert_geodataframe_equal(stored.streets, ways)
    # The file is what it was before streets had classes.
    assert "highway" not in gpd.read_file(city.street_points_path)
    read = stored.points
    assert read["highway"].tolist() == ["residential", None]
    assert read.crs == 4326
    assert read["id"].tolist() == [0, 1]
    assert read["osmid"].tolist() == [12, 10**12]
    assert read["street"].iloc[0] == "Été"
    assert read.geometry.geom_equals_exact(points.geometry, 1e-7).all()


def test_one_tile_is_stored_under_the_name_that_others_know(
    city: City, tiles: PartitionsDefinition
) -> None:
    manager = TileFiles({city.name: city})
    key = city.tile_keys[0]
    context = output("tile_metadata", tiles, (key,))
    manager.handle_output(context, [(key, images(1, 2))])

    _, x, y = key.split("/")
    assert [path.name for path in city.tiles_folder.iterdir()] == [f"mly1_public_{x}_{y}_14"]
    assert context.consume_logged_metadata()["folder"].value == str(city.tiles_folder)
    loaded: Any = manager.load_input(input_("tile_metadata", tiles, (key,)))
    assert {k: tile.images["id"].to_pylist() for k, tile in loaded.items()} == {key: [1, 2]}


def test_several_partitions_are_stored_in_one_run_each_as_it_comes(
    city: City, tiles: PartitionsDefinition
) -> None:
    manager = TileFiles({city.name: city})
    first, last = ends = city.tile_keys[0], city.tile_keys[-1]
    on_disk = []

    def pairs() -> Iterator[tuple[str, TileImages]]:
        for number, key in enumerate(reversed(city.tile_keys)):
            yield key, images(number + 1)
            on_disk.append(city.tile_path(key).exists())

    manager.handle_output(output("tile_metadata", tiles, ends), pairs())

    assert len(on_disk) > 3
    assert all(on_disk)
    loaded: Any = manager.load_input(input_("tile_metadata", tiles, ends))
    assert list(loaded) == city.tile_keys
    assert loaded[first].images["id"].to_pylist() == [len(on_disk)]
    assert loaded[last].images["id"].to_pylist() == [1]


def test_partitions_are_read_when_they_are_asked_for(
    city: City, tiles: PartitionsDefinition
) -> None:
    manager = TileFiles({city.name: city})
    ends = city.tile_keys[0], city.tile_keys[-1]
    manager.handle_output(
        output("tile_metadata", tiles, ends), {key: images(1) for key in city.tile_keys}
    )
    loaded: Any = manager.load_input(input_("tile_metadata", tiles, ends))
    city.tile_path(ends[0]).write_text("changed since")
    assert len(loaded[ends[1]]) == 1
    with pytest.raises(InvalidTileError, match="mly1_public"):
        loaded[ends[0]]


def test_none_leaves_what_is_on_disk(city: City, tiles: PartitionsDefinition) -> None:
    manager = TileFiles({city.name: city})
    ends = city.tile_keys[0], city.tile_keys[1]
    city.tiles_folder.mkdir(parents=True)
    city.tile_path(ends[0]).write_text("of another's making")
    manager.handle_output(
        output("tile_metadata", tiles, ends), [(ends[0], None), (ends[1], images(1))]
    )
    assert city.tile_path(ends[0]).read_text() == "of another's making"
    assert city.tile_path(ends[1]).exists()


def test_partitions_that_did_not_come_are_missed(city: City, tiles: PartitionsDefinition) -> None:
    manager = TileFiles({city.name: city})
    ends = city.tile_keys[0], city.tile_keys[2]
    with pytest.raises(PartitionMissingError, match=f"2 of 3 partitions.*{city.tile_keys[1]}"):
        manager.handle_output(output("tile_metadata", tiles, ends), [(ends[0], images(1))])
    assert city.tile_path(ends[0]).exists()
    with pytest.raises(PartitionMissingError, match=f"2 of 3 are not on disk.*{city.tile_keys[1]}"):
        manager.load_input(input_("tile_metadata", tiles, ends))


def test_an_output_that_breaks_off_keeps_what_was_stored_and_is_closed(
    city: City, tiles: PartitionsDefinition
) -> None:
    manager = TileFiles({city.name: city})
    ends = city.tile_keys[0], city.tile_keys[2]
    closed = []

    def breaking() -> Iterator[tuple[str, TileImages]]:
        yield ends[0], images(1)
        raise ConnectionError("no more tiles")

    def unwritable() -> Iterator[tuple[str, object]]:
        try:
            yield ends[1], "no table"
        finally:
            closed.append(True)

    with pytest.raises(ConnectionError, match="no more tiles"):
        manager.handle_output(output("tile_metadata", tiles, ends), breaking())
    # Who holds the error, as Dagster does, holds the frames in which it was raised.
    with pytest.raises(AttributeError) as held:
        manager.handle_output(output("tile_metadata", tiles, ends), unwritable())
    assert closed, held
    assert [path.name for path in city.tiles_folder.iterdir()] == [city.tile_path(ends[0]).name]


def test_what_killed_runs_left_half_is_removed(city: City, tiles: PartitionsDefinition) -> None:
    key = city.tile_keys[0]
    folders = [city.folder, city.tiles_folder, city.sequences_folder]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".half.0123456789ab.part").touch()
    CoverageReportFile({city.name: city}).handle_output(output("coverage_report"), "<html>")
    TileFiles({city.name: city}).handle_output(output("tile_metadata", tiles, (key,)), {key: None})
    write_attribution(city.sequences_folder)
    assert [path for folder in folders for path in folder.glob(".*.part")] == []


def test_a_sidecar_keeps_what_it_knew_of_other_images(city: City) -> None:
    manager = SequenceFolders({city.name: city})
    for sidecar in (
        Sidecar({1: record(1)}, failed={3: "timeout"}),
        Sidecar({3: record(3)}, failed={4: "reset"}),
    ):
        context = output("image_files", SEQUENCES, ("-second",))
        manager.handle_output(context, {"-second": sidecar})

    folder = city.sequences_folder / "-second"
    assert read_sidecar(folder) == Sidecar({1: record(1), 3: record(3)}, failed={4: "reset"})
    loaded = manager.load_input(input_("image_files", SEQUENCES, ("-second",)))
    assert isinstance(loaded, StoredPartitions)
    assert dict(loaded) == {"-second": read_sidecar(folder)}


def test_a_sidecar_is_rewritten_only_where_something_changed(city: City) -> None:
    manager = SequenceFolders({city.name: city})
    ends = ("first", "third")
    known = {
        "first": Sidecar({1: record(1)}),
        "-second": Sidecar(),
        "third": Sidecar({3: record(3)}),
    }
    manager.handle_output(output("image_files", SEQUENCES, ends), known)
    paths = [city.sequences_folder / key / SIDECAR_NAME for key in ("first", "third")]
    before = [path.stat().st_ino for path in paths]
    known["third"] = Sidecar({3: replace(record(3), bytes=2000)})
    manager.handle_output(output("image_files", SEQUENCES, ends), known)
    after = [path.stat().st_ino for path in paths]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_broken_sidecar_gives_way_to_a_new_one(city: City) -> None:
    manager = SequenceFolders({city.name: city})
    folder = city.sequences_folder / "first"
    folder.mkdir(parents=True)
    (folder / SIDECAR_NAME).write_text('{"features": [')
    manager.handle_output(
        output("image_files", SEQUENCES, ("first",)), {"first": Sidecar({1: record(1)})}
    )
    assert read_sidecar(folder) == Sidecar({1: record(1)})


def test_no_sequence_leads_out_of_its_folder(city: City, tmp_path: Path) -> None:
    manager = SequenceFolders({city.name: city})
    with pytest.raises(InvalidSequenceIdError):
        manager.handle_output(
            output("image_files", SEQUENCES, ("../escape",)), {"../escape": Sidecar()}
        )
    assert list(tmp_path.rglob("escape*")) == []


def test_tables_are_replaced_and_their_schema_given_on(
    city: City, postgis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VSVI_POSTGRES_URL", postgis_url)
    manager = PostgisIOManager(PostgisResource(data_dir=str(tmp_path)))
    for ids in ((1, 2, 3), (4, 5)):
        context = output("postgis_tables")
        manager.handle_output(context, [images_table([images(*ids).images], city)])
        logged = context.consume_logged_metadata()
        assert logged["rows in old-town.images"].value == len(ids)

    schema = manager.load_input(input_("postgis_tables"))
    assert schema.name == "old-town"
    read = schema.postgis.read(
        sql.SQL("SELECT id FROM {}.images ORDER BY id").format(sql.Identifier(schema.name)),
        pa.schema({"id": pa.int64()}),
    )
    assert read["id"].to_pylist() == [4, 5]
