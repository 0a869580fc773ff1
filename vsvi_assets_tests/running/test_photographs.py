"""What becomes of photographs that are not available, over several runs of a city."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from vsvi_assets.city import City
from vsvi_assets.database.photographs import rebuild_photographs, take_inventory
from vsvi_assets.mapillary.pacing import TileState
from vsvi_assets.photographs.sidecar import Sidecar, read_sidecar, write_sidecar
from vsvi_assets.photographs.states import Absence
from vsvi_assets.sandbox import Faults
from vsvi_assets.views.status import city_status, status_lines
from vsvi_assets_tests.project import Project

NEW_YEAR, DAY_AFTER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def city(project: Project) -> City:
    """A city of which the plan and its sample are made."""
    city = project.write_city(selection="all")
    assert project.run_city(city, plan_only=True).success
    return city


def folder_of(project: Project, city: City, image_id: int) -> Path:
    return city.sequences_folder / project.sandbox.world.images[image_id].sequence_id


def set_absence(project: Project, city: City, image_id: int, absence: Absence) -> None:
    """Let an image have been left out by earlier answers."""
    folder = folder_of(project, city, image_id)
    write_sidecar(folder, read_sidecar(folder).updated(Sidecar(absent={image_id: absence})))
    rebuild_photographs(project.postgis, city)


def test_an_outage_marks_no_image_as_gone_and_the_run_can_be_repeated(
    project: Project, city: City
) -> None:
    project.sandbox.faults = Faults(gone=1.0)
    run = project.run_city(city)
    assert any("outage" in failure for failure in run.failures)
    assert "was there already" not in "\n".join(run.lines())
    inventory = take_inventory(city, project.postgis)
    assert (inventory.unavailable, inventory.not_answered) == ([], {})

    project.sandbox.faults = Faults()
    run = project.run_city(city)
    assert run.success
    inventory = take_inventory(city, project.postgis)
    assert inventory.on_disk == inventory.selected


def test_an_image_is_asked_for_again_when_it_is_due_and_on_demand(
    project: Project, city: City
) -> None:
    missing = take_inventory(city, project.postgis).missing
    gone = next(ids[0] for ids in missing.values())
    project.sandbox.faults = Faults(gone_ids=frozenset({gone}))
    run = project.run_city(city)
    assert run.success
    assert any("check answered" in line for line in run.lines())
    lines = status_lines(city, city_status(city, project.postgis))
    assert any(f"{gone} not answered since" in line for line in lines)

    asked = project.sandbox.stats.graph_ids_asked
    before = asked.copy()
    project.run_city(city)
    assert not asked - before

    set_absence(project, city, gone, Absence(NEW_YEAR, NEW_YEAR))
    project.run_city(city)
    assert (asked - before)[gone] == 2
    assert take_inventory(city, project.postgis).unavailable == [gone]

    set_absence(project, city, gone, Absence(NEW_YEAR, DAY_AFTER, 2))
    project.sandbox.faults = Faults()
    before = asked.copy()
    project.run_city(city)
    assert not asked - before
    run = project.run_city(city, recheck_unavailable=True)
    assert (asked - before) == {gone: 1}
    inventory = take_inventory(city, project.postgis)
    assert inventory.on_disk == inventory.selected


def test_one_bad_file_takes_no_photograph_of_another_sequence(project: Project) -> None:
    city = project.write_city(selection="all")
    image = next(iter(project.sandbox.world.images.values()))
    folder = folder_of(project, city, image.id)
    folder.mkdir(parents=True)
    (folder / f"{image.id}.jpg").symlink_to(f"/not/mounted/{image.id}.jpg")
    run = project.run_city(city)
    assert any("is a link to /not/mounted" in failure for failure in run.failures)
    assert "was there already" not in "\n".join(run.lines())
    inventory = take_inventory(city, project.postgis)
    assert inventory.failed.keys() == {image.id}
    assert inventory.on_disk == inventory.selected - 1
    lines = status_lines(city, city_status(city, project.postgis))
    assert any("is a link to /not/mounted" in line for line in lines)


def test_the_status_says_that_tiles_are_blocked(project: Project, city: City) -> None:
    state = TileState(
        per_minute=40, per_day=50_000, left_today=49_000, blocked_since=NEW_YEAR,
        blocked_until=DAY_AFTER, block_reason="302 to the login page", is_blocked=True,
    )  # fmt: skip
    lines = status_lines(city, city_status(city, project.postgis), state)
    (line,) = [line for line in lines if "tile requests" in line]
    assert "blocked by Mapillary since 2026-01-01" in line
    assert "302 to the login page" in line
