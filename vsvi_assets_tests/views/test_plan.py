"""What the photographs will take: told before they are downloaded, and true afterwards."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, TableMetadataValue

from vsvi_assets.city import City
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.mapillary.errors import TransientError
from vsvi_assets.orchestration.resources import MapillaryResource
from vsvi_assets.photographs.sidecar import SIDECAR_NAME
from vsvi_assets.sandbox import Fault, Faults
from vsvi_assets.views.plan import (
    SAMPLE_OF_A_KIND,
    DownloadPlan,
    estimate_bytes,
    make_plan,
    plan_lines,
)
from vsvi_assets_tests.project import Project


def planned(project: Project, city: City) -> DownloadPlan:
    client = MapillaryResource.from_settings(project.settings).client(city)
    return make_plan(city, project.postgis, client)


def checks(project: Project, city: City) -> dict[str, AssetCheckEvaluation]:
    """Materialize the plan and return its checks by name."""
    result = project.materialize(city, "download_plan", raise_on_error=False)
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_a_plan_foretells_the_download(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    plan = planned(project, city)

    world = project.sandbox.world
    assert plan.images == plan.selected == len(city.selected_image_ids_path.read_text().split())
    assert plan.panoramas == sum(image.is_pano for image in world.images.values())
    assert plan.sampled == 2 * SAMPLE_OF_A_KIND
    assert plan.link_requests == 3
    assert plan.bytes_per_second
    assert plan.fits

    project.materialize_images(city)
    on_disk = take_inventory(city, project.postgis).bytes
    assert plan.bytes == pytest.approx(on_disk, rel=0.05)
    after = planned(project, city)
    assert (after.images, after.bytes, after.on_disk) == (0, 0, plan.images)
    assert "\n".join(plan_lines(city, after))


def test_the_sample_is_fetched_once(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    plan = planned(project, city)
    asked = dict(project.sandbox.stats.requests)
    assert planned(project, city).bytes == plan.bytes
    assert project.sandbox.stats.requests == asked

    smaller = project.write_city(image_size="256")
    planned(project, smaller)
    assert project.sandbox.stats.requests != asked


def test_images_that_are_gone_take_no_room(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    whole = planned(project, city)
    for image_id in list(project.sandbox.world.images)[::2]:
        del project.sandbox.world.images[image_id]
    (city.folder / "image_sizes.json").unlink()
    assert planned(project, city).bytes < 0.9 * whole.bytes


def test_images_that_percept_vsvi_filter_downloaded_take_no_more_room(project: Project) -> None:
    city = project.write_city(selection="all")
    project.materialize_metadata(city)
    project.materialize_images(city)
    for sidecar in city.sequences_folder.glob(f"*/{SIDECAR_NAME}"):
        sidecar.unlink()
    asked = dict(project.sandbox.stats.requests)

    plan = planned(project, city)
    assert (plan.images, plan.bytes, plan.on_disk) == (0, 0, plan.selected)
    assert project.sandbox.stats.requests == asked

    lost = next(city.sequences_folder.glob("*/*.jpg"))
    lost.unlink()
    plan = planned(project, city)
    assert (plan.images, plan.sampled, plan.on_disk) == (1, 1, plan.selected - 1)


def test_images_that_cannot_be_had_stop_no_plan(project: Project) -> None:
    city = project.write_city(selection="all", num_retries=0)
    project.materialize_metadata(city)
    whole = planned(project, city)
    sampled = list(project.sandbox.stats.images_asked)
    (city.folder / "image_sizes.json").unlink()
    kinds = [Fault.EXPIRED, Fault.HTML_PAGE, Fault.TRUNCATED, Fault.RESET, Fault.REDIRECT_TO_FILE]
    project.sandbox.faults = Faults(by_image=dict(zip(sampled, kinds, strict=False)))
    plan = planned(project, city)
    assert plan.sampled == len(sampled) - len(kinds)
    assert plan.bytes == pytest.approx(whole.bytes, rel=0.05)

    project.sandbox.faults = Faults(images={Fault.UNAVAILABLE: 1.0})
    assert planned(project, city).bytes == plan.bytes
    (city.folder / "image_sizes.json").unlink()
    with pytest.raises(TransientError, match="503"):
        planned(project, city)


def test_a_plan_that_does_not_fit_the_disk_is_a_failed_check(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    found = checks(project, city)
    assert all(check.passed for check in found.values())
    assert [name for name, check in found.items() if check.blocking] == ["fits_disk"]

    too_full = project.write_city(required_disk_space=1e9)
    found = checks(project, too_full)
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


def test_the_asset_tells_the_plan(project: Project) -> None:
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
    assert sum(map(int, map(str, counts.values()))) == metadata["images"].value


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
