"""A city whose data folder is a real object store keeps every promise of one on disk."""

import hashlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from threading import Thread

import pytest
import requests
from click.testing import CliRunner
from dagster import DagsterRunStatus

from vsvi_assets.city import City, CityFileError
from vsvi_assets.cli import main
from vsvi_assets.database.photographs import rebuild_photographs, take_inventory
from vsvi_assets.database.tables import selected_images_of, selected_sequences
from vsvi_assets.files import DataPath, atomic_write
from vsvi_assets.orchestration.retries import reason
from vsvi_assets.photographs.sidecar import Sidecar, image_path, write_sidecar
from vsvi_assets.photographs.verification import verify_photographs
from vsvi_assets.running.doctor import examine
from vsvi_assets.running.pages import Pages
from vsvi_assets.sandbox import Fault, Faults
from vsvi_assets.settings import Settings
from vsvi_assets.store import address_of, objects_below
from vsvi_assets.views.links import report_link
from vsvi_assets.views.status import city_status, status_lines
from vsvi_assets_tests.object_store import (
    KEY,
    READER,
    READERS_SECRET,
    SECRET,
    ObjectStore,
    Outage,
)
from vsvi_assets_tests.project import Project
from vsvi_assets_tests.running.test_resilience import WORKERS, killed_runs


def photographs(city: City) -> dict[str, str]:
    """Return the SHA-256 of each photograph, by its path below the sequences' folder."""
    folder = city.sequences_folder
    return {
        f"{sequence}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for sequence in sorted(each.name for each in folder.iterdir() if each.is_dir())
        for path in (folder / sequence).iterdir()
        if path.suffix == ".jpg"
    }


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(path: DataPath, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def run(*arguments: str) -> str:
    """Run `vsvi`, and return what it prints."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def use_postgres_instance(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands and other processes find Dagster's storage."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", os.environ["VSVI_POSTGRES_URL"])
    monkeypatch.setenv("DAGSTER_HOME", str(project.folder))
    shutil.copy(Path(__file__).parents[2] / "dagster.yaml", project.folder)


def test_the_same_photographs_as_on_disk_and_each_fetched_once(
    project: Project,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project.folder)
    on_disk = project.write_city("on_disk")
    assert project.run_city(on_disk).success
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VSVI_DATA_DIR", str(object_store.new_folder()))
    passing = project.folder / "passing"
    passing.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(passing))
    before = files_in(project.folder)

    in_store = project.write_city("in_store")
    result = project.run_city(in_store)
    assert result.success
    assert photographs(in_store) == photographs(on_disk) != {}
    assert in_store.selected_image_ids_path.read_bytes() == (
        on_disk.selected_image_ids_path.read_bytes()
    )
    assert files_in(project.folder) - before == {"cities/in_store.json"}
    assert verify_photographs(in_store.sequences_folder).photographs == result.images

    asked = dict(project.sandbox.stats.requests)
    again = project.run_city(in_store)
    assert (again.success, again.images) == (True, 0)
    assert project.sandbox.stats.requests == asked
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err + repr(project.settings)
    assert KEY not in shown.out + shown.err + repr(project.settings)


def test_killed_runs_leave_whole_photographs_and_no_files(
    project_in_store: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, stats = project_in_store, project_in_store.sandbox.stats
    use_postgres_instance(project, monkeypatch)
    city = project.write_city(selection="all")
    project.sandbox.latency = 0.1
    with killed_runs(project) as runs:
        for served in (5, 40, 80):
            process_id = runs.start()
            while stats.images_served.total() < served:
                time.sleep(0.01)
            os.kill(process_id, signal.SIGKILL)
            assert runs.ended() == -signal.SIGKILL
        project.sandbox.latency = 0.0
        runs.start()
        assert runs.ended() == 0
    found = verify_photographs(city.sequences_folder)
    assert (found.differences, found.unlisted) == ([], [])
    assert found.photographs == len(photographs(city)) == 120
    assert stats.images_asked.total() - 120 <= 3 * WORKERS
    # Dagster's own, which belongs to this machine.
    assert {path.name for path in (project.folder / "data").iterdir()} <= {"dagster"}


def test_a_store_that_stops_for_a_while_costs_a_city_nothing(
    project_in_store: Project, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, outage = project_in_store, Outage(object_store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", outage.endpoint)
    city = project.write_city(selection="all")
    assert project.materialize_metadata(city).success
    stats = project.sandbox.stats
    project.sandbox.latency = 0.05

    def stop_for_a_while() -> None:
        while stats.images_served.total() < 40:
            time.sleep(0.01)
        outage.end_service()
        time.sleep(8)
        outage.begin_service()

    stopping = Thread(target=stop_for_a_while)
    stopping.start()
    result = project.run_city(city)
    stopping.join()
    assert (result.failures, result.missing) == ([], 0)
    assert set(stats.images_asked.values()) == {1}
    assert verify_photographs(city.sequences_folder).photographs == 120
    assert [run.status for run in project.instance.get_runs()] == (
        [DagsterRunStatus.SUCCESS] * len(project.instance.get_runs())
    )
    outage.end_service()


def test_a_store_that_refuses_ends_a_run_with_one_sentence(
    project_in_store: Project, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.materialize_metadata(city).success
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READERS_SECRET)
    project.write_city()
    result = project.materialize(
        city, "image_files", partitions=project.sequences(city), raise_on_error=False
    )
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    assert "refuses the keys" in reason(failure)
    assert READER not in reason(failure)
    assert project.sandbox.stats.requests["images"] <= 64


def test_verification_finds_what_changed_and_what_is_missing(project_in_store: Project) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.run_city(city).success
    first, second, *_ = sorted(photographs(city))
    write(city.sequences_folder / first, b"other bytes")
    (city.sequences_folder / second).unlink()

    found = verify_photographs(city.sequences_folder)
    assert [line.partition(": ")[0] for line in found.differences] == [first, second]
    inventory = take_inventory(city, project.postgis)
    assert len(inventory.unread) == 1
    assert sum(map(len, inventory.missing.values())) == 2
    asked = project.sandbox.stats.requests["images"]
    assert project.run_city(city).success
    assert project.sandbox.stats.requests["images"] == asked + 2
    assert not verify_photographs(city.sequences_folder).differences


def test_photographs_that_are_there_are_read_and_not_fetched(project_in_store: Project) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.materialize_metadata(city).success
    world = project.sandbox.world
    for sequence_id, images in selected_images_of(
        project.postgis, city.name, selected_sequences(project.postgis, city)
    ):
        # As a run leaves them that was killed before it wrote what it had.
        write_sidecar(city.sequences_folder / sequence_id, Sidecar(services=city.services))
        for image in images:
            path = image_path(city.sequences_folder / sequence_id, image.id)
            write(path, world.picture(world.images[image.id], "original"))
    inventory = take_inventory(city, project.postgis)
    assert len(inventory.unread) == inventory.selected > 0
    assert project.run_city(city).success
    assert project.sandbox.stats.requests["images"] == 0
    assert take_inventory(city, project.postgis).on_disk == inventory.selected


def test_other_services_photographs_are_left_alone(project_in_store: Project) -> None:
    city = project_in_store.write_city()
    assert project_in_store.materialize_metadata(city).success
    sequence_id = project_in_store.sequences(city)[0]
    foreign = city.sequences_folder / sequence_id / "1.jpg"
    write(foreign, b"of another city")
    write_sidecar(foreign.parent, Sidecar(services="elsewhere"))
    [message] = project_in_store.run_city(city).failures
    assert "holds photographs of the services 'elsewhere'" in message
    assert sorted(path.name for path in foreign.parent.iterdir()) == ["1.jpg", "images.geojson"]


def test_overwriting_replaces_objects_by_whole_new_ones_alone(project_in_store: Project) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.run_city(city).success
    before = photographs(city)
    kept = sorted(before)[7]
    world, old = project.sandbox.world, project.sandbox.world.picture
    world.picture = lambda image, size: old(image, "new")
    project.sandbox._pictures.clear()
    project.sandbox.faults = Faults(by_image={int(Path(kept).stem): Fault.TRUNCATED})
    [message] = project.run_city(city, overwrite=True).failures
    assert f"image {Path(kept).stem}" in message
    after = photographs(city)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] == after[name]] == [kept]
    assert not verify_photographs(city.sequences_folder).differences


def test_orphans_and_records_are_found_in_the_listing(project_in_store: Project) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.run_city(city).success
    before = take_inventory(city, project.postgis)
    write(city.sequences_folder / "orphan-of-another-run" / "1.jpg", b"x")
    write(city.sequences_folder / "of-another-program" / "notes.txt", b"x")
    assert take_inventory(city, project.postgis).orphaned == ["orphan-of-another-run"]
    rebuild_photographs(project.postgis, city)
    assert take_inventory(city, project.postgis).on_disk == before.on_disk


def test_ids_that_fail_are_listed(project_in_store: Project) -> None:
    project = project_in_store
    city = project.write_city(failed_imgid_file="failed.txt")
    assert project.materialize_metadata(city).success
    bad = int(city.selected_image_ids_path.read_text().split()[0])
    project.sandbox.faults = Faults(by_image={bad: Fault.RESET})
    assert not project.run_city(city).success
    assert city.failed_image_ids_path
    assert city.failed_image_ids_path.read_text() == f"{bad}\n"
    project.sandbox.faults = Faults()
    assert project.run_city(city).success
    assert city.failed_image_ids_path.read_text() == ""


def test_every_command_works_on_it(
    project_in_store: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_in_store
    use_postgres_instance(project, monkeypatch)
    city = project.write_city()
    assert project.run_city(city, plan_only=True).success
    result = project.run_city(city)
    assert result.success

    assert "object store: no limit known" in "\n".join(map(str, examine(project.settings)))
    lines = status_lines(city, city_status(city, project.postgis))
    assert str(city.coverage_report_path) in "\n".join(lines)
    assert f"{len(photographs(city)):,} photographs are as they were" in run(
        "status", "town", "--verify"
    )
    run("qgis", "town")
    pictures = f"{project.settings.pages_url}/{address_of(city.sequences_folder)}"
    assert pictures in city.qgis_project_path.read_text(encoding="utf-8")
    run("export", "town", "--format", "gpkg")
    assert (city.folder / "dataset.gpkg").read_bytes().startswith(b"SQLite")
    run("freeze", "town", "--output", str(project.folder / "frozen"))
    frozen = project.folder / "frozen" / "data" / "photographs"
    assert len(list(frozen.glob("*/*.jpg"))) == len(photographs(city))
    refused = CliRunner().invoke(main, ["percept", "town"])
    assert refused.exit_code == 1
    assert "vsvi freeze town" in refused.output


def test_another_worker_fetches_nothing_twice(
    project_in_store: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.run_city(city).success
    asked = dict(project.sandbox.stats.requests)
    # Another machine has the same database, store and city files, and no file of this one.
    os.chdir(tmp_path_factory.mktemp("another-machine"))
    assert project.run_city(city).success
    assert project.sandbox.stats.requests == asked
    assert not list(Path().iterdir())


def test_parts_of_the_streets_that_came_are_kept(
    project_in_store: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, stats = project_in_store, project_in_store.sandbox.stats
    monkeypatch.setenv("VSVI_OVERPASS_AREA", "1")
    monkeypatch.setenv("VSVI_RETRY_DELAY", "3600")
    box = {"west": 5.19, "south": 52.51, "east": 5.22, "north": 52.53}
    city = project.write_city(bounding_box=box)
    project.sandbox.faults = Faults(overpass={Fault.OUT_OF_MEMORY: 0.5}, seed=2)
    assert not project.materialize(city, "street_points", raise_on_error=False).success
    kept = [name for name, _ in objects_below(project.settings.data_dir) if "answers" in name]
    failed = stats.requests["overpass"] - len(kept)
    assert kept
    assert failed
    project.sandbox.faults = Faults()
    assert project.materialize(city, "street_points").success
    names = [name for name, _ in objects_below(project.settings.data_dir) if "answers" in name]
    assert stats.requests["overpass"] == len(names) + failed
    assert not any(".part" in name for name in names)


def test_the_doctor_says_what_is_wrong_with_a_store(
    project_in_store: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finding() -> str:
        [found] = [
            each
            for each in examine(Settings.from_environment())
            if (each.subject == "object store")
        ]
        return str(found)

    data_dir = os.environ["VSVI_DATA_DIR"]
    assert finding().startswith(f"✓ object store       {data_dir}, at http://127.0.0.1:")
    assert not list(objects_below(project_in_store.settings.data_dir))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert "refuses the keys" in finding()
        assert "→ Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in finding()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "✗ object store       http://127.0.0.1:9 cannot be reached" in finding()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", READER)
        patch.setenv("AWS_SECRET_ACCESS_KEY", READERS_SECRET)
        patch.setenv("VSVI_DATA_DIR", "s3://no-such-bucket/data")
        assert "✗ object store       s3://no-such-bucket/data" in finding()


def test_folders_outside_of_the_store_are_refused(project_in_store: Project) -> None:
    for key in ("seqdir", "tile_cache_dir", "failed_imgid_file"):
        for path in ("/photographs", "~/photographs", "../photographs"):
            with pytest.raises(CityFileError, match=f"{key} = .*the object store s3://"):
                project_in_store.write_city(**{key: path})


def test_the_report_and_its_photographs_are_served(project_in_store: Project) -> None:
    project = project_in_store
    city = project.write_city()
    assert project.run_city(city).success
    with Pages(project.settings.data_dir) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            link = report_link(city, server.url)
            assert requests.get(link, timeout=10).content == city.coverage_report_path.read_bytes()
            folder = link.rpartition("/")[0]
            for name, digest in photographs(city).items():
                answer = requests.get(f"{folder}/sequences/{name}", timeout=10)
                assert answer.headers["Content-Type"] == "image/jpeg"
                assert hashlib.sha256(answer.content).hexdigest() == digest
            for hidden in (
                f"{folder}/street_points.geojson",
                f"{folder}/sequences/ATTRIBUTION.txt",
                f"{server.url}/etc/passwd",
                f"{server.url}/",
            ):
                assert requests.get(hidden, timeout=10).status_code == 404
        finally:
            server.shutdown()
            serving.join()
