"""What goes wrong on the way to a city's photographs, and what is left of it after the next run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus, serialize_value
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database import tables
from vsvi_assets.database.photographs import rebuild_photographs
from vsvi_assets.mapillary.coverage import WORKERS as WORKERS_OF_TILES
from vsvi_assets.orchestration.common import MAPILLARY_POOL, asset_key
from vsvi_assets.orchestration.dagster_internals import WorkerStatus
from vsvi_assets.orchestration.launcher import (
    HOST_TAG,
    LOCK_TAG,
    end_lost_runs,
    end_runs,
    this_machine,
    unfinished_runs_of_code_server,
)
from vsvi_assets.photographs.sidecar import (
    SIDECAR_NAME,
    Sidecar,
    known_images,
    read_sidecar,
    write_sidecar,
)
from vsvi_assets.photographs.states import Absence
from vsvi_assets.photographs.verification import verify_photographs
from vsvi_assets.progress import LogProgress
from vsvi_assets.running.run_city import CityBusyError, city_lock, only_process
from vsvi_assets.sandbox import TOKEN, Fault, Faults, StreetImage
from vsvi_assets.views.plan import SAMPLE_OF_A_KIND
from vsvi_assets_tests.conftest import temporary_postgis
from vsvi_assets_tests.dagster_internals import EngineEventData
from vsvi_assets_tests.project import Project, small_world


def differences(city: City) -> list[str]:
    return verify_photographs(city.sequences_folder).differences


WORKERS = 64
"""How many images are fetched at a time."""


def everything_at_once() -> Faults:
    """Return faults of all services, which count anew what has been asked."""
    return Faults(
        seed=3,
        overpass={Fault.GATEWAY_TIMEOUT: 0.5, Fault.RATE_LIMITED_BARE: 0.5},
        tiles={Fault.UNAVAILABLE: 0.4, Fault.SERVER_ERROR: 0.3, Fault.CUT_OFF: 0.3},
        graph={
            Fault.APPLICATION_LIMIT: 0.1,
            Fault.TIMEOUT: 0.1,
            Fault.UNKNOWN_ERROR: 0.1,
            Fault.RESET: 0.1,
        },
        images={
            Fault.RATE_LIMITED_XML: 0.1,
            Fault.SERVER_ERROR: 0.1,
            Fault.TRUNCATED: 0.05,
            Fault.HTML_PAGE: 0.05,
            Fault.EXPIRED: 0.05,
            Fault.RESET: 0.05,
        },
        most=2,
    )


def selected_images(project: Project, city: City) -> list[StreetImage]:
    ids = city.selected_image_ids_path.read_text().split()
    return [project.sandbox.world.images[int(image_id)] for image_id in ids]


def path_of(city: City, image: StreetImage) -> Path:
    return city.sequences_folder / image.sequence_id / f"{image.id}.jpg"


def not_whole(project: Project, city: City) -> list[int]:
    """Return the selected images that are not on disk, byte by byte as they are served."""
    return [
        image.id
        for image in selected_images(project, city)
        if not (path := path_of(city, image)).exists()
        or path.read_bytes() != project.sandbox.world.picture(image, "original")
    ]


def attempts(project: Project) -> list[str]:
    """Return the step of each attempt that failed and was repeated, in all runs."""
    return [
        entry.step_key or ""
        for run in project.instance.get_runs()
        for entry in project.instance.all_logs(run.run_id)
        if entry.dagster_event and entry.dagster_event.event_type_value == "STEP_UP_FOR_RETRY"
    ]


# What passes


def test_faults_of_all_services_at_once_cost_a_city_nothing(project: Project) -> None:
    city = project.write_city(num_retries=8)
    project.sandbox.faults = everything_at_once()
    reported: list[str] = []
    run = project.run_city(city, LogProgress(reported.append))
    assert run.failures == []
    assert not_whole(project, city) == []
    stats = project.sandbox.stats
    assert stats.faults.keys() == {"overpass", "tiles", "graph", "images"}
    assert any("HTTP 504" in line and "retry 1 of" in line for line in reported), reported


def test_without_its_tiles_a_city_still_gets_the_photographs_that_are_selected(
    project: Project,
) -> None:
    city = project.write_city()
    assert project.run_city(city, plan_only=True).success
    lacking = not_whole(project, city)
    assert lacking
    lost = city.tile_path(city.tile_keys[0])
    lost.unlink()
    project.sandbox.faults = Faults(tiles={Fault.MALFORMED: 1.0})
    run = project.run_city(city)
    [message] = run.failures
    assert message.startswith("town/tile_metadata: ")
    assert not_whole(project, city) == []
    assert run.images == len(lacking)
    assert run.missing == 0


def test_the_summary_says_how_many_images_are_missing(project: Project) -> None:
    city = project.write_city()
    assert project.run_city(city).success
    assert "none: every selected image was there already" in "\n".join(
        project.run_city(city).lines()
    )
    absent, *_ = selected_images(project, city)
    path_of(city, absent).unlink()
    project.sandbox.faults = Faults(by_image={absent.id: Fault.TRUNCATED})
    run = project.run_city(city)
    assert run.missing == 1
    assert "none; 1 selected images have no file" in "\n".join(run.lines())


def test_images_believed_gone_are_asked_for_again_on_request(project: Project) -> None:
    city = project.write_city()
    assert project.run_city(city).success
    gone, *_ = selected_images(project, city)
    path_of(city, gone).unlink()
    folder = path_of(city, gone).parent
    sidecar = known_images(folder)
    del sidecar.images[gone.id]
    sidecar.absent[gone.id] = Absence(
        datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC), 2
    )
    write_sidecar(folder, sidecar)
    rebuild_photographs(project.postgis, city)
    asked = project.sandbox.stats.images_asked.copy()
    run = project.run_city(city)
    assert (run.missing, project.sandbox.stats.images_asked - asked) == (1, {})
    run = project.run_city(city, recheck_unavailable=True)
    assert (run.missing, run.images) == (0, 1)
    assert (project.sandbox.stats.images_asked - asked).keys() == {gone.id}


# What no time mends


def test_a_refused_token_ends_everything_at_once_with_one_sentence(project: Project) -> None:
    city = project.write_city()
    project.run_city(city)
    project.sandbox.tokens = {"MLY|another"}
    for image in selected_images(project, city):
        path_of(city, image).unlink()
    run = project.run_city(city, sequences_per_run=2)
    assert run.image_runs == 1
    [message] = run.failures
    assert message.startswith("town/image_files: Mapillary refuses the token")
    assert "\n" not in message
    assert attempts(project) == []


def test_a_fault_of_the_program_is_reported_at_once_with_its_class(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city()
    monkeypatch.setattr(project.sandbox.world, "picture", None)
    monkeypatch.setattr("vsvi_assets.mapillary.client.decode_tile", {}.__getitem__)
    run = project.run_city(city)
    assert any(m.startswith("town/tile_metadata: TypeError: ") for m in run.failures)
    assert attempts(project) == []


# Interruptions


@contextmanager
def interrupted_when(it_is_time: Callable[[], bool]) -> Iterator[list[float]]:
    """Press Ctrl-C once it is time; gives a list of when that was."""
    moments: list[float] = []
    over = threading.Event()

    def press() -> None:
        while not it_is_time():
            if over.wait(0.02):
                return
        moments.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield moments
    finally:
        over.set()
        thread.join()


def complete_sequences(project: Project, city: City) -> set[str]:
    """Return the sequences whose sidecar lists all selected images."""
    selected: dict[str, set[int]] = {}
    for image in selected_images(project, city):
        selected.setdefault(image.sequence_id, set()).add(image.id)
    return {
        sequence_id
        for sequence_id, ids in selected.items()
        if ids <= read_sidecar(city.sequences_folder / sequence_id).images.keys()
    }


def temporary_files(project: Project) -> list[Path]:
    return list(project.settings.data_dir.rglob("*.part"))


def test_ctrl_c_ends_a_download_within_seconds_and_the_next_run_goes_on(project: Project) -> None:
    city = project.write_city()
    assert project.run_city(city, plan_only=True).success
    silent = stalled(project, city)
    project.sandbox.faults = Faults(by_image=silent, stall=60)

    def others_are_complete() -> bool:
        complete = complete_sequences(project, city)
        return len(complete) == len(project.sequences(city)) - len(silent)

    with pytest.raises(KeyboardInterrupt), interrupted_when(others_are_complete) as moments:
        project.run_city(city)
    assert time.monotonic() - moments[0] < 5
    [run] = project.instance.get_runs(limit=1)
    assert run.status == DagsterRunStatus.CANCELED
    complete = complete_sequences(project, city)
    assert complete
    assert recorded(project, city) <= complete

    project.sandbox.faults = Faults()
    before = project.sandbox.stats.images_asked.copy()
    whole = {image.id for image in selected_images(project, city)} - {*not_whole(project, city)}
    assert project.run_city(city).failures == []
    assert not whole & (project.sandbox.stats.images_asked - before).keys()
    assert not_whole(project, city) == []
    assert recorded(project, city) == {*project.sequences(city)}


def test_photographs_that_come_again_are_listed_again_though_the_run_was_interrupted(
    project: Project,
) -> None:
    city = project.write_city()
    assert project.run_city(city).success
    before = city.sequences_folder.rename(project.settings.data_dir / "before")
    asked = project.sandbox.stats.requests["images"]
    project.sandbox.faults = Faults(images={Fault.STALL: 1.0}, stall=60)

    def images_are_asked_for() -> bool:
        return project.sandbox.stats.requests["images"] > asked

    with pytest.raises(KeyboardInterrupt), interrupted_when(images_are_asked_for):
        project.run_city(city)
    # As if they had come just before, and their sidecars had not been written yet.
    for photograph in before.glob("*/*.jpg"):
        folder = city.sequences_folder / photograph.parent.name
        folder.mkdir(exist_ok=True)
        shutil.copy(photograph, folder)

    def unlisted() -> list[str]:
        found = verify_photographs(city.sequences_folder).unlisted
        # The threads that still wait for a silent server have their `.part` there.
        return [name for name in found if name.endswith(".jpg")]

    assert unlisted()
    project.sandbox.faults = Faults()
    assert project.run_city(city).success
    assert unlisted() == []


def test_ctrl_c_ends_the_wait_for_another_try_too(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSVI_RETRY_DELAY", "60")
    project.sandbox.faults = Faults(tiles={Fault.UNAVAILABLE: 1.0})
    reported: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        interrupted_when(lambda: any("Retry 1 of 3" in line for line in reported)) as moments,
    ):
        project.run_city(project.write_city(), LogProgress(reported.append))
    assert time.monotonic() - moments[0] < 5
    assert project.sandbox.stats.requests["graph"] == 0


def stalled(project: Project, city: City) -> dict[int, Fault]:
    """Let the server fall silent amid the last missing image of every other sequence."""
    missing = set(not_whole(project, city))
    images = [image for image in selected_images(project, city) if image.id in missing]
    last = {image.sequence_id: image.id for image in images}
    return dict.fromkeys(list(last.values())[::2], Fault.STALL)


def recorded(project: Project, city: City) -> set[str]:
    return set(project.instance.get_materialized_partitions(asset_key(city, "image_files")))


# Kills

RUNS = """
import os, sys
from dagster import DagsterInstance
from vsvi_assets.city import load_cities
from vsvi_assets.photographs.verification import verify_photographs
from vsvi_assets.progress import LogProgress
from vsvi_assets.running.run_city import run_city
from vsvi_assets.settings import Settings

settings = Settings.from_environment()
[city], _ = load_cities(settings.cities_dir, settings.data_dir)

for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        with DagsterInstance.get() as instance:
            run = run_city(city, settings, instance, progress=LogProgress(print))
        os._exit(0 if run.success else 1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the city for each line, in a fork of its own that has imported everything it takes."""


@dataclass
class Runs:
    """Runs of the city in processes of their own, one after the other."""

    process: subprocess.Popen[str]

    def start(self) -> int:
        """Start one, and return its process id."""
        assert self.process.stdin
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._answer()

    def ended(self) -> int:
        """Wait for its end and return its exit code, of a signal the negative number."""
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


@contextmanager
def killed_runs(project: Project) -> Iterator[Runs]:
    with (
        (project.folder / "reported").open("w") as reported,
        subprocess.Popen(
            [sys.executable, "-c", RUNS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=reported,
            text=True,
        ) as process,
    ):
        yield Runs(process)
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def postgres_project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project, with its Dagster instance in PostgreSQL, for several processes."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", os.environ["VSVI_POSTGRES_URL"])
    monkeypatch.setenv("DAGSTER_HOME", str(project.folder))
    monkeypatch.chdir(project.folder)
    shutil.copy(Path(__file__).parents[2] / "dagster.yaml", project.folder)
    with DagsterInstance.get() as instance:
        yield Project(project.folder, project.sandbox, instance)


@pytest.mark.timeout(900)
def test_thirty_kills_lose_nothing_that_was_whole(postgres_project: Project) -> None:
    project, moments = postgres_project, random.Random(5)
    world = small_world(sequences=20, images_per_sequence=60)
    project.sandbox.world.add_images(world.images.values())
    city = project.write_city(selection="all")
    stats = project.sandbox.stats
    project.sandbox.latency = 0.2
    kills_amid_images = 0
    with killed_runs(project) as runs:
        for kill in range(30):
            served = stats.images_served.total()
            process_id = runs.start()
            # Some wherever the run is by then, and the others amid the images.
            patience = time.monotonic() + (moments.uniform(0, 4) if kill % 4 else 100)
            enough = served + (2 * SAMPLE_OF_A_KIND if kill < 8 else 0) + moments.randint(1, 50)
            while stats.images_served.total() < enough and time.monotonic() < patience:
                time.sleep(moments.uniform(0, 0.02))
            os.kill(process_id, signal.SIGKILL)
            assert runs.ended() == -signal.SIGKILL
            kills_amid_images += stats.images_served.total() > served
        on_disk = sum(1 for _ in city.sequences_folder.rglob("*.jpg"))
        project.sandbox.latency = 0.0
        runs.start()
        assert runs.ended() == 0
    images = selected_images(project, city)
    assert 0 < on_disk < len(images)
    assert not_whole(project, city) == []
    assert temporary_files(project) == []
    assert differences(city) == []
    sizes = [path_of(city, image).stat().st_size for image in images]
    explained = (kills_amid_images * WORKERS + 2 * SAMPLE_OF_A_KIND) * max(sizes)
    assert stats.image_bytes - sum(sizes) <= explained
    assert recorded(project, city) == {*project.sequences(city)}
    assert [run.run_id for run in project.instance.get_runs() if not run.is_finished] == []
    pool = project.instance.event_log_storage.get_concurrency_info(MAPILLARY_POOL)
    assert pool.active_slot_count == pool.pending_step_count == 0
    print(kills_amid_images, on_disk, len(images), stats.image_bytes, sum(sizes), explained)


def test_runs_that_lost_their_process_are_ended_and_others_are_not(
    postgres_project: Project,
) -> None:
    project = postgres_project
    idle, busy, ours = map(project.write_city, ("idle", "busy", "ours"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "dagster"])
    here, elsewhere = {HOST_TAG: this_machine()}, {HOST_TAG: "lab-server 0123"}
    tags: dict[str, dict[str, str]] = {
        "killed command": {LOCK_TAG: city_lock(idle)},
        "earlier command": {LOCK_TAG: city_lock(ours)},
        "killed worker": here,
        "running command": {LOCK_TAG: city_lock(busy)},
        "running worker": here,
        "worker of another machine": elsewhere,
        "worker of an unknown machine": {},
        "worker that is about to start": here,
    }
    runs = {
        name: project.instance.add_run(
            DagsterRun("job", status=DagsterRunStatus.STARTED, tags=run_tags)
        )
        for name, run_tags in tags.items()
    }
    for name, run in runs.items():
        if name != "worker that is about to start" and LOCK_TAG not in run.tags:
            data = EngineEventData.in_process((worker if "running" in name else ended).pid)
            project.instance.report_engine_event("Started process for run", run, data)
    with only_process(busy, project.postgis), only_process(ours, project.postgis):
        launcher = project.instance.run_launcher
        healths = {name: launcher.check_run_worker_health(run).status for name, run in runs.items()}
        end_lost_runs(project.instance, city_lock(ours))
    unfinished = {run.run_id for run in project.instance.get_runs() if not run.is_finished}
    worker.kill()
    worker.wait()
    left = {name for name, run in runs.items() if run.run_id in unfinished}
    assert runs.keys() - left == {"killed command", "earlier command", "killed worker"}
    alive = {name for name, health in healths.items() if health == WorkerStatus.RUNNING}
    assert alive == left | {"earlier command"}


def test_a_city_that_a_run_of_another_machine_works_on_is_refused(project: Project) -> None:
    town, village = project.write_city("town"), project.write_city("village")
    other = project.instance.add_run(
        DagsterRun(
            "job",
            status=DagsterRunStatus.STARTED,
            asset_selection={AssetKey(["town", "image_files"])},
            tags={HOST_TAG: "lab-server 0123"},
        )
    )
    with pytest.raises(CityBusyError, match=f"town is being run by Dagster's run {other.run_id}"):
        project.run_city(town)
    assert project.run_city(village, tiles_only=True).success
    found = project.instance.get_run_by_id(other.run_id)
    assert found
    assert found.status == DagsterRunStatus.STARTED


def test_runs_of_a_code_server_that_is_started_again_are_ended(postgres_project: Project) -> None:
    instance = postgres_project.instance
    runs = {
        (host, status): instance.add_run(
            DagsterRun(
                "job",
                status=status,
                tags={".dagster/grpc_info": json.dumps({"host": host, "port": 4000})},
            )
        )
        for host in ("code", "localhost")
        for status in (
            DagsterRunStatus.STARTED,
            DagsterRunStatus.CANCELING,
            DagsterRunStatus.SUCCESS,
        )
    }

    lost = unfinished_runs_of_code_server(instance, "code")
    end_runs(instance, lost)

    found = {run.run_id: run.status for run in instance.get_runs()}
    became = {key: found[run.run_id] for key, run in runs.items() if key[1] != found[run.run_id]}
    assert became == {
        ("code", DagsterRunStatus.STARTED): DagsterRunStatus.FAILURE,
        ("code", DagsterRunStatus.CANCELING): DagsterRunStatus.CANCELED,
    }


def test_a_city_is_run_by_one_process_at_a_time(project: Project) -> None:
    city = project.write_city()
    with (
        only_process(city, project.postgis),
        pytest.raises(
            CityBusyError, match=rf"town is being run by .* process {os.getpid()}, since"
        ),
    ):
        project.run_city(city)
    assert project.instance.get_runs() == []
    assert project.run_city(city, tiles_only=True).success


# The database


def test_a_database_killed_amid_a_load_keeps_the_old_tables_and_gets_the_new_ones(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary_postgis() as server:
        server.start()
        monkeypatch.setenv("VSVI_POSTGRES_URL", server.vsvi_url)
        city = project.write_city()
        assert project.run_city(city, plan_only=True).success
        before = rows_of_tables(project, city)
        newcomer = StreetImage(id=42, lon=5.209, lat=52.525, sequence_id="newcomer")
        project.sandbox.world.add_images([newcomer])
        wanted_images = tables.wanted_images
        seen: list[object] = []

        def killing(tile: pa.Table, city: City) -> pa.Table:
            if not seen:
                seen.append("killed")
                pid = (server.folder / "cluster" / "postmaster.pid").read_text().split()[0]
                os.kill(int(pid), signal.SIGKILL)
            elif len(seen) == 1:
                seen.append(rows_of_tables(project, city))
            return wanted_images(tile, city)

        def start_again(message: str) -> None:
            if "Retry 1 of 3" in message:
                server.start()

        monkeypatch.setattr(tables, "wanted_images", killing)
        progress = LogProgress(start_again)
        assert project.run_city(city, progress, plan_only=True, overwrite=True).success
        assert attempts(project) == ["town__postgis_tables"]
        assert seen == ["killed", before]
        after = rows_of_tables(project, city)
        assert after == before | {"town.images": before["town.images"] + 1}


def rows_of_tables(project: Project, city: City) -> dict[str, int]:
    """Count the rows of all tables in the city's schemas, a schema that is being built included."""
    with project.postgis.transaction() as cursor:
        cursor.execute(
            "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname LIKE %s",
            [f"{city.name}%"],
        )
        names = [name for (name,) in cursor.fetchall()]
        counts = {}
        for name in names:
            cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.SQL(name)))
            [(counts[name],)] = cursor.fetchall()
    return counts


# The disk


def test_a_full_disk_stops_a_city_at_any_step_and_room_completes_it(
    project: Project, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSVI_DATA_DIR", str(small_disk))
    world, picture = project.sandbox.world, project.sandbox.world.picture
    world.picture = lambda image, size: picture(image, size) + bytes(125_000)
    city = project.write_city(selection="all")
    ballast = small_disk / "ballast"

    def leave_free(room: int) -> None:
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))

    leave_free(40_000)  # less than the tiles take
    full = rf"{small_disk}\S*: 0.000 GB free, more required"
    failures = project.run_city(city).failures
    assert failures
    assert all(re.search(full, message) for message in failures)
    assert temporary_files(project) == []
    ballast.unlink()
    assert project.run_city(city, plan_only=True).success

    class Filling(LogProgress):
        """Fills the disk when the photographs begin, but for less room than they take."""

        def expect(self, asset: str, total: int) -> None:
            leave_free(5_000_000)

    failures = project.run_city(city, Filling(print)).failures
    assert failures[0].startswith("town/image_files: ")
    assert all(re.search(full, message) for message in failures)
    assert attempts(project) == []
    assert temporary_files(project) == []
    on_disk = {path.stem for path in city.sequences_folder.rglob("*.jpg")}
    assert on_disk.isdisjoint(set(map(str, not_whole(project, city))))
    ballast.unlink()
    assert project.run_city(city).failures == []
    assert not_whole(project, city) == []
    assert differences(city) == []


# Mapillary's day


def test_tiles_beyond_those_of_the_day_are_left_for_another(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city()
    monkeypatch.setenv("VSVI_TILES_PER_DAY", "1")
    reported: list[str] = []
    run = project.run_city(city, LogProgress(reported.append))
    assert any("4 tiles take seconds" in line for line in reported)
    assert any("1 of 1 requests are left today" in line for line in reported)
    [message] = [failure for failure in run.failures if "tile_metadata" in failure]
    assert "Run again after midnight UTC" in message
    assert project.sandbox.stats.requests["tiles"] == 1
    assert len(project.instance.get_materialized_partitions(asset_key(city, "tile_metadata"))) == 1
    assert attempts(project) == []
    monkeypatch.delenv("VSVI_TILES_PER_DAY")
    assert project.run_city(city).failures == []
    assert project.sandbox.stats.requests["tiles"] == len(city.tile_keys)


def test_a_blocked_address_asks_for_no_tile_until_the_block_is_due(project: Project) -> None:
    city, other = project.write_city(), project.write_city("suburb")
    project.sandbox.block.block()
    run = project.run_city(city)
    [message] = [failure for failure in run.failures if "tile_metadata" in failure]
    assert "Mapillary has blocked this network address for tile requests since" in message
    assert attempts(project) == []
    seen = project.sandbox.stats.requests["tiles"]
    assert seen <= WORKERS_OF_TILES, "no more than were under way"
    for again in (city, other):
        assert any("has blocked" in failure for failure in project.run_city(again).failures)
    assert project.sandbox.stats.requests["tiles"] == seen

    project.sandbox.block.lift()
    with project.postgis.transaction() as cursor:
        cursor.execute("UPDATE vsvi.tile_requests SET blocked_until = clock_timestamp()")
    assert project.run_city(city).failures == []
    assert project.sandbox.stats.redirects_followed == 0


# Hostile input


def test_hostile_input_leaves_no_trace_outside_the_data_folder(project: Project) -> None:
    city = project.write_city()
    sparse, garbage, *_ = (city.tile_path(key) for key in city.tile_keys)
    sparse.parent.mkdir(parents=True)
    with sparse.open("wb") as file:
        file.truncate(1_000_000_000)
    garbage.write_bytes(b"<html>Sorry</html>")
    before = files_outside(project)
    project.sandbox.faults = Faults(tiles={Fault.HOSTILE_IDS: 1.0})
    reported: list[str] = []
    run = project.run_city(city, LogProgress(reported.append))
    [message] = [failure for failure in run.failures if "tile_metadata" in failure]
    assert f"{len(city.tile_keys)} tiles could not be fetched" in message
    assert "images whose sequence_id is none" in message
    assert max(map(len, message.splitlines())) < 300
    assert attempts(project) == []
    assert sum("fetched again" in line.lower() for line in reported) == 2, reported

    redirects = {Fault.REDIRECT_TO_HOST: 0.5, Fault.REDIRECT_TO_FILE: 0.5}
    project.sandbox.faults = Faults(graph=redirects, images=redirects, most=1)
    project.run_city(city)
    project.sandbox.faults = Faults()
    assert project.run_city(city).failures == []
    assert not_whole(project, city) == []
    assert files_outside(project) == before
    assert project.sandbox.stats.token_leaks == 0


def files_outside(project: Project) -> dict[Path, int]:
    """Return the files around the data folder, and where the sandbox's hostile ids lead."""
    data_dir = project.settings.data_dir
    paths = [path for path in project.folder.rglob("*") if not path.is_relative_to(data_dir)]
    paths += [*Path("/tmp").glob("escaped*"), *project.folder.parent.glob("escaped*")]
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_the_token_is_written_nowhere(
    project: Project, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    city = project.write_city(num_retries=1)
    project.sandbox.faults = everything_at_once()
    reported: list[str] = []
    project.run_city(city, LogProgress(reported.append))
    project.sandbox.tokens = {"MLY|another"}
    run = project.run_city(city, LogProgress(reported.append), overwrite=True)
    assert any("refuses the token" in failure for failure in run.failures)
    secret = TOKEN.rpartition("|")[2]
    events = [
        serialize_value(entry)
        for run in project.instance.get_runs()
        for entry in project.instance.all_logs(run.run_id)
    ]
    assert len(events) > 50
    written = [*events, *reported, *run.failures, *capfd.readouterr(), caplog.text]
    assert not [text for text in written if secret in text]
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


# Files that changed


def test_what_verification_finds_is_fixed_by_deleting_it_and_running_again(
    project: Project,
) -> None:
    city = project.write_city()
    project.run_city(city)
    flipped, missing, *_ = images = selected_images(project, city)
    data = bytearray(path_of(city, flipped).read_bytes())
    data[len(data) // 2] ^= 1
    path_of(city, flipped).write_bytes(data)
    path_of(city, missing).unlink()
    stranger = path_of(city, flipped).with_name("notes.txt")
    stranger.write_text("mine")
    assert set(differences(city)) == {
        f"{flipped.sequence_id}/{flipped.id}.jpg: other bytes than were downloaded",
        f"{missing.sequence_id}/{missing.id}.jpg: missing",
    }
    path_of(city, flipped).unlink()
    before = project.sandbox.stats.images_served.copy()
    assert project.run_city(city).failures == []
    fetched = project.sandbox.stats.images_served - before
    assert {flipped.id, missing.id} <= fetched.keys()
    assert fetched.total() < len(images)
    assert stranger.read_text() == "mine"
    found = verify_photographs(city.sequences_folder)
    assert (found.differences, found.others) == ([], {".txt": 1})
    sidecar = stranger.with_name("images.geojson")
    sidecar.write_text("{")
    assert [line for line in differences(city) if f"{sidecar}: not a list of images" in line]


# Overwriting


def test_overwriting_replaces_files_only_by_whole_new_ones(project: Project) -> None:
    city = project.write_city()
    project.run_city(city)
    images = selected_images(project, city)
    kept = images[7]
    world, old = project.sandbox.world, project.sandbox.world.picture
    world.picture = lambda image, size: old(image, "new")
    project.sandbox._pictures.clear()
    project.sandbox.faults = Faults(by_image={kept.id: Fault.TRUNCATED})
    [message] = project.run_city(city, overwrite=True).failures
    assert f"image {kept.id}" in message
    assert not_whole(project, city) == [kept.id]
    assert path_of(city, kept).read_bytes() == old(kept, "original")
    assert differences(city) == []


def test_folders_that_stay_unusable_are_reported_at_once(project: Project) -> None:
    city = project.write_city()
    assert project.materialize_metadata(city).success
    folders = [city.sequences_folder / key for key in project.sequences(city)]
    for folder in folders:
        folder.mkdir(parents=True)
        write_sidecar(folder, Sidecar(services="elsewhere"))
    [message] = project.run_city(city).failures
    assert "holds photographs of the services 'elsewhere'" in message
    for folder in folders[1:]:
        (folder / SIDECAR_NAME).unlink()
    [message] = project.run_city(city).failures
    assert "holds photographs of the services 'elsewhere'" in message
    assert attempts(project) == []
    assert all(list(folder.glob("*.jpg")) for folder in folders[1:])
