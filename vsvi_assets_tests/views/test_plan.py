"""What the photographs will take: reported before they are downloaded, and true afterwards."""

from dataclasses import replace
from itertools import pairwise
from unittest.mock import ANY

import numpy as np
import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, TableMetadataValue

from vsvi_assets.city import City
from vsvi_assets.database.photographs import rebuild_photographs, take_inventory
from vsvi_assets.database.tile_requests import paced_client
from vsvi_assets.photographs.sidecar import SIDECAR_NAME, read_sidecar
from vsvi_assets.sandbox import Fault, Faults
from vsvi_assets.views.plan import (
    SAMPLE_OF_A_KIND,
    DownloadPlan,
    SampleFailedError,
    estimate_bytes,
    make_plan,
    plan_lines,
)
from vsvi_assets_tests.photographs.parts import show
from vsvi_assets_tests.project import Project


def planned(project: Project, city: City) -> DownloadPlan:
    client = paced_client(city, project.settings)
    return make_plan(city, project.postgis, client)


def checks(project: Project, city: City) -> dict[str, AssetCheckEvaluation]:
    """Materialize the plan and return its checks by name."""
    result = project.materialize(city, "download_plan", raise_on_error=False)
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_a_plan_predicts_the_download(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    plan = planned(project, city)

    images = project.sandbox.world.images.values()
    panoramas = sum(image.is_pano for image in images)
    assert plan.selected == len(city.selected_image_ids_path.read_text().split()) == len(images)
    assert plan.sampled == plan.on_disk == 2 * SAMPLE_OF_A_KIND
    assert plan.images == len(images) - plan.on_disk
    assert plan.panoramas == panoramas - SAMPLE_OF_A_KIND
    assert plan.link_requests == 2
    assert plan.bytes_per_second
    assert plan.fits

    sample = take_inventory(city, project.postgis).bytes
    project.materialize_images(city)
    on_disk = take_inventory(city, project.postgis).bytes
    assert plan.bytes + sample == pytest.approx(on_disk, rel=0.05)
    after = planned(project, city)
    assert (after.images, after.bytes, after.on_disk) == (0, 0, plan.selected)
    assert "\n".join(plan_lines(city, after))


def test_no_photograph_is_fetched_twice_for_the_plan(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    plan = planned(project, city)
    asked = dict(project.sandbox.stats.requests)
    assert planned(project, city) == replace(plan, free_bytes=ANY)
    assert project.sandbox.stats.requests == asked

    sampled = list(city.sequences_folder.glob("*/*.jpg"))
    assert len(sampled) == plan.on_disk
    for photograph in sampled:
        record = read_sidecar(photograph.parent).images[int(photograph.stem)]
        assert record.bytes == photograph.stat().st_size
        assert record.lon
    project.materialize_images(city)
    assert set(project.sandbox.stats.images_asked.values()) == {1}


def test_sizes_of_another_image_size_say_nothing(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    before = planned(project, city)
    assert 0 < before.panoramas < SAMPLE_OF_A_KIND
    smaller = project.write_city(selection="all", image_size="256")
    plan = planned(project, smaller)
    assert plan.sampled == SAMPLE_OF_A_KIND + before.panoramas
    assert plan.on_disk == before.on_disk + plan.sampled


def test_images_that_are_gone_take_no_room(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    world = project.sandbox.world
    sizes = [len(world.picture(image, "original")) for image in world.images.values()]
    whole = sum(sizes) / len(sizes)
    for image_id in list(world.images)[::2]:
        del world.images[image_id]
    plan = planned(project, city)
    assert plan.bytes < 0.9 * whole * plan.images


def test_images_that_percept_vsvi_filter_downloaded_take_no_more_room(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    project.materialize_images(city)
    for sidecar in city.sequences_folder.glob(f"*/{SIDECAR_NAME}"):
        sidecar.unlink()
    rebuild_photographs(project.postgis, city)
    asked = dict(project.sandbox.stats.requests)

    plan = planned(project, city)
    assert (plan.images, plan.bytes, plan.on_disk) == (0, 0, plan.selected)
    assert project.sandbox.stats.requests == asked

    lost = next(city.sequences_folder.glob("*/*.jpg"))
    lost.unlink()
    plan = planned(project, city)
    assert (plan.images, plan.sampled, plan.on_disk) == (0, 1, plan.selected)
    assert lost.exists()


def test_images_that_are_not_available_stop_no_plan(project: Project) -> None:
    city = project.write_city(selection="all", num_retries=0)
    project.materialize_metadata(city)
    project.sandbox.faults = Faults(images={Fault.UNAVAILABLE: 1.0})
    with pytest.raises(SampleFailedError, match="503"):
        planned(project, city)
    tried = list(project.sandbox.stats.images_asked)
    kinds = [Fault.EXPIRED, Fault.HTML_PAGE, Fault.TRUNCATED, Fault.RESET, Fault.REDIRECT_TO_FILE]
    project.sandbox.faults = Faults(by_image=dict(zip(tried, kinds, strict=False)))
    plan = planned(project, city)
    assert plan.sampled == len(tried) - len(kinds)
    project.sandbox.faults = Faults(images={Fault.UNAVAILABLE: 1.0})
    assert planned(project, city).bytes == plan.bytes


def test_a_plan_that_does_not_fit_the_disk_is_a_failed_check(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    found = checks(project, city)
    assert all(check.passed for check in found.values())
    assert [name for name, check in found.items() if check.blocking] == ["fits_disk"]

    too_full = project.write_city(required_disk_space=1e9)
    stored = sorted(city.sequences_folder.rglob("*"))
    found = checks(project, too_full)
    assert sorted(city.sequences_folder.rglob("*")) == stored
    assert not any(check.passed for check in found.values())
    assert found["fits_disk"].severity == AssetCheckSeverity.ERROR
    assert "Make room" in str(found["fits_disk"].description)


def test_a_plan_that_may_not_fit_the_disk_is_a_warning(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    plan = planned(project, city)
    usable = (plan.bytes + plan.bytes_high) // 2
    assert plan.bytes < usable < plan.bytes_high
    monkeypatch.setattr(DownloadPlan, "usable_bytes", usable)
    found = checks(project, city)
    assert found["fits_disk"].passed
    assert not found["surely_fits_disk"].passed
    assert found["surely_fits_disk"].severity == AssetCheckSeverity.WARN
    assert "need up to" in str(found["surely_fits_disk"].description)


def test_the_asset_reports_the_plan(project: Project) -> None:
    city = project.write_city(selection="all")
    image = next(iter(project.sandbox.world.images.values()))
    project.sandbox.world.add_images([replace(image, captured_at=0)])
    project.materialize_metadata(city)
    result = project.materialize(city, "download_plan")
    [event] = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["images"].value == planned(project, city).images
    assert str(metadata["capture years"].value).startswith("![capture years](data:image/png")
    by_year = metadata["images by year"]
    assert isinstance(by_year, TableMetadataValue)
    counts = {record.data["year"]: record.data["images"] for record in by_year.records}
    assert "unknown" in counts
    selected = city.selected_image_ids_path.read_text().split()
    assert sum(map(int, map(str, counts.values()))) == len(selected)


def test_a_plan_counts_the_tiles_of_both_sets(project: Project) -> None:
    city = project.write_city(positions="computed")
    project.materialize_metadata(city)
    assert planned(project, city).tile_requests == 2 * len(city.tiles)


def test_the_range_holds_the_true_value_in_nine_of_ten_cases() -> None:
    numbers = np.random.default_rng(0)
    flat = numbers.lognormal(13, 0.4, 10_000).astype(int)
    panoramas = numbers.lognormal(15, 0.3, 2_000).astype(int)
    true = flat.sum() + panoramas.sum()
    held, estimates = 0, []
    for _ in range(300):
        estimate, low, high = estimate_bytes(
            {
                False: (len(flat), numbers.choice(flat, SAMPLE_OF_A_KIND).tolist()),
                True: (len(panoramas), numbers.choice(panoramas, SAMPLE_OF_A_KIND).tolist()),
            }
        )
        assert low < estimate < high
        held += low <= true <= high
        estimates.append(estimate)
    assert 0.8 < held / 300 < 0.95
    assert np.mean(estimates) == pytest.approx(true, rel=0.02)


def test_more_images_take_more_room_and_time() -> None:
    estimates = [estimate_bytes({False: (count, [100, 200, 300])}) for count in (0, 10, 1000)]
    assert estimates[0] == (0, 0, 0)
    for fewer, more in pairwise(estimates):
        assert all(less < greater for less, greater in zip(fewer, more, strict=True))


def test_a_plan_says_what_share_its_limits_reject(project: Project) -> None:
    world = project.sandbox.world
    show(world, lambda image: "good" if image.id % 3 else "dark")
    city = project.write_city(selection="all", quality={"min_brightness": 0.1})
    project.materialize_metadata(city)
    plan = planned(project, city)
    assert plan.quality
    stored = [int(path.stem) for path in city.sequences_folder.glob("*/*.jpg")]
    rejected = sum(image_id % 3 == 0 for image_id in stored)
    assert (plan.quality.photographs, plan.quality.rejected) == (len(stored), rejected)
    assert plan.quality.reasons == {"brightness below 0.1": rejected}
    low, high = plan.quality.share_range
    assert low < 1 / 3 < high
    text = "\n".join(plan_lines(city, plan))
    assert f"{rejected} of {len(stored)} measured photographs ({rejected / len(stored):.0%}" in text
    assert f"about {round(rejected / len(stored) * plan.images)} of those to download" in text


def test_a_plan_says_what_the_rules_left_out(project: Project) -> None:
    city = project.write_city(months=[7], duplicates="exact", prefer="newest")
    project.materialize_metadata(city)
    plan = planned(project, city)
    months, duplicates = plan.removals
    assert (months.rule, months.before) == ("months", len(project.sandbox.world.images))
    assert 0 < months.removed < months.before
    lines = "\n".join(plan_lines(city, plan))
    assert f"7 (civil time): leaves out {months.removed} of {months.before} images" in lines
    assert f"exact: leaves out 0 of {duplicates.before} images" in lines

    without = project.write_city()
    project.materialize(without, "selected_image_ids")
    assert not planned(project, without).removals
