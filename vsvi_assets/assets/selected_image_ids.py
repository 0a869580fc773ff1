"""The images to download, and the sequences they belong to."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from dagster import AssetExecutionContext, AssetsDefinition, Output, asset

from vsvi_assets.assets.common import identity, service_retry, upstream
from vsvi_assets.assets.sequence_partitions import update_sequences
from vsvi_assets.city import City
from vsvi_assets.failures import explained
from vsvi_assets.files import atomic_write
from vsvi_assets.inventory import take_inventory
from vsvi_assets.io_managers.postgis import PostgisSchema
from vsvi_assets.postgis import NewTable
from vsvi_assets.settings import Settings
from vsvi_assets.tables import select_images, selected_images_table


def build_selected_image_ids(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "selected_image_ids", {"postgres"}),
        ins=upstream(city, "postgis_tables"),
        description=_description(city),
        io_manager_key="postgis_tables",
        retry_policy=service_retry(settings),
    )
    def selected_image_ids(
        context: AssetExecutionContext, postgis_tables: PostgisSchema
    ) -> Iterator[Output[Sequence[NewTable]]]:
        with explained(city):
            selection = select_images(postgis_tables.postgis, city)
            image_ids = pc.unique(selection["image_id"]).sort()
            sequence_ids = pc.unique(selection["sequence_id"]).sort().to_pylist()
            yield Output(
                [selected_images_table(selection)],
                metadata={"images": len(image_ids), "sequences": len(sequence_ids)},
            )
            # What follows runs once the table is stored: no file and no partition tells of
            # a selection that the database does not hold.
            _write_ids(city, image_ids)
            inventory = take_inventory(city, postgis_tables.postgis)
            update_sequences(context, city, sequence_ids, incomplete=inventory.missing)

    return selected_image_ids


def _description(city: City) -> str:
    if city.imgid_file:
        return f"The images listed in {city.imgid_file}."
    if city.selection == "all":
        return "Every image in the bounding box."
    return f"For each street point the nearest image within {city.max_distance:g} m."


def _write_ids(city: City, image_ids: pa.Array) -> None:
    city.folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(city.selected_image_ids_path) as file:
        file.writelines(b"%d\n" % image_id for image_id in image_ids.to_pylist())
