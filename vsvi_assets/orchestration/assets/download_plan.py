"""What the photographs will take, before any is downloaded."""

from datetime import timedelta

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    MaterializeResult,
    MetadataValue,
    asset,
)

from vsvi_assets.city import City
from vsvi_assets.database.summaries import selected_capture_years
from vsvi_assets.files import NO_LIMIT, gigabytes
from vsvi_assets.orchestration.columns import DOWNLOAD_PLAN
from vsvi_assets.orchestration.common import (
    MAPILLARY_POOL,
    asset_key,
    identity,
    picture,
    table,
    upstream,
)
from vsvi_assets.orchestration.io_managers.postgis import PostgisSchema
from vsvi_assets.orchestration.resources import MapillaryResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.views.pictures import capture_years_chart
from vsvi_assets.views.plan import DownloadPlan, fit_message, make_plan, rejected_text


def build_download_plan(city: City) -> AssetsDefinition:
    @asset(
        **identity(city, "download_plan", {"mapillary"}),
        ins=upstream(city, "selected_image_ids"),
        description=(
            "Before step 5. What the selected photographs will take: room on the disk, hours and "
            "requests, estimated from a few of them."
        ),
        pool=MAPILLARY_POOL,
        metadata={"dagster/column_schema": DOWNLOAD_PLAN},
        check_specs=[
            AssetCheckSpec(
                "fits_disk",
                asset=asset_key(city, "download_plan"),
                description="The photographs fit on the disk, with what has to stay free.",
                blocking=True,
            ),
            AssetCheckSpec(
                "surely_fits_disk",
                asset=asset_key(city, "download_plan"),
                description="They do so where they are as large as they may be.",
            ),
        ],
    )
    @retry_boundary()
    def download_plan(
        context: AssetExecutionContext,
        selected_image_ids: PostgisSchema,
        mapillary: MapillaryResource,
    ) -> MaterializeResult:
        postgis = selected_image_ids.postgis
        with mapillary.client(city) as client:
            plan = make_plan(city, postgis, client)
        years = selected_capture_years(postgis, city)
        metadata = _metadata(plan)
        if plan.selected:
            chart = capture_years_chart(years.flat, years.panoramas, years.unknown)
            metadata["capture years"] = picture(chart, "capture years")
            metadata["images by year"] = table(
                {"year": year, "images": images} for year, images in years.totals.items()
            )
        return MaterializeResult(metadata=metadata, check_results=_fits_disk(city, plan))

    return download_plan


def _metadata(plan: DownloadPlan) -> dict[str, MetadataValue]:
    def seconds(bytes_: int) -> str:
        return str(timedelta(seconds=round(plan.seconds(bytes_))))

    requests, corrections = plan.tile_requests, plan.corrections
    rows = [
        ("images to download", f"{plan.images:,}", f"of {plan.selected:,} selected"),
        ("panoramas among them", f"{plan.panoramas:,}", ""),
        *(
            [
                ("rejected of the sample", f"{plan.quality.rejected:,}", rejected_text(plan)),
                ("measured", f"{plan.quality.photographs:,}", plan.quality.summary()),
            ]
            if plan.quality
            else []
        ),
        (
            "room",
            gigabytes(plan.bytes),
            f"{gigabytes(plan.bytes_low)} to {gigabytes(plan.bytes_high)}, from the sizes of "
            f"{plan.sampled} images",
        ),
        (
            "free on the disk",
            NO_LIMIT if plan.free_bytes is None else gigabytes(plan.free_bytes),
            ""
            if plan.free_bytes is None
            else f"{gigabytes(plan.required_free_bytes)} of it to stay free",
        ),
        (
            "time (h:mm:ss)",
            seconds(plan.bytes),
            f"{seconds(plan.bytes_low)} to {seconds(plan.bytes_high)}, at the rate of the sample",
        ),
        ("requests for links", f"{plan.link_requests:,}", "at most 10,000 per minute are allowed"),
        ("tile requests of a refresh", f"{requests:,}", plan.tile_state.summary(requests)),
        *(
            [("heading requests of a refresh", f"{corrections.heading_requests:,}", plan.headings)]
            if corrections and plan.headings
            else []
        ),
    ]
    return {
        "plan": table(
            ({"what": what, "how much": much, "note": note} for what, much, note in rows),
            DOWNLOAD_PLAN,
        ),
        "images": MetadataValue.int(plan.images),
        "panoramas": MetadataValue.int(plan.panoramas),
        "gigabytes": MetadataValue.float(round(plan.bytes / 1e9, 3)),
        "hours": MetadataValue.float(round(plan.seconds(plan.bytes) / 3600, 3)),
    }


def _fits_disk(city: City, plan: DownloadPlan) -> list[AssetCheckResult]:
    return [
        AssetCheckResult(
            check_name=name,
            passed=fits,
            severity=severity,
            description=fit_message(city, plan, needed, fits),
            metadata={"needed (bytes)": bytes_}
            | ({} if plan.usable_bytes is None else {"usable (bytes)": plan.usable_bytes}),
        )
        for name, fits, severity, bytes_, needed in (
            ("fits_disk", plan.fits, AssetCheckSeverity.ERROR, plan.bytes, gigabytes(plan.bytes)),
            (
                "surely_fits_disk",
                plan.surely_fits,
                AssetCheckSeverity.WARN,
                plan.bytes_high,
                f"up to {gigabytes(plan.bytes_high)}",
            ),
        )
    ]
