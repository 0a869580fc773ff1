"""The photographs on disk, sequence by sequence."""

from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice, starmap

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
from vsvi_assets.database.photographs import (
    PhotographRecords,
    forget_lost,
    latest_stored,
    take_inventory,
)
from vsvi_assets.database.tables import selected_images_of
from vsvi_assets.files import DiskGuard
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
from vsvi_assets.orchestration.sequence_partitions import (
    partition_of,
    partitions_per_run,
    sequence_partitions,
    sequences_of,
)
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

    all_else_is_done = True

    def __init__(self, failed: Mapping[int, str], may_pass: bool) -> None:
        self.may_pass = may_pass
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
        backfill_policy=BackfillPolicy.multi_run(partitions_per_run(city, settings)),
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
        sequence_ids = sequences_of(postgis, city, context.partition_keys)

        def partitions() -> Generator[Partition[Sidecar], None, None]:
            expected = Counter(partition_of(city, sequence_id) for sequence_id in sequence_ids)
            unsettled = set(context.partition_keys)
            arrived = defaultdict[str, list[SequenceResult]](list)
            may_pass = False
            inventory = take_inventory(city, postgis, sequence_ids)
            forget_lost(postgis, city, inventory.missing)
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
                        starmap(
                            SequenceJob,
                            selected_images_of(postgis, selected_image_ids.name, sequence_ids),
                        ),
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
                    failed.update(result.found.failed)
                    may_pass |= bool(result.found.failed) and result.may_pass
                    records.add(result.sequence_id, result.sidecar)
                    key = partition_of(city, result.sequence_id)
                    arrived[key].append(result)
                    if len(arrived[key]) == expected[key]:
                        yield _partition(key, arrived.pop(key))
                        unsettled.discard(key)
            if city.quality:
                _note_rejected(context, city, postgis, sequence_ids)
            # Buckets without a sequence, and those whose sequences lost their last selected image
            # since the run was planned.
            for key in sorted(unsettled):
                yield _partition(key, arrived[key])
            if failed:
                raise ImagesFailedError(failed, may_pass)

        city.sequences_folder.mkdir(parents=True, exist_ok=True)
        write_attribution(city.sequences_folder)
        return Output(hand_over(context, partitions()))

    return image_files


def _note_rejected(
    context: AssetExecutionContext, city: City, postgis: Postgis, sequence_ids: Sequence[str]
) -> None:
    """Let those who go on after the run know that the selection has to be made again."""
    rejected = take_inventory(city, postgis, sequence_ids).rejected
    if rejected:
        context.log.info(f"{len(rejected):,} photographs are not good enough for the city file.")
        context.instance.add_run_tags(context.run.run_id, {REJECTED_TAG: str(len(rejected))})


def _partition(key: str, results: Sequence[SequenceResult]) -> Partition[Sidecar]:
    """Return what became of the sequences of a partition."""
    found = [result.found for result in results]
    images = [image for each in found for image in each.images.values()]
    refused = {id_: why.reason for each in found for id_, why in each.refused.items()}
    failed = {id_: why for each in found for id_, why in each.failed.items()}
    metadata = {
        "images": len(images),
        "bytes": sum(image.bytes for image in images),
        "fetched images": sum(result.fetched_images for result in results),
        "fetched bytes": sum(result.fetched_bytes for result in results),
        "not answered": _ids(found, State.NOT_ANSWERED),
        "unavailable": _ids(found, State.UNAVAILABLE),
        "refused": {str(image_id): reason for image_id, reason in refused.items()},
        "failed": {str(image_id): reason for image_id, reason in failed.items()},
    }
    return Partition(key, None, metadata, is_complete=not failed)


def _ids(found: Sequence[Sidecar], state: State) -> list[int]:
    return [
        image_id
        for each in found
        for image_id, absence in each.absent.items()
        if absence.state == state
    ]
