"""Where the city has photographs and where none, as a page to look at."""

import math
from collections.abc import Iterator, Sequence

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetsDefinition,
    MetadataValue,
    Output,
    asset,
)

from vsvi_assets.city import City
from vsvi_assets.database.tables import selected_sequences
from vsvi_assets.files import DataPath
from vsvi_assets.orchestration.checks.coverage_report import PhotographRules
from vsvi_assets.orchestration.columns import COVERAGE_REPORT
from vsvi_assets.orchestration.common import asset_key, identity, picture, table, upstream
from vsvi_assets.orchestration.io_managers.postgis import PostgisSchema
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.orchestration.sequence_partitions import sequence_statuses
from vsvi_assets.photographs.inventory import file_sizes
from vsvi_assets.settings import Settings
from vsvi_assets.views.links import report_link
from vsvi_assets.views.pictures import contact_sheet
from vsvi_assets.views.report import CoverageReport, make_report

THUMBNAILS = 20
"""How many photographs a contact sheet shows at most."""


def build_coverage_report(city: City, settings: Settings) -> AssetsDefinition:
    rules = PhotographRules(city)

    @asset(
        **identity(city, "coverage_report", {"html"}),
        ins=upstream(city, "selected_image_ids"),
        deps=[asset_key(city, "image_files")],
        description=(
            "After step 5. A map of the street points and their photographs: gaps, capture "
            "years, distances, panoramas. One HTML file that opens in any browser, beside the "
            "photographs."
        ),
        metadata={"dagster/column_schema": COVERAGE_REPORT},
        io_manager_key="coverage_report_file",
        check_specs=rules.specs,
    )
    def coverage_report(
        context: AssetExecutionContext, selected_image_ids: PostgisSchema
    ) -> Iterator[Output[str] | AssetCheckResult]:
        with retry_boundary():
            report = make_report(city, selected_image_ids.postgis)
            sequences = selected_sequences(selected_image_ids.postgis, city)
            if shown := _some_photographs(city, sequences):
                sheet = picture(contact_sheet(shown), "contact sheet")
                context.add_asset_metadata({"contact sheet": sheet})
            yield Output(report.html, metadata=_metadata(report, settings.pages_url, city))
            yield from rules.results(report.inventory, sequence_statuses(context.instance, city))

    return coverage_report


def _metadata(
    report: CoverageReport, pages_url: str | None, city: City
) -> dict[str, int | MetadataValue]:
    return {
        "link": MetadataValue.url(report_link(city, pages_url)),
        "street points": report.points,
        "with a photograph": report.on_disk,
        "gaps": report.gaps,
        "not downloaded yet": report.missing,
        "no longer at Mapillary": report.unavailable,
        "photographs": report.images,
        **{
            f"by {name}": table(
                {
                    name: group.name,
                    "street points": group.points,
                    "with a photograph": group.covered_points,
                    "km of street": round(group.kilometres, 2),
                    "km with a photograph": round(group.covered_kilometres, 2),
                }
                for group in groups
            )
            for name, groups in report.groups.items()
            if groups  # none of a year where there is no photograph
        },
    }


def _some_photographs(city: City, sequence_ids: Sequence[str]) -> list[DataPath]:
    """Return a photograph of each of some sequences, taken evenly from all."""
    step = math.ceil(len(sequence_ids) / THUMBNAILS) or 1
    folders = (city.sequences_folder / sequence_id for sequence_id in sequence_ids[::step])
    names = ((folder, sorted(file_sizes(folder))) for folder in folders)
    photographs = (
        next((folder / name for name in each if name.endswith(".jpg")), None)
        for folder, each in names
    )
    return [path for path in photographs if path]
