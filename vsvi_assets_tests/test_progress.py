"""A run reports how far it is, and its partitions count as materialized in its course."""

import os
import pty
import re
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from threading import Thread
from typing import TextIO

import pytest
from dagster import DagsterEventType

from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.orchestration import partitions
from vsvi_assets.progress import LogProgress, progress_on
from vsvi_assets.views.plan import SAMPLE_OF_A_KIND
from vsvi_assets_tests.project import Project


@contextmanager
def terminal(columns: int = 120) -> Iterator[tuple[TextIO, list[str]]]:
    """Give a terminal to write to, and a list that gets its lines once it is closed."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, columns))
    chunks: list[bytes] = []
    lines: list[str] = []

    def read() -> None:
        # Linux answers with an error in place of the end once the other side is closed.
        with suppress(OSError):
            while chunk := os.read(reader, 65536):
                chunks.append(chunk)

    reading = Thread(target=read)
    reading.start()
    with os.fdopen(writer, "w") as file:
        yield file, lines
    reading.join()
    os.close(reader)
    lines += re.split(r"[\r\n]+", re.sub(r"\x1b\[\w+", "", b"".join(chunks).decode()))


def images_of_several_runs(project: Project, file: TextIO) -> int:
    """Run a city in several runs, three sequences each; return how many images come after the plan.

    The plan keeps those that it fetches.
    """
    city = project.write_city()
    with progress_on(file) as progress:
        run = project.run_city(city, progress, sequences_per_run=3)
    assert run.success
    assert run.image_runs > 1
    return run.images - 2 * SAMPLE_OF_A_KIND


def test_a_terminal_shows_one_bar_per_asset_over_all_runs(project: Project) -> None:
    with terminal() as (file, screen):
        images = images_of_several_runs(project, file)
    last = {line.split()[0]: line for line in screen if line.strip()}
    assert list(last) == [
        "street_points",
        "tile_metadata",
        "postgis_tables",
        "selected_image_ids",
        "download_plan",
        "image_files",
        "coverage_report",
        "dataset",
    ]
    assert all("100%" in line for line in last.values())
    assert "4 tiles" in last["tile_metadata"]
    assert f"{images} images, " in last["image_files"]
    assert any(re.search(r"\d+ of \d+ images, .* left", line) for line in screen)


def test_figures_are_whole_where_there_is_no_room_for_a_bar() -> None:
    with terminal(columns=80) as (file, screen), progress_on(file) as progress:
        progress.started("town/image_files")
        advance = progress.counting("town/image_files", 29_894, "images", print)
        for _ in range(200):
            time.sleep(0.002)
            advance(750_000)
    lines = [line.rstrip() for line in screen if " of 29,894 images" in line]
    assert re.search(r" 200 of 29,894 images, 150.0 MB, \d+\.\d\d/s, [\d:]+ left$", lines[-1])
    assert all(line.endswith(" left") and len(line) < 80 for line in lines)


@pytest.mark.parametrize("columns", [0, 5])
def test_a_terminal_without_a_width_gets_plain_lines(columns: int) -> None:
    with terminal(columns) as (file, screen), progress_on(file) as progress:
        progress.started("town/street_points")
        advance = progress.counting("town/image_files", 2, "images", print)
        advance(1_000_000)
        advance(1_000_000)
    assert screen[0] == "town/street_points: started"
    assert screen[1].startswith("town/image_files: 2 of 2 images, 2.0 MB, ")


def test_what_is_no_terminal_gets_plain_lines(project: Project) -> None:
    log = StringIO()
    images = images_of_several_runs(project, log)
    assert "town/street_points: started\ntown/street_points: done\n" in log.getvalue()
    assert "town/tile_metadata: 4 of 4 tiles" in log.getvalue()
    assert f"town/image_files: {images} of {images} images" in log.getvalue()
    assert "\r" not in log.getvalue()


def test_a_failed_step_is_not_reported_as_done(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city()
    monkeypatch.setenv("MAPILLARY_TOKEN", "no-such-token")
    log = StringIO()
    with progress_on(log) as progress:
        assert not project.run_city(city, progress).success
    assert "town/tile_metadata: started" in log.getvalue()
    assert "town/tile_metadata: done" not in log.getvalue()


def test_lines_come_at_intervals_with_what_is_left() -> None:
    lines: list[str] = []
    advance = LogProgress(every=0).counting("town/image_files", 4, "images", lines.append)
    for _ in range(4):
        advance(2_000_000)
    assert lines[0].startswith("town/image_files: 1 of 4 images, 2.0 MB, ")
    assert lines[0].endswith(" left")
    assert re.fullmatch(r"town/image_files: 4 of 4 images, 8.0 MB, [\d,.]+ per second", lines[3])

    lines.clear()
    advance = LogProgress(every=60).counting("town/image_files", 4, "images", lines.append)
    for _ in range(4):
        advance()
    assert len(lines) == 1


def test_a_run_reports_to_its_own_log(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    result = project.materialize_images(city)
    images = take_inventory(city, project.postgis).on_disk
    reported = [entry.message for entry in project.instance.all_logs(result.run_id)]
    assert any(f"town/image_files: {images} of {images} images" in message for message in reported)


def test_partitions_are_recorded_in_the_course_of_a_long_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SECONDS_BEFORE_RECORDING", 0)
    monkeypatch.setattr(partitions, "SECONDS_BETWEEN_RECORDS", 0)
    city = project.write_city()
    project.materialize_metadata(city)
    result = project.materialize_images(city)

    recorded = [
        str(event.partition)
        for event in result.all_events
        if event.event_type == DagsterEventType.ASSET_MATERIALIZATION
    ]
    sequences = project.sequences(city)
    half = len(sequences)
    assert sorted(recorded[:half]) == sorted(recorded[half:]) == sorted(sequences)
