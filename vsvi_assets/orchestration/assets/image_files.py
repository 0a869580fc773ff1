"""The photographs on disk, sequence by sequence."""

from collections.abc import Generator, Iterator, Mapping, Sequence
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
from vsvi_assets.database.tables import SelectedImage, selected_images_of
from vsvi_assets.files import DiskGuard, update_lines
from vsvi_assets.orchestration.columns import SIDECAR_FILE
from vsvi_assets.orchestration.common import MAPILLARY_POOL, Fetch, asset_key, identity, upstream
from vsvi_assets.orchestration.io_managers.postgis import PostgisSchema
from vsvi_assets.orchestration.partitions import Partition, hand_over
from vsvi_assets.orchestration.resources import MapillaryResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.orchestration.sequence_partitions import sequence_partitions
from vsvi_assets.photographs.attribution import write_attribution
from vsvi_assets.photographs.downloads import SequenceJob, SequenceResult, download_sequences
from vsvi_assets.photographs.inventory import take_inventory
from vsvi_assets.photographs.sidecar import ImageRecord, Sidecar
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
            "with an `images.geojson` beside them that tells what they are."
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
        selected: dict[str, list[SelectedImage]] = {}
        failed: dict[int, str] = {}

        def jobs() -> Iterator[SequenceJob]:
            for sequence_id, images in selected_images_of(
                selected_image_ids.postgis, selected_image_ids.name, context.partition_keys
            ):
                selected[sequence_id] = images
                yield SequenceJob(sequence_id, [image.id for image in images])

        def partitions() -> Generator[Partition[Sidecar], None, None]:
            without_selection = set(context.partition_keys)
            inventory = take_inventory(city, selected_image_ids.postgis, context.partition_keys)
            for result in download_sequences(
                mapillary.client(city),
                jobs(),
                city.sequences_folder,
                size=city.image_size,
                guard=DiskGuard(city.sequences_folder, city.required_free_bytes),
                overwrite=config.overwrite,
                settled=progress.counting(
                    context.asset_key.to_user_string(),
                    inventory.selected if config.overwrite else inventory.missing_images,
                    "images",
                    context.log.info,
                ),
            ):
                without_selection.discard(result.sequence_id)
                failed.update(result.failed)
                sidecar = _sidecar(result, selected.pop(result.sequence_id))
                yield Partition(
                    result.sequence_id, sidecar, _metadata(result), is_complete=not result.failed
                )
                _note_failed_ids(city, result)
            # Sequences that lost their last selected image since the run was planned.
            for sequence_id in without_selection:
                yield Partition(sequence_id, None, {"images": 0})
            if failed:
                raise ImagesFailedError(failed)

        city.sequences_folder.mkdir(parents=True, exist_ok=True)
        write_attribution(city.sequences_folder)
        return Output(hand_over(context, partitions()))

    return image_files


def _sidecar(result: SequenceResult, selected: Sequence[SelectedImage]) -> Sidecar:
    """Join what was downloaded with what is known of the images."""
    known = {image.id: image for image in selected}
    records = {}
    for file in result.images:
        image = known[file.id]
        records[file.id] = ImageRecord(
            id=file.id,
            lon=image.lon,
            lat=image.lat,
            captured_at=image.captured_at,
            compass_angle=image.compass_angle,
            is_pano=image.is_pano,
            creator=file.creator,
            width=file.width,
            height=file.height,
            bytes=file.bytes,
            sha256=file.sha256,
        )
    return Sidecar(records, set(result.unavailable), result.failed)


def _metadata(result: SequenceResult) -> dict[str, object]:
    fetched = [image.bytes for image in result.images if image.fetched]
    return {
        "images": len(result.images),
        "bytes": sum(image.bytes for image in result.images),
        "fetched images": len(fetched),
        "fetched bytes": sum(fetched),
        "unavailable": result.unavailable,
        "failed": {str(image_id): why for image_id, why in result.failed.items()},
    }


def _note_failed_ids(city: City, result: SequenceResult) -> None:
    if city.failed_image_ids_path:
        update_lines(
            city.failed_image_ids_path,
            added=map(str, result.failed),
            removed=map(str, [*(image.id for image in result.images), *result.unavailable]),
        )
