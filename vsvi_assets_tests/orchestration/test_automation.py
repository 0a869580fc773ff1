"""What runs by itself: which partitions a tick asks for, and that their statuses are true."""

import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetSelection,
    AutomationConditionSensorDefinition,
    DagsterRun,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ExecuteInProcessResult,
    RunsFilter,
    evaluate_automation_conditions,
)
from PIL import Image

from vsvi_assets.city import City
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.database.queries import selected_ids
from vsvi_assets.orchestration.common import closing_assets
from vsvi_assets.orchestration.dagster_internals import OUTDATED
from vsvi_assets.orchestration.sequence_partitions import sequence_partitions
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.progress import LogProgress
from vsvi_assets.sandbox import Fault, Faults, Sandbox, StreetImage
from vsvi_assets_tests.project import BOX, METADATA_ASSETS, Project, small_world

WEEKLY = "0 3 * * 1"
ASSETS = (*METADATA_ASSETS, "download_plan", "image_files", "coverage_report", "dataset")


def automation_sensors(project: Project) -> list[AutomationConditionSensorDefinition]:
    sensors = project.defs().sensors or ()
    return [s for s in sensors if isinstance(s, AutomationConditionSensorDefinition)]


class Automation:
    """A city's conditions, evaluated when a test says so; what they ask for is carried out."""

    def __init__(self, project: Project, city: City, look_first: bool = True) -> None:
        self.project = project
        self.city = city
        self._cursor: Any = None
        if look_first:
            assert self.evaluate() == {}, "nothing is asked for before the first order"

    def evaluate(self) -> dict[str, set[str | None]]:
        """Evaluate the conditions once; return the partitions they ask for, by asset."""
        result = evaluate_automation_conditions(
            defs=self.project.defs(),
            instance=self.project.instance,
            asset_selection=AssetSelection.key_prefixes(self.city.name),
            cursor=self._cursor,
        )
        self._cursor = result.cursor
        requested = {
            name: set(result.get_requested_partitions(AssetKey([self.city.name, name])))
            for name in ASSETS
        }
        return {name: partitions for name, partitions in requested.items() if partitions}

    def click(self) -> ExecuteInProcessResult:
        """Launch the city's job."""
        job = self.project.defs().resolve_job_def(self.city.group)
        return job.execute_in_process(instance=self.project.instance, raise_on_error=False)

    def carry_out(self, *assets: str, partitions: Sequence[str] = ()) -> ExecuteInProcessResult:
        """Materialize what was asked for, in a run like those of the city's sensor."""
        [sensor] = automation_sensors(self.project)
        return self.project.materialize(
            self.city,
            *assets,
            partitions=partitions,
            tags=sensor.run_tags,
            raise_on_error=False,
        )

    def order(self) -> set[str | None]:
        """Carry out all that follows from a click; return the sequences that were asked for."""
        assert self.click().success
        asked = self.evaluate()
        assert asked == {"tile_metadata": set(self.city.tile_keys)}
        assert self.carry_out("tile_metadata", partitions=self.city.tile_keys).success
        asked = self.evaluate()
        assert asked.keys() == {"postgis_tables", "selected_image_ids", "download_plan"}
        self.carry_out(*asked)
        asked = self.evaluate()
        assert asked.keys() <= {"image_files"}
        sequences = asked.get("image_files", set())
        keys = [key for key in self.project.sequences(self.city) if key in sequences]
        if keys:
            self.carry_out("image_files", partitions=keys)
            assert self.evaluate() == {}
        asked = self.evaluate()
        assert asked.keys() == {*closing_assets(self.city)}
        assert self.carry_out(*asked).success
        assert self.evaluate() == {}, "what ran is not asked for again before the next order"
        return sequences

    def week(self) -> set[str | None]:
        """Let a week pass, and carry out all that follows from the schedule's tick."""
        self.let_tiles_age()
        return self.order()

    def let_tiles_age(self) -> None:
        """Make the tiles on disk a week older."""
        for path in self.city.tiles_folder.glob("*"):
            week_old = path.stat().st_mtime - timedelta(days=7).total_seconds()
            os.utime(path, (week_old, week_old))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox whose four sequences were driven along the southern four of eight streets."""
    with Sandbox(small_world(sequences=4, images_per_sequence=6)) as sandbox:
        yield sandbox


@pytest.fixture
def city(project: Project) -> City:
    return project.write_city(schedule=WEEKLY, timezone="Europe/Amsterdam")


@pytest.fixture
def automation(project: Project, city: City) -> Automation:
    return Automation(project, city)


def statuses(project: Project, city: City) -> dict[str, set[str]]:
    """Return the sequences by their status, as the UI shows it."""
    keys = project.sequences(city)
    by_status = defaultdict(set)
    found = project.instance.get_status_by_partition(
        AssetKey([city.name, "image_files"]), keys, sequence_partitions(city)
    )
    assert found is not None
    for key in keys:
        status = found[key]
        by_status[status.value if status else "MISSING"].add(key)
    return by_status


def assert_statuses_are_true(project: Project, city: City) -> None:
    lacking = take_inventory(city, project.postgis).missing.keys()
    assert statuses(project, city)["MATERIALIZED"] == set(project.sequences(city)) - lacking


def stored_images(city: City) -> dict[str, bytes]:
    paths = city.sequences_folder.glob("*/*.jpg")
    return {str(path.relative_to(city.sequences_folder)): path.read_bytes() for path in paths}


def image_run(project: Project, city: City, first: str, last: str) -> DagsterRun:
    """Record that a run of a range of sequences has begun."""
    return project.instance.create_run_for_job(
        project.defs().resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset([AssetKey([city.name, "image_files"])]),
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
        status=DagsterRunStatus.STARTED,
    )


def test_each_city_has_a_job_and_one_with_a_schedule_a_switch_which_is_off(
    project: Project,
) -> None:
    project.write_city("old-town", schedule=WEEKLY, timezone="Europe/Amsterdam")
    project.write_city("port", schedule="*/30 * * * *", seqdir="elsewhere")
    project.write_city("village")
    repository = project.defs().get_repository_def()
    for name in ("old_town", "port", "village"):
        assert repository.get_job(name).partitions_def is None, "a click launches it at once"
    schedules = {schedule.name: schedule for schedule in repository.schedule_defs}
    assert schedules.keys() == {"old_town", "port"}
    assert schedules["old_town"].execution_timezone == "Europe/Amsterdam"
    assert {s.default_status for s in schedules.values()} == {DefaultScheduleStatus.STOPPED}
    sensors = automation_sensors(project)
    assert {s.default_status for s in sensors} == {DefaultSensorStatus.RUNNING}


def test_a_city_ticks_by_its_own_timezone(city: City) -> None:
    # The night before, the clocks went from two to three in Amsterdam.
    now = datetime(2026, 3, 30, 1, 30, tzinfo=UTC)
    assert city.latest_tick(now) == datetime(2026, 3, 30, 1, tzinfo=UTC)


def test_a_click_leads_to_all_images_and_the_report_without_a_schedule(project: Project) -> None:
    city = project.write_city()
    automation = Automation(project, city)
    assert automation.order() == set(project.sequences(city))
    assert_statuses_are_true(project, city)
    assert statuses(project, city).keys() == {"MATERIALIZED"}
    tiles = project.sandbox.stats.requests["tiles"]
    assert automation.order() == set()
    assert project.sandbox.stats.requests["tiles"] == tiles, "what is on disk is not fetched again"


def test_an_order_before_the_first_evaluation_is_carried_out_and_none_is_repeated(
    project: Project, city: City
) -> None:
    automation = Automation(project, city, look_first=False)
    automation.click()
    assert automation.evaluate() == {"tile_metadata": set(city.tile_keys)}
    automation.carry_out("tile_metadata", partitions=city.tile_keys)
    assert Automation(project, city, look_first=False).evaluate() == {}


def test_what_the_command_runs_is_followed_by_nothing(project: Project, city: City) -> None:
    automation = Automation(project, city)
    moments = []

    class Evaluating(LogProgress):
        def started(self, asset: str) -> None:
            moments.append(automation.evaluate())

        finished = started

    assert project.run_city(city, Evaluating(), sequences_per_run=2).success
    moments.append(automation.evaluate())
    assert len(moments) > 12
    assert not any(moments)


def test_without_its_tiles_an_order_goes_on_with_the_selection_that_is_there(
    project: Project, city: City, automation: Automation
) -> None:
    failing = 1_000_005
    project.sandbox.faults = Faults(by_image={failing: Fault.TRUNCATED})
    automation.order()
    project.sandbox.faults = Faults(by_tile={city.tile_keys[1]: Fault.MALFORMED})
    automation.let_tiles_age()

    automation.click()
    assert automation.evaluate().keys() == {"tile_metadata"}
    assert not automation.carry_out("tile_metadata", partitions=city.tile_keys).success
    sequence = project.sandbox.world.images[failing].sequence_id
    assert automation.evaluate() == {"image_files": {sequence}}
    automation.carry_out("image_files", partitions=[sequence])
    assert automation.evaluate() == {}
    asked = automation.evaluate()
    assert asked.keys() == {*closing_assets(city)}
    automation.carry_out(*asked)
    assert automation.evaluate() == {}

    project.sandbox.faults = Faults()
    assert automation.carry_out("tile_metadata", partitions=city.tile_keys).success
    asked = automation.evaluate()
    assert asked.keys() == {"postgis_tables", "selected_image_ids", "download_plan"}


def test_a_step_that_fails_is_not_asked_for_again_by_itself(
    project: Project, city: City, automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    automation.click()
    automation.evaluate()
    automation.carry_out("tile_metadata", partitions=city.tile_keys)
    asked = automation.evaluate()
    with monkeypatch.context() as broken:
        broken.setattr("vsvi_assets.orchestration.assets.selected_image_ids.select_images", None)
        assert not automation.carry_out(*asked).success
    assert automation.evaluate() == {}
    assert automation.evaluate() == {}
    assert automation.carry_out("selected_image_ids", "download_plan").success
    assert automation.evaluate() == {"image_files": set(project.sequences(city))}


def test_the_first_tick_leads_to_all_images_and_the_next_to_none(
    project: Project, city: City, automation: Automation
) -> None:
    assert automation.week() == set(project.sequences(city))
    assert_statuses_are_true(project, city)
    assert len(stored_images(city)) == len(city.selected_image_ids_path.read_text().split())

    asked = dict(project.sandbox.stats.images_asked)
    tiles = project.sandbox.stats.requests["tiles"]
    assert automation.week() == set()
    assert project.sandbox.stats.images_asked == asked
    assert project.sandbox.stats.requests["tiles"] == tiles + len(city.tile_keys)


def test_nothing_is_asked_for_while_sequences_are_being_registered(
    project: Project, city: City, automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def take_inventory_and_evaluate(*arguments: Any) -> Inventory:
        asked.append(automation.evaluate())
        return take_inventory(*arguments)

    automation.week()
    next(city.sequences_folder.glob("*/*.jpg")).unlink()
    project.materialize(city, "selected_image_ids")
    assert automation.evaluate() == {}, "not before the next tick"
    monkeypatch.setattr(
        "vsvi_assets.orchestration.assets.selected_image_ids.take_inventory",
        take_inventory_and_evaluate,
    )
    assert automation.week()
    assert asked == [{}]


def test_photographs_that_do_not_fit_the_disk_are_not_asked_for(
    project: Project, automation: Automation
) -> None:
    automation.city = project.write_city(schedule=WEEKLY, required_disk_space=1e9)
    assert automation.week() == set()
    automation.city = project.write_city(schedule=WEEKLY)
    assert automation.week() == set(project.sequences(automation.city))


def test_new_images_lead_to_their_sequences_alone(
    project: Project, city: City, automation: Automation
) -> None:
    automation.week()
    extended, *_ = project.sequences(city)
    lon, north = (BOX["west"] + BOX["east"]) / 2, BOX["north"]
    project.sandbox.world.add_images(
        [
            StreetImage(9_000_000, lon, north - 0.0004, extended),
            StreetImage(9_000_001, lon, north - 0.0012, "sequence-new-abcdefgh"),
        ]
    )

    project.materialize(city, *METADATA_ASSETS, partitions=city.tile_keys, overwrite=True)
    assert_statuses_are_true(project, city)
    assert automation.evaluate() == {}, "what is selected by hand is downloaded by hand"
    assert automation.week() == {extended, "sequence-new-abcdefgh"}
    assert_statuses_are_true(project, city)
    assert statuses(project, city).keys() == {"MATERIALIZED"}


def test_a_failed_sequence_is_tried_again_at_the_next_tick(
    project: Project, city: City, automation: Automation
) -> None:
    failing = 1_000_005
    project.sandbox.faults = Faults(by_image={failing: Fault.TRUNCATED})
    automation.week()
    sequence = project.sandbox.world.images[failing].sequence_id
    assert statuses(project, city)["FAILED"] == {sequence}
    assert_statuses_are_true(project, city)

    project.sandbox.faults = Faults()
    assert automation.week() == {sequence}
    assert statuses(project, city).keys() == {"MATERIALIZED"}


def test_sequences_no_longer_selected_lose_their_partition_and_not_their_files(
    project: Project, city: City, automation: Automation
) -> None:
    automation.week()
    before, files = set(project.sequences(city)), stored_images(city)
    automation.city = city = project.write_city(
        schedule=WEEKLY, timezone="Europe/Amsterdam", captured_after="2018-01-01"
    )
    automation.week()
    lost = before - set(project.sequences(city))
    assert lost
    assert set(take_inventory(city, project.postgis).orphaned) == lost
    assert stored_images(city).items() >= files.items()
    assert_statuses_are_true(project, city)


def test_a_changed_interval_downloads_only_what_is_newly_selected(
    project: Project, city: City, automation: Automation
) -> None:
    automation.city = city = project.write_city(schedule=WEEKLY, interval=200)
    automation.week()
    assert_statuses_are_true(project, city)
    served = dict(project.sandbox.stats.images_served)
    automation.city = city = project.write_city(schedule=WEEKLY, interval=20)
    sequences = automation.week()
    assert sequences
    assert_statuses_are_true(project, city)
    assert statuses(project, city).keys() == {"MATERIALIZED"}
    assert set(project.sandbox.stats.images_served.values()) == {1}, "nothing is fetched twice"
    assert len(project.sandbox.stats.images_served) > len(served)


def test_a_deleted_photograph_shows_and_is_fetched_again(
    project: Project, city: City, automation: Automation
) -> None:
    automation.week()
    path = next(city.sequences_folder.glob("*/*.jpg"))
    path.unlink()
    project.materialize(city, "selected_image_ids")
    assert statuses(project, city)["FAILED"] == {path.parent.name}
    assert automation.evaluate() == {}, "not before the next tick"
    assert automation.week() == {path.parent.name}
    assert path.exists()
    assert_statuses_are_true(project, city)


def test_one_run_shows_all_sequences_that_gained_images_as_failed(project: Project) -> None:
    ids = project.folder / "ids.txt"
    ids.write_text("1000000\n1001000\n1003000")
    city = project.write_city(imgid_file=str(ids))
    zero, one, two, three = (f"sequence-{number:04}-abcdefgh" for number in range(4))

    def select(*numbers: int) -> None:
        ids.write_text("\n".join(str(1_000_000 + number) for number in numbers))
        project.materialize(city, "selected_image_ids")

    project.materialize_metadata(city)
    project.materialize_images(city)
    select(3000)
    assert project.sequences(city) == [three]
    select(0, 1, 1000, 2000, 3000, 3001)
    assert statuses(project, city) == {
        "MATERIALIZED": {one},
        "FAILED": {zero, three},
        "MISSING": {two},
    }
    runs = project.instance.get_runs(RunsFilter(job_name=OUTDATED))
    assert [run.status for run in runs] == [DagsterRunStatus.FAILURE]


def test_a_canceled_run_does_not_hide_what_is_missing(project: Project, city: City) -> None:
    project.materialize_metadata(city)
    project.materialize_images(city)
    path = next(city.sequences_folder.glob("*/*.jpg"))
    path.unlink()
    project.materialize(city, "selected_image_ids")
    run = image_run(project, city, path.parent.name, path.parent.name)
    project.instance.report_run_canceled(run)
    assert statuses(project, city)["FAILED"] == {path.parent.name}


def test_photographs_that_are_there_show_without_a_run(project: Project, city: City) -> None:
    project.materialize_metadata(city)
    project.materialize_images(city)
    project.instance.wipe_assets([AssetKey([city.name, "image_files"])])
    project.materialize(city, "selected_image_ids")
    assert statuses(project, city).keys() == {"MATERIALIZED"}


def test_incomplete_sequences_follow_each_other_so_that_few_runs_hold_them(
    project: Project, city: City
) -> None:
    project.materialize_metadata(city)
    project.materialize_images(city)
    sequences = project.sequences(city)
    for sequence in sequences[::2]:
        next(city.sequences_folder.glob(f"{sequence}/*.jpg")).unlink()
    project.materialize(city, "selected_image_ids")
    assert project.sequences(city) == [*sequences[1::2], *sequences[::2]]
    assert statuses(project, city)["FAILED"] == set(sequences[::2])


def test_no_sequence_is_taken_from_under_a_run(project: Project, city: City) -> None:
    project.materialize_metadata(city)
    before = project.sequences(city)
    run = image_run(project, city, before[0], before[-1])
    city = project.write_city(schedule=WEEKLY, captured_after="2018-01-01")
    project.materialize(city, "postgis_tables", "selected_image_ids")
    assert project.sequences(city) == before

    project.instance.report_run_canceled(run)
    project.materialize(city, "selected_image_ids")
    assert set(project.sequences(city)) < set(before)


def test_rejected_photographs_lead_to_another_selection_and_its_photographs(
    project: Project,
) -> None:
    def picture(image: StreetImage, size: str) -> bytes:
        file = io.BytesIO()
        colour = "black" if image.id % 3 == 0 else "grey"
        Image.new("RGB", (64, 48), colour).save(file, "JPEG")
        return file.getvalue()

    project.sandbox.world.picture = picture
    city = project.write_city(quality={"min_brightness": 0.1, "tries": 2})
    automation = Automation(project, city)
    assert automation.click().success
    carried_out = []
    while asked := automation.evaluate() or automation.evaluate():
        partitions: Sequence[str] = city.tile_keys if "tile_metadata" in asked else ()
        if "image_files" in asked:
            partitions = [key for key in project.sequences(city) if key in asked["image_files"]]
            other = image_run(project, city, partitions[-1], partitions[-1])
            if len(partitions) > 1:
                assert automation.carry_out(*asked, partitions=partitions[:-1]).success
            assert automation.evaluate() == {}, "other photographs are under way"
            project.instance.report_run_canceled(other)
            partitions = partitions[-1:]
        assert automation.carry_out(*asked, partitions=partitions).success
        carried_out.append(set(asked))
    again = {"selected_image_ids", "download_plan"}
    closing = {*closing_assets(city)}
    assert carried_out[:3] == [{"tile_metadata"}, {"postgis_tables", *again}, {"image_files"}]
    assert again in carried_out[3:]
    assert carried_out[-1] == closing
    assert carried_out.count(closing) == 1
    inventory = take_inventory(city, project.postgis)
    assert inventory.selected == inventory.on_disk > 0
    assert all(image_id % 3 for image_id in selected_ids(project.postgis, city).to_pylist())
    assert_statuses_are_true(project, city)
