"""The photographs on disk, sequence by sequence."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    Output,
    ResourceParam,
    asset,
)

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import PhotographRecords, latest_stored, take_inventory
from vsvi_assets.database.tables import selected_images_of
from vsvi_assets.files import DiskGuard, update_lines
from vsvi_assets.orchestration.columns import SIDECAR_FILE
from vsvi_assets.orchestration.common import (
    MAPILLARY_POOL,
    REJECTED_TAG,
    Fetch,
    asset_key,
    began,
    identity,
    upstream,
)
from vsvi_assets.orchestration.io_managers.postgis import PostgisSchema
from vsvi_assets.orchestration.partitions import Partition, hand_over
from vsvi_assets.orchestration.resources import MapillaryResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.orchestration.sequence_partitions import sequence_partitions
from vsvi_assets.photographs.attribution import write_attribution
from vsvi_assets.photographs.downloads import (
    MAX_WITNESSES,
    SequenceJob,
    SequenceResult,
    download_sequences,
)
from vsvi_assets.photographs.sidecar import Sidecar
from vsvi_assets.photographs.states import State
from vsvi_assets.progress import Progress
from vsvi_assets.settings import Settings

REASONS_SHOWN = 5


class ImagesFailedError(Exception):
    """Images that could not be downloaded, after everything else was."""

    may_pass = True
    all_else_is_done = True

    def __init__(self, failed: Mapping[int, str]) -> None:
        reasons = "\n".join(
            f"image {id_}: {why}" for id_, why in islice(failed.items(), REASONS_SHOWN)
        )
        super().__init__(
            f"{len(failed)} images could not be downloaded; all others were. Run it again to ask "
            f"for these alone. The first reasons:\n{reasons}"
        )


def build_image_files(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "image_files", {"mapillary", "jpeg"}),
        ins=upstream(city, "selected_image_ids"),
        # So that what is launched with the plan waits for it, and stops where it does not fit.
        deps=[asset_key(city, "download_plan")],
        description=(
            "Step 5. The selected photographs, as `<seqdir>/<sequence_id>/<image_id>.jpg`, "
            "with an `images.geojson` beside them that describes them."
        ),
        metadata={"dagster/column_schema": SIDECAR_FILE},
        partitions_def=sequence_partitions(city),
        backfill_policy=BackfillPolicy.multi_run(settings.sequences_per_run),
        io_manager_key="sequence_folders",
        pool=MAPILLARY_POOL,
    )
    @retry_boundary()
    def image_files(
        context: AssetExecutionContext,
        config: Fetch,
        selected_image_ids: PostgisSchema,
        mapillary: MapillaryResource,
        progress: ResourceParam[Progress],
    ) -> Output:
        postgis, failed = selected_image_ids.postgis, dict[int, str]()

        def jobs() -> Iterator[SequenceJob]:
            for sequence_id, images in selected_images_of(
                postgis, selected_image_ids.name, context.partition_keys
            ):
                yield SequenceJob(sequence_id, images)

        def partitions() -> Generator[Partition[Sidecar], None, None]:
            without_selection = set(context.partition_keys)
            inventory = take_inventory(city, postgis, context.partition_keys)
            settled = progress.counting(
                context.asset_key.to_user_string(),
                inventory.selected if config.overwrite else inventory.pending_images,
                "images",
                context.log.info,
            )
            with (
                mapillary.client(city) as client,
                closing(
                    download_sequences(
                        client,
                        jobs(),
                        city.sequences_folder,
                        size=city.image_size,
                        services=city.services,
                        guard=DiskGuard(city.sequences_folder, city.required_free_bytes),
                        fetched_before=began(context) if config.overwrite else None,
                        asked_before=began(context) if config.recheck_unavailable else None,
                        witnesses=latest_stored(postgis, city, MAX_WITNESSES),
                        measures_quality=city.quality is not None,
                        settled=settled,
                    )
                ) as results,
                PhotographRecords(postgis, city) as records,
            ):
                for result in results:
                    without_selection.discard(result.sequence_id)
                    failed.update(result.found.failed)
                    records.add(result.sequence_id, result.sidecar)
                    yield Partition(
                        result.sequence_id,
                        None,
                        _metadata(result),
                        is_complete=not result.found.failed,
                    )
                    _note_failed_ids(city, result)
            if city.quality:
                _note_rejected(context, city, postgis)
            # Sequences that lost their last selected image since the run was planned.
            for sequence_id in without_selection:
                yield Partition(sequence_id, None, {"images": 0})
            if failed:
                raise ImagesFailedError(failed)

        city.sequences_folder.mkdir(parents=True, exist_ok=True)
        write_attribution(city.sequences_folder)
        return Output(hand_over(context, partitions()))

    return image_files


def _note_rejected(context: AssetExecutionContext, city: City, postgis: Postgis) -> None:
    """Let those who go on after the run know that the selection has to be made again."""
    rejected = take_inventory(city, postgis, context.partition_keys).rejected
    if rejected:
        context.log.info(f"{len(rejected):,} photographs are not good enough for the city file.")
        context.instance.add_run_tags(context.run.run_id, {REJECTED_TAG: str(len(rejected))})


def _metadata(result: SequenceResult) -> dict[str, object]:
    found = result.found
    return {
        "images": len(found.images),
        "bytes": sum(image.bytes for image in found.images.values()),
        "fetched images": result.fetched_images,
        "fetched bytes": result.fetched_bytes,
        "not answered": _ids(found, State.NOT_ANSWERED),
        "unavailable": _ids(found, State.UNAVAILABLE),
        "refused": {str(image_id): why.reason for image_id, why in found.refused.items()},
        "failed": {str(image_id): why for image_id, why in found.failed.items()},
    }


def _ids(found: Sidecar, state: State) -> list[int]:
    return [image_id for image_id, absence in found.absent.items() if absence.state == state]


def _note_failed_ids(city: City, result: SequenceResult) -> None:
    if city.failed_image_ids_path:
        failed = result.found.failed
        update_lines(
            city.failed_image_ids_path,
            added=map(str, failed),
            removed=map(str, result.found.ids - failed.keys()),
        )
