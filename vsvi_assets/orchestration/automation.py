"""What runs by itself: a city's refresh, from a tick of its schedule to new photographs.

Each city with a `schedule` has one automation condition sensor, named after the city and
stopped until someone switches it on. It leads through the whole graph:

    tick → street points and all tiles → tables → selection → plan, if it fits on the disk
    → the sequences that lack images → coverage report

Automation conditions are chosen because they alone launch real backfills: the sequences of a
refresh become one, which one can watch, cancel and retry in the UI, and which the asset's
`BackfillPolicy` cuts into runs. A schedule can only request single runs: with its tags for a
range of partitions it would have to cut the ranges itself, and no backfill would hold them
together. (A backfill holds two partitions or more; a single sequence comes as a plain run.)

Conditions carry no run configuration. That a refresh fetches tiles anew is told by the run
tag `vsvi/refresh`, which the assets read; the tag `vsvi/city` bounds the runs of a city in
dagster.yaml.

Which sequences lack images is no business of the conditions: `selected_image_ids` compares
its selection with the disk and sees to it that the partitions' statuses tell the truth.
"""

from collections.abc import Iterable

from dagster import (
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationConditionSensorDefinition,
    DefaultSensorStatus,
    map_asset_specs,
)

from vsvi_assets.city import City
from vsvi_assets.orchestration.common import CITY_TAG, REFRESH_TAG, asset_key

EVALUATION_SECONDS = 30
"""How often a city's conditions are evaluated."""


def with_conditions(city: City, assets: Iterable[AssetsDefinition]) -> list[AssetsDefinition]:
    """Give a city's assets the conditions under which they run by themselves.

    A city without a schedule gets none.
    """
    if city.schedule is None:
        return list(assets)
    conditions = {
        asset_key(city, "image_files"): _once_a_tick_while_incomplete(city, city.schedule),
        asset_key(city, "coverage_report"): _after_all_is_done(),
    }
    refreshed = _once_a_tick(city.schedule, city.timezone)

    def with_condition(spec: AssetSpec) -> AssetSpec:
        return spec.replace_attributes(
            automation_condition=conditions.get(spec.key, refreshed),
        )

    return list(map_asset_specs(with_condition, assets))


def build_refresh_sensor(city: City) -> AutomationConditionSensorDefinition:
    """Build the switch of a city with a schedule."""
    assert city.schedule
    return AutomationConditionSensorDefinition(
        name=city.group,
        target=AssetSelection.groups(city.group),
        run_tags={CITY_TAG: city.name, REFRESH_TAG: city.schedule},
        default_status=DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=EVALUATION_SECONDS,
        description=(
            f"Refreshes {city.name} by the schedule {city.schedule} ({city.timezone}): fetches its "
            "tiles anew, and downloads the photographs that are new or missing."
        ),
    )


def _once_a_tick(schedule: str, timezone: str) -> AutomationCondition:
    """Run after each tick, once everything upstream ran since that tick."""
    return AutomationCondition.on_cron(schedule, timezone) & ~AutomationCondition.in_progress()


def _after_all_is_done() -> AutomationCondition:
    """Run once everything upstream is over, if anything there is new."""
    return (
        AutomationCondition.any_deps_updated().since_last_handled()
        & ~AutomationCondition.any_deps_in_progress()
        & ~AutomationCondition.in_progress()
    )


def _once_a_tick_while_incomplete(city: City, schedule: str) -> AutomationCondition:
    """Run partitions that are missing or failed, once after the refreshed selection of each tick.

    A selection that someone made by hand leads to nothing by itself: that person is about to
    download what it takes, or has a reason not to. Neither does one whose photographs do not
    fit on the disk by its plan.
    """
    tick = AutomationCondition.cron_tick_passed(schedule, city.timezone)
    selection = AssetSelection.assets(asset_key(city, "selected_image_ids"))
    incomplete = AutomationCondition.missing() | AutomationCondition.execution_failed()
    refreshed = AutomationCondition.any_new_update_has_run_tags(tag_keys={REFRESH_TAG})
    made_by_hand = AutomationCondition.newly_updated() & ~refreshed
    selection_is_new = AutomationCondition.any_deps_match(
        refreshed.since(tick | made_by_hand)
    ).allow(selection)
    return (
        incomplete.with_label("incomplete")
        & selection_is_new.with_label("selection_refreshed_since_tick")
        & ~AutomationCondition.any_deps_in_progress()
        & AutomationCondition.all_deps_blocking_checks_passed()
        & ~AutomationCondition.in_progress()
        & ~AutomationCondition.newly_requested().since(tick).with_label("requested_since_tick")
    )
