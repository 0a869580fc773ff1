"""Rules that hold in a city whose data are sound, and what their asset checks report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    MetadataValue,
    TableColumn,
    TableSchema,
)

from vsvi_assets.database.audit import EXAMPLES, WrongRows
from vsvi_assets.orchestration.common import picture, table


@dataclass(frozen=True)
class Rule:
    """A rule that an asset check applies.

    Attributes
    ----------
    asset, name, description
        Of the check.
    severity
        ERROR for what must not be, WARN for what deserves a look.
    tolerated
        The share that may break the rule.
    """

    asset: AssetKey
    name: str
    description: str
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR
    tolerated: float = 0.0

    @property
    def spec(self) -> AssetCheckSpec:
        """The check as Dagster knows it before it runs."""
        return AssetCheckSpec(self.name, asset=self.asset, description=self.description)

    def result(
        self,
        wrong: WrongRows,
        details: Mapping[str, object] | None = None,
        pictures: Mapping[str, bytes] | None = None,
    ) -> AssetCheckResult:
        """Return whether the rule holds, and what breaks it.

        Parameters
        ----------
        details
            Further values that explain it, by label.
        pictures
            PNG or JPEG, by what they show.
        """
        metadata: dict[str, Any] = {"wrong": wrong.count, "of": wrong.of, **(details or {})}
        for name, image in (pictures or {}).items():
            metadata[name] = picture(image, name)
        if wrong.examples:
            metadata["the first of them"] = _table(wrong.examples[:EXAMPLES])
        return AssetCheckResult(
            asset_key=self.asset,
            check_name=self.name,
            passed=wrong.count <= self.tolerated * wrong.of,
            severity=self.severity,
            description=f"{self.description} Wrong: {wrong.count:,} of {wrong.of:,}.",
            metadata=metadata,
        )


def _table(records: Sequence[Mapping[str, object]]) -> MetadataValue:
    # As text: the browser's numbers hold no more than 53 bits of an image's id.
    rows = [
        {name: "" if value is None else str(value) for name, value in record.items()}
        for record in records
    ]
    return table(rows, TableSchema([TableColumn(name, "string") for name in rows[0]]))
