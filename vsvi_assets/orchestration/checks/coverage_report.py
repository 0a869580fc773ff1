"""What must hold for all photographs of a city together, found as the report is made."""

from collections.abc import Collection, Mapping, Sequence

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec, AssetPartitionStatus

from vsvi_assets.city import City
from vsvi_assets.database.audit import WrongRows
from vsvi_assets.orchestration.checks.rules import Rule
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.sequence_partitions import partition_of
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.photographs.states import BELIEVED_AFTER

HOURS = BELIEVED_AFTER.total_seconds() / 3600


class PhotographRules:
    """The rules of the photographs, applied to the inventory that the report is made of."""

    def __init__(self, city: City) -> None:
        asset = asset_key(city, "coverage_report")
        self._city = city
        self._on_disk = Rule(
            asset,
            "on_disk",
            "Every selected image of the sequences downloaded so far is on disk, as long as when "
            "it was found to be whole, or cannot be fetched. (`vsvi status CITY --verify` reads "
            "all files.)",
        )
        self._answered = Rule(
            asset,
            "answered",
            "Mapillary's answers leave out no selected image. One that they leave out is asked "
            f"for again by the first run after {HOURS:g} hours, and then counts as unavailable.",
            AssetCheckSeverity.WARN,
        )
        self._usable = Rule(
            asset,
            "usable",
            "Every selected image that was fetched is a JPEG that can be used.",
            AssetCheckSeverity.WARN,
        )

    @property
    def specs(self) -> Sequence[AssetCheckSpec]:
        """The checks as Dagster knows them before they run."""
        return [rule.spec for rule in (self._on_disk, self._answered, self._usable)]

    def results(
        self, inventory: Inventory, statuses: Mapping[str, AssetPartitionStatus | None]
    ) -> Sequence[AssetCheckResult]:
        """Return what the checks found; `statuses` are those of the partitions of sequences."""
        complete = {
            key for key, status in statuses.items() if status == AssetPartitionStatus.MATERIALIZED
        }
        return [
            self._on_disk.result(_missing(self._city, inventory, complete), _details(inventory)),
            self._answered.result(_not_answered(inventory)),
            self._usable.result(_refused(inventory)),
        ]


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
