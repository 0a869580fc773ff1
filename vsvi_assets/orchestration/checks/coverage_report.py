"""What must hold for all photographs of a city together, looked at once the report is made."""

from collections.abc import Collection, Iterator

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetPartitionStatus,
    multi_asset_check,
)

from vsvi_assets.city import City
from vsvi_assets.database.audit import WrongRows
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.orchestration.checks.rules import Rule
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.orchestration.sequence_partitions import partition_of, sequence_statuses
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.photographs.states import BELIEVED_AFTER

HOURS = BELIEVED_AFTER.total_seconds() / 3600


def build_coverage_report_checks(city: City) -> AssetChecksDefinition:
    asset = asset_key(city, "coverage_report")
    on_disk = Rule(
        asset,
        "on_disk",
        "Every selected image of the sequences downloaded so far is on disk, as long as when it "
        "was found to be whole, or cannot be fetched. (`vsvi status CITY --verify` reads all "
        "files.)",
    )
    answered = Rule(
        asset,
        "answered",
        "Mapillary's answers leave out no selected image. One that they leave out is asked for "
        f"again by the first run after {HOURS:g} hours, and then counts as unavailable.",
        AssetCheckSeverity.WARN,
    )
    usable = Rule(
        asset,
        "usable",
        "Every selected image that was fetched is a JPEG that can be used.",
        AssetCheckSeverity.WARN,
    )

    @multi_asset_check(
        name=f"{city.group}__coverage_report_checks",
        specs=[on_disk.spec, answered.spec, usable.spec],
    )
    def coverage_report_checks(
        context: AssetCheckExecutionContext, postgis: PostgisResource
    ) -> Iterator[AssetCheckResult]:
        with retry_boundary():
            inventory = take_inventory(city, postgis.database())
            complete = {
                key
                for key, status in sequence_statuses(context.instance, city).items()
                if status == AssetPartitionStatus.MATERIALIZED
            }
            yield on_disk.result(_missing(city, inventory, complete), _details(inventory))
            yield answered.result(_not_answered(inventory))
            yield usable.result(_refused(inventory))

    return coverage_report_checks


def _missing(city: City, inventory: Inventory, complete: Collection[str]) -> WrongRows:
    """Find what is missing of the partitions that count as materialized."""
    wrong = [
        {"sequence": sequence_id, "image": image_id}
        for sequence_id, image_ids in inventory.missing.items()
        if partition_of(city, sequence_id) in complete
        for image_id in image_ids
    ]
    return WrongRows(len(wrong), inventory.selected, wrong)


def _not_answered(inventory: Inventory) -> WrongRows:
    wrong = [
        {
            "image": image_id,
            "not answered since (UTC)": f"{absence.first_asked:%Y-%m-%d %H:%M}",
            "last asked (UTC)": f"{absence.last_asked:%Y-%m-%d %H:%M}",
            "answers": absence.answers,
        }
        for image_id, absence in inventory.not_answered.items()
    ]
    return WrongRows(len(wrong), inventory.selected, wrong)


def _refused(inventory: Inventory) -> WrongRows:
    wrong = [{"image": image_id, "reason": why} for image_id, why in inventory.refused.items()]
    return WrongRows(len(wrong), inventory.selected, wrong)


def _details(inventory: Inventory) -> dict[str, object]:
    return {
        "selected": inventory.selected,
        "on disk": inventory.on_disk,
        "bytes on disk": inventory.bytes,
        "not answered": len(inventory.not_answered),
        "unavailable": len(inventory.unavailable),
        "refused": len(inventory.refused),
        "missing": sum(map(len, inventory.missing.values())),
        "failed at the last attempt": len(inventory.failed),
    }
