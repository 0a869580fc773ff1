"""The images to download, and the sequences they belong to."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from dagster import AssetExecutionContext, AssetsDefinition, MetadataValue, Output, asset
from numpy.typing import NDArray

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.database.queries import street_lines
from vsvi_assets.database.replacement import NewTable
from vsvi_assets.database.selection import select_images, selection_rules_table
from vsvi_assets.database.summaries import image_density, street_point_positions
from vsvi_assets.database.tables import selected_images_table
from vsvi_assets.files import atomic_write
from vsvi_assets.orchestration.columns import SELECTED_IMAGES_TABLE
from vsvi_assets.orchestration.common import identity, picture, table, upstream
from vsvi_assets.orchestration.io_managers.postgis import PostgisSchema
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.orchestration.sequence_partitions import (
    MAX_SEQUENCES,
    TooManySequencesError,
    update_sequences,
)
from vsvi_assets.selection.rules import Removal
from vsvi_assets.threads import interruptible_workers
from vsvi_assets.views.pictures import density_map, selection_map


def build_selected_image_ids(city: City) -> AssetsDefinition:
    @asset(
        **identity(city, "selected_image_ids", {"postgres"}),
        ins=upstream(city, "postgis_tables"),
        description=f"Step 4. {_description(city)}",
        metadata={"dagster/column_schema": SELECTED_IMAGES_TABLE},
        io_manager_key="postgis_tables",
    )
    @retry_boundary()
    def selected_image_ids(context: AssetExecutionContext, postgis_tables: PostgisSchema) -> Output:
        removals: list[Removal] = []
        with interruptible_workers(1) as (pool, _):
            # Drawn meanwhile, since it does not depend on the selection.
            density = pool.submit(_density, postgis_tables.postgis, city)
            selection = select_images(postgis_tables.postgis, city, removals)
        image_ids = pc.unique(selection["image_id"]).sort()
        sequence_ids = pc.unique(selection["sequence_id"]).sort().to_pylist()
        if len(sequence_ids) > MAX_SEQUENCES and not city.sequence_buckets:
            raise TooManySequencesError(city, len(sequence_ids))

        def store() -> Iterator[Sequence[NewTable]]:
            yield [
                selected_images_table(selection, city),
                selection_rules_table(removals, city),
            ]
            # What follows runs once the table is stored: no file and no partition shows
            # a selection that the database does not hold. And it runs before the selection
            # counts as made: a refresh then looks for sequences to download.
            _write_ids(city.selected_image_ids_path, image_ids)
            if city.imgid_file:
                listed = pa.array(city.read_image_ids(), pa.int64()).unique().sort()
                absent = listed.filter(pc.invert(pc.is_in(listed, image_ids)))
                _write_ids(city.absent_image_ids_path, absent)
            inventory = take_inventory(city, postgis_tables.postgis)
            update_sequences(context, city, sequence_ids, incomplete=inventory.pending_sequences)

        return Output(
            store(),
            metadata={
                "images": len(image_ids),
                "sequences": len(sequence_ids),
                **({"rules": table(map(vars, removals))} if removals else {}),
                "density": density.result(),
                **_looks(postgis_tables.postgis, city, selection),
            },
        )

    return selected_image_ids


def _description(city: City) -> str:
    if city.imgid_file:
        return f"The images listed in {city.imgid_file}."
    if city.selection == "all":
        return f"Every image in the {city.area_name}."
    of_year = " of each year" if city.per_year else ""
    return f"For each street point the {city.prefer} image{of_year} within {city.max_distance:g} m."


def _density(postgis: Postgis, city: City) -> MetadataValue:
    """Return a picture of the images that the selection is made from."""
    drawn = density_map(image_density(postgis, city), city.area)
    return picture(drawn, f"images of the {city.area_name}")


def _looks(postgis: Postgis, city: City, selection: pa.Table) -> dict[str, MetadataValue | float]:
    """Return a picture and figures of the selection."""
    looks: dict[str, MetadataValue | float] = {}
    if city.chooses_for_points:
        points = street_point_positions(postgis, city)
        nearest = selection.sort_by("distance") if city.per_year else selection
        row = pc.index_in(points["id"], nearest["street_point_id"])
        distance = nearest["distance"].take(row).to_numpy()
        without = int(np.isnan(distance).sum())
        selected = selection_map(
            points["lon"].to_numpy(),
            points["lat"].to_numpy(),
            distance,
            city.area,
            city.max_distance,
            shapely.from_wkb(street_lines(postgis, city)["hex"].to_pylist()),
        )
        looks |= {
            "map": picture(selected, "street points and their images"),
            "street points without an image": without,
            "share of street points without an image": round(without / max(len(points), 1), 4),
        }
        if without < len(points):
            looks["distances"] = _distances(distance, city.max_distance)
            looks["median distance (m)"] = round(float(np.nanmedian(distance)), 1)
    return looks


def _distances(distance: NDArray[np.float64], max_distance: float) -> MetadataValue:
    """Return how many of the distances (metres) lie in each fifth of what is allowed."""
    counts, edges = np.histogram(distance, bins=5, range=(0, max_distance))
    return table(
        {"metres": f"{low:g} to {high:g}", "street points": int(count)}
        for count, (low, high) in zip(counts, pairwise(edges), strict=True)
    )


def _write_ids(path: Path, image_ids: pa.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.writelines(b"%d\n" % image_id for image_id in image_ids.to_pylist())
