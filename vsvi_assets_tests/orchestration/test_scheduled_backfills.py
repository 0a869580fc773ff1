"""Cities that follow from a click or a schedule, by Dagster's real daemon and webserver."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsvi_assets.city import City
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.mapillary.coverage import WORKERS as WORKERS_OF_TILES
from vsvi_assets.orchestration.launcher import HOST_TAG, this_machine
from vsvi_assets.sandbox import Fault, Faults, Sandbox, StreetImage
from vsvi_assets.views.plan import SAMPLE_OF_A_KIND
from vsvi_assets_tests.dagster_services import Bounds, DagsterServices, Run, wait_until
from vsvi_assets_tests.orchestration.test_notifications import webhook
from vsvi_assets_tests.project import BOX, Project, small_world

WEEKLY = "0 3 * * 1"
BACKFILL_IS_OVER = re.compile(r"vsvi: village: backfill (\w+) is over")
NEW_SEQUENCES = {f"sequence-new{number}-abcdefgh" for number in range(3)}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(small_world(sequences=6)) as sandbox:
        yield sandbox


@pytest.fixture
def notifications(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The texts that a webhook gets, where the services start after it."""
    with webhook() as (url, texts):
        monkeypatch.setenv("VSVI_NOTIFY_WEBHOOK", url)
        yield texts


@pytest.fixture
def services(project: Project, tmp_path: Path, postgis_url: str) -> Iterator[DagsterServices]:
    services = DagsterServices(
        tmp_path / "dagster",
        {"DAGSTER_POSTGRES_URL": postgis_url, "VSVI_SEQUENCES_PER_RUN": "3"},
    )
    yield services
    services.stop()


def image_runs(runs: list[Run]) -> list[Run]:
    return [run for run in runs if "image_files" in run.assets]


def is_complete(services: DagsterServices, city: City) -> bool:
    sequences = services.partitions(city.name, "image_files")
    return bool(sequences["all"]) and sequences["all"] == sequences["materialized"]


def assert_status_is_the_disk(services: DagsterServices, project: Project, city: City) -> None:
    sequences = services.partitions(city.name, "image_files")
    lacking = take_inventory(city, project.postgis).missing.keys()
    assert sequences["materialized"] == sequences["all"] - lacking
    ids = {int(line) for line in city.selected_image_ids_path.read_text().split()}
    images = project.sandbox.world.images
    for image_id in ids:
        path = city.sequences_folder / images[image_id].sequence_id / f"{image_id}.jpg"
        assert path.read_bytes() == project.sandbox.world.picture(images[image_id], "original")


def add_three_sequences(project: Project) -> None:
    """Add sequences to the middle of three lanes, where all other images are farther away."""
    west, south, east, north = BOX.values()
    project.sandbox.world.add_images(
        StreetImage(
            id=9_000_000 + 100 * lane + crossing,
            lon=west + (east - west) * (lane + 1.5) / 8,
            lat=south + (north - south) * (crossing + 1) / 8,
            sequence_id=sequence_id,
            captured_at=1_750_000_000_000,
        )
        for lane, sequence_id in enumerate(sorted(NEW_SEQUENCES))
        for crossing in range(2)
    )


def files(city: City) -> dict[Path, tuple[int, int]]:
    paths = city.sequences_folder.glob("*/*.jpg")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.timeout(900)
def test_cities_keep_themselves_up_to_date(project: Project, services: DagsterServices) -> None:
    town = project.write_city("town", schedule=WEEKLY, timezone="Europe/Amsterdam")
    village = project.write_city("village", schedule=WEEKLY)
    stats = project.sandbox.stats
    bounds = Bounds()
    # Runs of images last for some seconds, with half of the images on disk.
    project.sandbox.faults = Faults(images={Fault.SLOW: 0.5}, slow=8)
    services.start()
    assert services.runs() == []
    for city in (town, village):
        services.switch_on(city.name)
    wait_for_evaluations(services, town, village)
    assert services.runs() == []

    let_a_week_pass(services, town, village)

    # The first tick. A worker is killed in the middle of its backfill, and the daemon too.
    def downloading() -> list[Run]:
        runs = image_runs(services.runs())
        return [run for run in runs if run.status == "STARTED" and run.city == "town"]

    def is_in_the_middle() -> bool:
        # The plan has put its sample there before.
        return bool(downloading()) and len(files(town)) > 2 * SAMPLE_OF_A_KIND

    wait_until(is_in_the_middle, 300, "images of the backfill are on disk")
    [killed] = downloading()
    pid = services.worker_pid(killed.id)
    assert pid
    os.kill(pid, signal.SIGKILL)
    whole = files(town)
    services.kill_daemon()
    services.start_daemon()

    def both_are_complete() -> bool:
        bounds.watch(services.runs())
        return all(is_complete(services, city) for city in (town, village))

    wait_until(both_are_complete, 400, "all images of both cities are on disk")
    for city in (town, village):
        assert_status_is_the_disk(services, project, city)
    runs = image_runs(services.runs())
    assert {run.id: run.status for run in runs}[killed.id] == "FAILURE"
    assert killed.id in {run.tags.get("dagster/parent_run_id") for run in runs}
    assert files(town).items() >= whole.items()
    backfills = [b for b in services.backfills() if b["assetSelection"] == image_files_of(town)]
    assert {run.tags["dagster/backfill"] for run in runs if run.city == "town"} == {
        backfill["id"] for backfill in backfills
    }

    assert dict(bounds.of_city) == {"town": 1, "village": 1}, "one run a city"
    assert bounds.in_all == 2, "the cities did not wait for each other"

    # A tick with nothing new; the other city's tick has nothing new either.
    project.sandbox.faults = Faults()
    asked, tiles = dict(stats.images_asked), stats.requests["tiles"]
    refresh(services, town, village)
    known = {run.id for run in runs}
    assert {run.id for run in image_runs(services.runs())} == known
    assert stats.images_asked == asked
    assert stats.requests["tiles"] == tiles + len(town.tile_keys) + len(village.tile_keys)

    # A tick with three new sequences.
    add_three_sequences(project)
    refresh(services, town)
    wait_until(lambda: is_complete(services, town), 300, "the new sequences are on disk")
    new = [run for run in image_runs(services.runs()) if run.id not in known]
    assert [run.materialized for run in new] == [NEW_SEQUENCES]
    assert "dagster/backfill" in new[0].tags
    assert_status_is_the_disk(services, project, town)


def image_files_of(city: City) -> list[dict[str, list[str]]]:
    return [{"path": [city.name, "image_files"]}]


def let_a_week_pass(services: DagsterServices, *cities: City) -> None:
    for city in cities:
        for path in city.tiles_folder.glob("*"):
            week_old = path.stat().st_mtime - 7 * 86400
            os.utime(path, (week_old, week_old))
    services.let_days_pass(7)


def wait_for_evaluations(services: DagsterServices, *cities: City) -> None:
    """Wait until the cities' conditions have been evaluated, from now on, twice."""
    for city in cities:
        sensor = f"{city.group}_next_steps"
        before = services.evaluations(sensor)

        def came(name: str = sensor, before: set[str] = before) -> bool:
            return len(services.evaluations(name) - before) >= 2

        wait_until(came, 300, f"the conditions of {city.name} are evaluated")


def refresh(services: DagsterServices, *cities: City) -> None:
    """Let a week pass, and wait until the new selections are there and were looked at."""
    before = {run.id for run in services.runs()}
    let_a_week_pass(services, *cities)

    def are_selected() -> bool:
        new = [run for run in services.runs() if run.id not in before]
        selected = [run for run in new if "selected_image_ids" in run.assets]
        return {run.city for run in selected if run.status == "SUCCESS"} >= {
            city.name for city in cities
        }

    wait_until(are_selected, 300, "the selection is refreshed")
    wait_for_evaluations(services, *cities)


@pytest.mark.timeout(600)
def test_two_ticks_of_a_schedule_ask_a_blocked_address_for_nothing_more(
    project: Project, services: DagsterServices
) -> None:
    city, stats = project.write_city("town", schedule=WEEKLY), project.sandbox.stats
    project.sandbox.block.block()
    services.start()
    services.switch_on(city.name)

    def ended_by_the_block() -> int:
        runs = [run for run in services.runs() if "tile_metadata" in run.assets]
        return [run.status for run in runs].count("FAILURE")

    services.let_days_pass(7)
    wait_until(lambda: ended_by_the_block() == 1, 200, "the first tick's run ends")
    seen = stats.requests["tiles"]
    assert 1 <= seen <= WORKERS_OF_TILES, "no more than were under way in its one step"
    services.let_days_pass(7)
    wait_until(lambda: ended_by_the_block() == 2, 200, "the second tick's run ends")
    services.let_days_pass(7)
    wait_until(lambda: ended_by_the_block() == 3, 200, "the third tick's run ends")
    assert stats.requests["tiles"] == seen
    assert stats.redirects_followed == 0


@pytest.mark.timeout(900)
def test_a_click_leads_to_all_photographs_as_a_backfill_to_cancel_and_retry(
    project: Project, notifications: list[str], services: DagsterServices
) -> None:
    city = project.write_city("village")
    project.sandbox.faults = Faults(images={Fault.SLOW: 0.5}, slow=8)
    services.start()
    services.click("village")

    # The plan has put its sample there before.
    wait_until(lambda: len(files(city)) > 2 * SAMPLE_OF_A_KIND, 300, "images are on disk")
    [backfill] = [b for b in services.backfills() if b["assetSelection"] == image_files_of(city)]
    assert backfill["tags"]
    services.cancel_backfill(backfill["id"])

    def is_canceled() -> bool:
        [found] = [b for b in services.backfills() if b["id"] == backfill["id"]]
        return found["status"] == "CANCELED"

    wait_until(is_canceled, 60, "the backfill is canceled")
    wait_until(lambda: reports(services) == 1, 120, "the report shows what is there")
    assert not is_complete(services, city)
    whole, runs = files(city), {run.id for run in image_runs(services.runs())}
    wait_for_evaluations(services, city)
    assert {run.id for run in image_runs(services.runs())} == runs, "canceled is canceled"

    project.sandbox.faults = Faults()
    retried = services.retry_backfill(backfill["id"])
    wait_until(lambda: is_complete(services, city), 300, "all images are on disk")
    assert_status_is_the_disk(services, project, city)
    assert files(city).items() >= whole.items()
    new = [run for run in image_runs(services.runs()) if run.id not in runs]
    assert {run.tags["dagster/backfill"] for run in new} == {retried}
    wait_until(lambda: reports(services) == 2, 120, "the report shows all")
    ended = {backfill["id"] for backfill in services.backfills()}

    def notified() -> list[str]:
        return [found for text in notifications for found in BACKFILL_IS_OVER.findall(text)]

    wait_until(lambda: len(notified()) >= len(ended), 120, "the end of each backfill is notified")
    assert sorted(notified()) == sorted(ended)

    asked, runs = dict(project.sandbox.stats.images_asked), {run.id for run in services.runs()}
    services.click("village")
    wait_until(lambda: reports(services) == 3, 300, "the second click ends with its report")
    assert project.sandbox.stats.images_asked == asked
    assert not [run for run in image_runs(services.runs()) if run.id not in runs]
    # By this tag a lost worker is known, and only by the machine on which it ran.
    launched = [run for run in services.runs() if run.status == "SUCCESS"]
    assert {run.tags.get(HOST_TAG) for run in launched} == {this_machine()}


def reports(services: DagsterServices) -> int:
    runs = [run for run in services.runs() if "coverage_report" in run.assets]
    return [run.status for run in runs].count("SUCCESS")
