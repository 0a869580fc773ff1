"""The table `photographs` beside the sidecars, and the inventory that compares it with the disk."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import (
    PhotographRecords,
    apply_quality_rules,
    creators_of_selected,
    latest_stored,
    rebuild_photographs,
    sequences_in_state,
    stored_since,
    take_inventory,
)
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.tables import SELECTION_SCHEMA, selected_images_table
from vsvi_assets.photographs.quality import Quality
from vsvi_assets.photographs.sidecar import (
    SIDECAR_NAME,
    ImageRecord,
    Sidecar,
    image_path,
    write_sidecar,
)
from vsvi_assets.photographs.states import Absence, Refusal, State
from vsvi_assets.views.status import city_status, status_lines
from vsvi_assets_tests.database.parts import ask, load

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
SHARP = Quality(sharpness=300.5, brightness=0.5, contrast=0.2, over_exposure=0.01, night=False)
UNMEASURED = (None,) * len(SHARP)


@pytest.fixture
def city(make_city: Callable[..., City], database: Postgis) -> City:
    """A city of which images 1 to 9 of the sequences "a" (odd) and "B" (even) are selected."""
    city = make_city()
    select(database, city, range(1, 10))
    return city


def select(database: Postgis, city: City, ids: range) -> None:
    rows = [
        {"image_id": id_, "sequence_id": "a" if id_ % 2 else "B", "street_point_id": point}
        for id_ in ids
        for point in range(2)  # an image may be selected for several points
    ]
    selection = pa.Table.from_pylist(rows, SELECTION_SCHEMA)
    replace_tables(database, city.name, [selected_images_table(selection, city)])


def stored(city: City, sequence_id: str, image_id: int, *, hours: float = 0.0) -> ImageRecord:
    """Put a file into the store; return its record."""
    folder = city.sequences_folder / sequence_id
    folder.mkdir(parents=True, exist_ok=True)
    content = b"image %d" % image_id
    image_path(folder, image_id).write_bytes(content)
    moment = NEW_YEAR + timedelta(hours=hours)
    return ImageRecord(
        image_id, None, None, None, None, None, f"creator of {image_id}", 4, 3, len(content),
        "0" * 64, "original", moment,
    )  # fmt: skip


def record(database: Postgis, city: City, sequence_id: str, sidecar: Sidecar) -> None:
    """Write a sequence's sidecar, and what it says into the table."""
    folder = city.sequences_folder / sequence_id
    folder.mkdir(parents=True, exist_ok=True)
    write_sidecar(folder, sidecar)
    with PhotographRecords(database, city) as records:
        records.add(sequence_id, sidecar)


def all_states(city: City) -> dict[str, Sidecar]:
    """Return sidecars with every state, and lay down the files of those that are stored."""
    once, twice = Absence(NEW_YEAR, NEW_YEAR), Absence(NEW_YEAR, NEW_YEAR + timedelta(hours=20), 2)
    return {
        "a": Sidecar(
            {id_: stored(city, "a", id_, hours=id_) for id_ in (1, 3)},
            absent={5: once, 7: twice},
            failed={3: "cannot be fetched anew", 9: "busy"},
            services="mapillary",
        ),
        "B": Sidecar(
            {2: replace(stored(city, "B", 2, hours=2), quality=SHARP)},
            absent={8: once},
            refused={4: Refusal("it is a PNG", NEW_YEAR)},
            failed={8: "busy"},
        ),
    }


def test_every_state_is_in_the_table_and_comes_back_from_the_sidecars(
    database: Postgis, city: City
) -> None:
    sidecars = all_states(city)
    for sequence_id, sidecar in sidecars.items():
        record(database, city, sequence_id, sidecar)
    query = "SELECT * FROM {table} ORDER BY image_id"
    rows = ask(database, query, "photographs")
    assert {row[1]: row[2] for row in rows} == {
        1: "stored", 2: "stored", 3: "stored", 4: "refused", 5: "not_answered",
        7: "unavailable", 8: "failed", 9: "failed",
    }  # fmt: skip
    assert rows[0] == (
        "a", 1, "stored", 7, "0" * 64, 4, 3, "original", "creator of 1", None, None, None, None,
        NEW_YEAR + timedelta(hours=1), *UNMEASURED,
    )  # fmt: skip
    assert rows[1][14:] == SHARP
    assert rows[5][9:] == (None, NEW_YEAR, NEW_YEAR + timedelta(hours=20), 2, None, *UNMEASURED)
    assert rows[6][9:] == ("busy", NEW_YEAR, NEW_YEAR, 1, None, *UNMEASURED)

    rebuild_photographs(database, city)
    assert ask(database, query, "photographs") == rows
    with database.transaction() as cursor:
        cursor.execute("DROP TABLE town.photographs")
    take_inventory(city, database)
    assert ask(database, query, "photographs") == rows


def test_the_inventory_says_what_became_of_every_image(database: Postgis, city: City) -> None:
    for sequence_id, sidecar in all_states(city).items():
        record(database, city, sequence_id, sidecar)
    stored(city, "B", 6)  # without a record
    found = take_inventory(city, database, now=NEW_YEAR + timedelta(hours=19))
    assert (found.selected, found.on_disk, found.bytes) == (9, 3, 21)
    assert found.missing == {"B": [6, 8], "a": [9]}
    assert found.unread == [6]
    assert found.failed == {8: "busy", 9: "busy"}
    assert found.not_answered == {5: Absence(NEW_YEAR, NEW_YEAR)}
    assert found.due == {}
    assert found.unavailable == [7]
    assert found.refused == {4: "it is a PNG"}
    assert found.pending_sequences == {"a", "B"}
    assert found.pending_images == 3

    found = take_inventory(city, database, ["a"], now=NEW_YEAR + timedelta(hours=20))
    assert found.selected == 5
    assert found.due == {"a": [5]}
    assert found.pending_images == 2


def test_files_count_and_not_their_records(database: Postgis, city: City) -> None:
    for sequence_id, sidecar in all_states(city).items():
        record(database, city, sequence_id, sidecar)
    image_path(city.sequences_folder / "a", 1).unlink()
    image_path(city.sequences_folder / "a", 3).write_bytes(b"longer than it was")
    image_path(city.sequences_folder / "B", 2).unlink()
    image_path(city.sequences_folder / "B", 2).symlink_to("/not/mounted/2.jpg")
    found = take_inventory(city, database)
    assert found.on_disk == 0
    assert found.missing == {"B": [2, 6, 8], "a": [1, 3, 9]}
    assert found.unread == [3]


def _replaced(old: str, new: str) -> Callable[[Path], object]:
    def damage(sidecar: Path) -> None:
        text = sidecar.read_text()
        assert old in text
        sidecar.write_text(text.replace(old, new, 1))

    return damage


def _folder(sidecar: Path) -> None:
    sidecar.unlink()
    sidecar.mkdir()


def _link_to_itself(sidecar: Path) -> None:
    sidecar.unlink()
    sidecar.symlink_to(sidecar)


@pytest.mark.parametrize(
    "damage",
    [
        lambda sidecar: sidecar.write_text("{"),
        lambda sidecar: sidecar.write_bytes(b"\xff\xfe\0"),
        _replaced('"id":1', f'"id":{2**63}'),
        _replaced('"width":4', f'"width":{2**31}'),
        _replaced('"bytes":7', '"bytes":-7'),
        _replaced('"creator":', '"creator":"\\u0000","of":'),
        _replaced('"9":"', '"9":"\\u0000'),
        _replaced('"answers":1', f'"answers":{2**31}'),
        _folder,
        _link_to_itself,
    ],
)
def test_a_broken_sidecar_costs_only_its_own_records(
    database: Postgis, city: City, damage: Callable[[Path], object]
) -> None:
    for sequence_id, sidecar in all_states(city).items():
        record(database, city, sequence_id, sidecar)
    damage(city.sequences_folder / "a" / SIDECAR_NAME)
    rebuild_photographs(database, city)
    found = take_inventory(city, database)
    assert (found.on_disk, found.unread) == (1, [1, 3])


def test_folders_of_other_programs_are_no_orphaned_sequences(database: Postgis, city: City) -> None:
    record(database, city, "a", Sidecar())
    record(database, city, "lost", Sidecar())
    for name in ("@eaDir", ".Trash-1000", "__MACOSX", "#recycle"):
        (city.sequences_folder / name).mkdir()
    (city.sequences_folder / "notes").touch()
    assert take_inventory(city, database).orphaned == ["lost"]


def test_the_table_is_kept_when_the_others_are_replaced(database: Postgis, city: City) -> None:
    record(database, city, "a", Sidecar({1: stored(city, "a", 1)}))
    load(database, city)
    select(database, city, range(1, 4))
    found = take_inventory(city, database)
    assert (found.selected, found.on_disk) == (3, 1)


def test_what_was_stored_since_a_run_began_is_counted(database: Postgis, city: City) -> None:
    for sequence_id, sidecar in all_states(city).items():
        record(database, city, sequence_id, sidecar)
    assert stored_since(database, city, NEW_YEAR + timedelta(hours=2)) == (2, 14)
    assert stored_since(database, city, NEW_YEAR + timedelta(hours=4)) == (0, 0)
    assert latest_stored(database, city, 2) == [3, 2]
    assert sequences_in_state(database, city, State.REFUSED, State.UNAVAILABLE) == {"a", "B"}
    assert creators_of_selected(database, city) == {id_: f"creator of {id_}" for id_ in (1, 2, 3)}


def test_records_of_other_services_are_not_taken_over(database: Postgis, city: City) -> None:
    sidecar = Sidecar({1: stored(city, "a", 1)}, services="sandbox")
    write_sidecar(city.sequences_folder / "a", sidecar)
    rebuild_photographs(database, city)
    assert ask(database, "SELECT * FROM {table}", "photographs") == []


def test_records_are_stored_after_an_error_too(database: Postgis, city: City) -> None:
    sidecar = Sidecar(failed={1: 'a reason, with "quotes"', 3: "é"})

    def interrupted() -> None:
        with PhotographRecords(database, city) as records:
            records.add("a", sidecar)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    rows = ask(database, "SELECT image_id, reason FROM {table} ORDER BY 1", "photographs")
    assert rows == list(sidecar.failed.items())


def test_a_city_without_a_folder_has_nothing_on_disk(database: Postgis, city: City) -> None:
    found = take_inventory(city, database)
    assert (found.selected, found.on_disk, found.orphaned) == (9, 0, [])
    assert found.missing == {"B": [2, 4, 6, 8], "a": [1, 3, 5, 7, 9]}
    assert not Path(city.sequences_folder).exists()


def test_images_above_pillows_limit_are_counted(database: Postgis, city: City) -> None:
    load(database, city)
    panorama = replace(stored(city, "a", 1), width=20_000, height=10_000)
    record(database, city, "a", Sidecar({1: panorama, 3: stored(city, "a", 3)}))
    status = city_status(city, database)
    assert status.oversized == 1
    assert any("178,956,970 pixels" in line for line in status_lines(city, status))


def measured(city: City, qualities: dict[int, Quality]) -> Sidecar:
    return Sidecar(
        {id_: replace(stored(city, "a", id_), quality=found) for id_, found in qualities.items()}
    )


QUALITIES = {
    1: SHARP,
    3: SHARP._replace(sharpness=20.0),
    5: SHARP._replace(night=True, brightness=0.05),
    7: SHARP._replace(over_exposure=0.6),
}
LIMITS = {"min_sharpness": 100, "min_brightness": 0.1, "max_over_exposure": 0.5, "night": False}
REASONS = {
    3: "sharpness below 100",
    5: "brightness below 0.1, taken at night",
    7: "over-exposure above 0.5",
}


def test_photographs_are_rejected_by_the_limits_that_the_city_file_has_now(
    database: Postgis, city: City, make_city: Callable[..., City]
) -> None:
    strict = make_city(quality=LIMITS)
    record(database, strict, "a", measured(strict, QUALITIES))
    query = "SELECT image_id, reason FROM {table} WHERE state = 'rejected' ORDER BY image_id"
    assert dict(ask(database, query, "photographs")) == REASONS
    found = take_inventory(strict, database, ["a"])
    assert (found.on_disk, found.rejected, found.missing) == (1, [3, 5, 7], {"a": [9]})
    assert found.without_file == 1

    apply_quality_rules(database, make_city(quality={"max_over_exposure": 0.7}))
    assert ask(database, query, "photographs") == []
    apply_quality_rules(database, strict)
    assert dict(ask(database, query, "photographs")) == REASONS
    rebuild_photographs(database, strict)
    assert dict(ask(database, query, "photographs")) == REASONS
    apply_quality_rules(database, city)
    assert ask(database, query, "photographs") == []


def test_what_is_stored_is_to_be_measured_where_the_city_file_asks(
    database: Postgis, city: City, make_city: Callable[..., City]
) -> None:
    panorama = replace(stored(city, "a", 5), width=20_000, height=10_000)  # Pillow opens it not
    sidecar = measured(city, {1: SHARP}).updated(Sidecar({3: stored(city, "a", 3), 5: panorama}))
    record(database, city, "a", sidecar)
    assert take_inventory(city, database).unmeasured == {}
    found = take_inventory(make_city(quality={}), database, ["a"])
    assert (found.on_disk, found.unmeasured) == (3, {"a": [3]})
    assert found.pending_images == 3


def test_a_table_of_an_earlier_version_gets_the_columns_that_it_has_not(
    database: Postgis, city: City
) -> None:
    record(database, city, "a", Sidecar({1: stored(city, "a", 1)}))
    with database.transaction() as cursor:
        cursor.execute(
            "ALTER TABLE town.photographs DROP sharpness, DROP brightness, DROP contrast,"
            " DROP over_exposure, DROP night"
        )
    record(database, city, "a", measured(city, {3: SHARP}))
    rows = ask(database, "SELECT * FROM {table} ORDER BY image_id", "photographs")
    assert [row[14:] for row in rows] == [UNMEASURED, SHARP]
