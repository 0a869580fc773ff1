"""What leads from one click, or from one tick of a schedule, to all photographs of a city.

Each city has a job, named after the city: the click. It makes the street points, and its runs
carry the tag `vsvi/order`. A city with a `schedule` also has a schedule of that name, stopped
until someone switches it on: it launches that job. The automation condition sensor of the city
goes on from there through the whole graph:

    street points → all tiles → tables, selection, plan; if it fits on the disk
    → the sequences that lack images → coverage report and dataset

Where photographs are not good enough for the city file, the selection is made once more in
between, which leads to others in their place.

What the sensor launches carries the tag too. What someone launches without it, by hand or by
`vsvi materialize`, is followed by nothing: that person is about to do the rest, or has a reason
not to.

Automation conditions are chosen because they alone launch real backfills: the sequences of an
order become one, which one can watch, cancel and retry in the UI, and which the asset's
`BackfillPolicy` cuts into runs. (A backfill holds two partitions or more; a single sequence
comes as a plain run.) And the job is of one asset without partitions, because Dagster launches
such a job at the click, where it asks for partitions otherwise.

Conditions carry no run configuration. That a refresh fetches tiles again is said by the run
tag `vsvi/refresh`, which the assets read; the tag `vsvi/city` bounds the runs of a city in
dagster.yaml.

Which sequences lack images is not decided here: `selected_image_ids` compares its selection
with the disk and sees to it that the partitions' statuses are true.
"""

from collections.abc import Iterable

from dagster import (
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationConditionSensorDefinition,
    DefaultSensorStatus,
    Definitions,
    ScheduleDefinition,
    define_asset_job,
    map_asset_specs,
)

from vsvi_assets.city import City
from vsvi_assets.orchestration.common import (
    CITY_TAG,
    ORDER_TAG,
    REFRESH_TAG,
    REJECTED_TAG,
    asset_key,
    closing_assets,
)

EVALUATION_SECONDS = 30
"""How often a city's conditions are evaluated."""


def build_city_automation(city: City) -> Definitions:
    """Build a city's job, the sensor that goes on after it, and its schedule where it has one."""
    run_tags = {CITY_TAG: city.name, ORDER_TAG: city.name}
    job = define_asset_job(
        city.group,
        AssetSelection.assets(asset_key(city, "street_points")),
        # Not as `run_tags`, which the UI's button leaves out.
        tags=run_tags,
        description=(
            f"Materialize this to get all photographs of {city.name}. It makes the street points; "
            "tiles, tables, selection, plan, photographs and the coverage report follow by "
            "themselves, the photographs as a backfill (Runs → Backfills)."
        ),
    )
    sensor = AutomationConditionSensorDefinition(
        name=f"{city.group}_next_steps",
        target=AssetSelection.groups(city.group),
        run_tags={**run_tags, REFRESH_TAG: city.schedule} if city.schedule else run_tags,
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVALUATION_SECONDS,
        description=(
            f"Goes on after each run of the job {city.group}, up to the coverage report. It "
            "launches nothing by itself."
        ),
    )
    if not city.schedule:
        return Definitions(jobs=[job], sensors=[sensor])
    schedule = ScheduleDefinition(
        name=city.group,
        job=job,
        cron_schedule=city.schedule,
        execution_timezone=city.timezone,
        description=(
            f"Refreshes {city.name}: fetches its tiles again, and downloads the photographs that "
            "are new or missing."
        ),
    )
    return Definitions(jobs=[job], sensors=[sensor], schedules=[schedule])


def with_conditions(city: City, assets: Iterable[AssetsDefinition]) -> list[AssetsDefinition]:
    """Give a city's assets the conditions under which they follow from an order."""
    conditions = {
        asset_key(city, "tile_metadata"): _after_street_points(city),
        asset_key(city, "postgis_tables"): _after_tiles(city),
        asset_key(city, "selected_image_ids"): _in_one_run_with_upstream() | _after_rejections(city)
        if city.quality
        else _in_one_run_with_upstream(),
        asset_key(city, "download_plan"): _in_one_run_with_upstream(),
        asset_key(city, "image_files"): _while_incomplete(city),
        **{asset_key(city, name): _after_all_is_done(city) for name in closing_assets(city)},
    }

    def with_condition(spec: AssetSpec) -> AssetSpec:
        return spec.replace_attributes(automation_condition=conditions.get(spec.key))

    return list(map_asset_specs(with_condition, assets))


def _holds_for(city: City, asset: str, condition: AutomationCondition) -> AutomationCondition:
    return AutomationCondition.asset_matches(asset_key(city, asset), condition)


def _updated_by_order() -> AutomationCondition:
    return AutomationCondition.any_new_update_has_run_tags(tag_keys={ORDER_TAG})


def _after_street_points(city: City) -> AutomationCondition:
    """Run all partitions after the street points of an order.

    When the conditions are evaluated for the first time, nothing counts as new. An order that
    was given before, as the first one of a new project may be, is known by its run.
    """
    by_order = AutomationCondition.executed_with_tags(tag_keys={ORDER_TAG})
    ordered = _holds_for(city, "street_points", AutomationCondition.newly_updated() & by_order)
    ordered_before = _holds_for(
        city,
        "street_points",
        by_order & ~AutomationCondition.missing() & ~AutomationCondition.in_progress(),
    )
    return (
        ordered.since_last_handled().with_label("ordered")
        | (
            AutomationCondition.initial_evaluation()
            & AutomationCondition.missing()
            & ordered_before
        ).with_label("ordered_before")
    ) & ~AutomationCondition.in_progress()


def _after_tiles(city: City) -> AutomationCondition:
    """Run after an order has updated tiles, once all of them are there."""
    return _once_upstream_is_whole(_holds_for(city, "tile_metadata", _updated_by_order()))


def _in_one_run_with_upstream() -> AutomationCondition:
    """Run whenever something upstream runs, in the same run, or after an order updated it."""
    alone = _updated_by_order() & ~AutomationCondition.executed_with_root_target()
    return _once_upstream_is_whole(
        AutomationCondition.any_deps_match(alone | AutomationCondition.will_be_requested())
    )


def _after_rejections(city: City) -> AutomationCondition:
    """Run again once photographs of an order are over some of which are not good enough."""
    rejected = _holds_for(
        city,
        "image_files",
        AutomationCondition.any_new_update_has_run_tags(tag_keys={ORDER_TAG, REJECTED_TAG}),
    )
    busy = _holds_for(city, "image_files", AutomationCondition.in_progress())
    return (
        rejected.since_last_handled().with_label("rejected")
        & ~busy
        & ~AutomationCondition.any_deps_in_progress()
        & ~AutomationCondition.in_progress()
    )


def _once_upstream_is_whole(updated: AutomationCondition) -> AutomationCondition:
    return (
        updated.since_last_handled().with_label("upstream_updated")
        & ~AutomationCondition.any_deps_missing()
        & ~AutomationCondition.any_deps_match(AutomationCondition.execution_failed())
        & ~AutomationCondition.any_deps_in_progress()
        & ~AutomationCondition.in_progress()
    )


def _while_incomplete(city: City) -> AutomationCondition:
    """Run partitions that are missing or failed, once after each selection of an order.

    A selection that someone made by hand since then leads to nothing by itself, nor does one
    whose photographs do not fit on the disk by its plan. Where an order cannot fetch the tiles,
    the selection that is there serves.
    """
    failed = AutomationCondition.execution_failed().newly_true()
    requested = AutomationCondition.newly_requested().since(AutomationCondition.newly_updated())
    # Asked of the tables, which depend on all tiles: photographs have partitions of their own.
    tiles_failed = _holds_for(
        city, "postgis_tables", AutomationCondition.any_deps_match(failed & requested)
    )
    selection = AssetSelection.assets(asset_key(city, "selected_image_ids"))
    selected = AutomationCondition.any_deps_match(_updated_by_order()).allow(selection)
    selected_by_hand = AutomationCondition.any_deps_match(
        AutomationCondition.newly_updated() & ~_updated_by_order()
    ).allow(selection)
    incomplete = (
        AutomationCondition.missing() | AutomationCondition.execution_failed()
    ).with_label("incomplete")
    return (
        (incomplete & (selected | tiles_failed))
        .since(selected_by_hand | AutomationCondition.newly_requested())
        .with_label("incomplete_after_order")
        & incomplete
        & ~AutomationCondition.any_deps_in_progress()
        & AutomationCondition.all_deps_blocking_checks_passed()
        & ~AutomationCondition.in_progress()
    )


def _after_all_is_done(city: City) -> AutomationCondition:
    """Run once everything before is over, well or not, if an order changed any of it.

    At the evaluation that finds something new, the photographs may be asked for. At the next
    one they are in progress.
    """
    busy = AutomationCondition.in_progress() | AutomationCondition.newly_updated()
    upstream_busy = AutomationCondition.any_deps_match(busy).with_label("upstream_busy")
    return (
        AutomationCondition.any_deps_match(_updated_by_order())
        .since_last_handled()
        .with_label("upstream_updated")
        & ~upstream_busy
        & ~_holds_for(city, "download_plan", busy)
        & ~AutomationCondition.in_progress()
    )
