"""A project in miniature: a small city on the sandbox, a database and an instance of its own."""

import io
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult, RunConfig
from PIL import Image

from vsvi_assets.city import City, load_city
from vsvi_assets.database.connection import Postgis
from vsvi_assets.orchestration.build import build_defs
from vsvi_assets.orchestration.common import Fetch
from vsvi_assets.orchestration.resources import MapillaryResource, OverpassResource
from vsvi_assets.progress import LogProgress, Progress
from vsvi_assets.running.run_city import CityRun, run_city
from vsvi_assets.sandbox import Sandbox, StreetImage, World
from vsvi_assets.settings import Settings

BOX = {"west": 5.204, "south": 52.522, "east": 5.214, "north": 52.528}
"""A box of 680 m by 670 m that meets four z14 tiles."""

METADATA_ASSETS = ("street_points", "tile_metadata", "postgis_tables", "selected_image_ids")


def picture(image: StreetImage, size: str) -> bytes:
    """Draw a small JPEG that is different for each image and size."""
    colour = random.Random(f"{image.id} {size}").randbytes(3)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), tuple(colour)).save(buffer, "JPEG")
    return buffer.getvalue()


def small_world(sequences: int = 12, images_per_sequence: int = 10, seed: int = 0) -> World:
    """Make a city of streets in a grid, on which every sequence is driven along one street."""
    numbers = random.Random(seed)
    world = World(picture=picture)
    west, south, east, north = BOX.values()
    rows = [south + (north - south) * (row + 0.5) / 8 for row in range(8)]
    columns = [west + (east - west) * (column + 0.5) / 8 for column in range(8)]
    for row, lat in enumerate(rows):
        world.add_street([(lon, lat) for lon in columns], highway="residential", name=f"Row {row}")
    for column, lon in enumerate(columns):
        world.add_street([(lon, lat) for lat in rows], highway="footway", name=f"Lane {column}")
    world.add_images(
        StreetImage(
            id=1_000_000 + 1000 * sequence + number,
            lon=columns[0] + (columns[-1] - columns[0]) * (number + 0.5) / images_per_sequence,
            lat=rows[sequence % 8] + numbers.uniform(-3e-5, 3e-5),
            sequence_id=f"sequence-{sequence:04}-abcdefgh",
            captured_at=1_500_000_000_000 + 10_000_000_000 * sequence + 1000 * number,
            compass_angle=90.0,
            is_pano=sequence % 5 == 4,
        )
        for sequence in range(sequences)
        for number in range(images_per_sequence)
    )
    return world


@dataclass
class Project:
    """One test's project: its folders, services and Dagster instance."""

    folder: Path
    sandbox: Sandbox
    instance: DagsterInstance

    @property
    def settings(self) -> Settings:
        return Settings.from_environment()

    @property
    def postgis(self) -> Postgis:
        return Postgis(os.environ["VSVI_POSTGRES_URL"])

    def write_city(self, name: str = "town", **keys: object) -> City:
        """Write a city file, by default for the box of `small_world`, and load it."""
        content = {
            "bounding_box": BOX,
            "srid": 28992,
            "max_distance": 60,
            "required_disk_space": 0,
            "num_retries": 3,
        } | keys
        path = self.settings.cities_dir / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return load_city(path, self.settings.data_dir)

    @property
    def resources(self) -> Mapping[str, object]:
        """The resources that differ from the project's own: a client that soon tries again."""
        mapillary = MapillaryResource(data_dir=str(self.settings.machine_dir), backoff=0.01)
        return {"mapillary": mapillary, "overpass": OverpassResource(pause=0.01)}

    def defs(self) -> Definitions:
        """Build the definitions of all cities."""
        return build_defs(self.settings, self.resources)

    def run_city(
        self,
        city: City,
        progress: Progress | None = None,
        sequences_per_run: int | None = None,
        **options: bool,
    ) -> CityRun:
        """Run a city as `vsvi materialize` does, in this process."""
        settings = self.settings
        return run_city(
            city,
            replace(settings, sequences_per_run=sequences_per_run or settings.sequences_per_run),
            self.instance,
            progress=progress or LogProgress(print),
            resource_overrides=self.resources,
            **options,
        )

    def materialize(
        self,
        city: City,
        *assets: str,
        partitions: Sequence[str] = (),
        overwrite: bool = False,
        raise_on_error: bool = True,
        tags: Mapping[str, str] | None = None,
    ) -> ExecuteInProcessResult:
        """Materialize assets of a city in one run; `partitions` are the ends of a range."""
        fetching = {"street_points", "tile_metadata", "image_files"}.intersection(assets)
        tags = dict(tags or {})
        if partitions:
            tags["dagster/asset_partition_range_start"] = partitions[0]
            tags["dagster/asset_partition_range_end"] = partitions[-1]
        return (
            self.defs()
            .resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=self.instance,
                asset_selection=[AssetKey([city.name, name]) for name in assets],
                tags=tags,
                run_config=RunConfig(
                    ops={
                        AssetKey([city.name, name]).to_python_identifier(): Fetch(
                            overwrite=overwrite
                        )
                        for name in fetching
                    }
                ),
                raise_on_error=raise_on_error,
            )
        )

    def materialize_metadata(self, city: City) -> ExecuteInProcessResult:
        """Materialize all that comes before the photographs."""
        return self.materialize(city, *METADATA_ASSETS, partitions=city.tile_keys)

    def sequences(self, city: City) -> list[str]:
        """Return the registered sequences of a city, in their order."""
        return list(self.instance.get_dynamic_partitions(f"{city.name}_sequences"))

    def materialize_images(self, city: City, raise_on_error: bool = True) -> ExecuteInProcessResult:
        """Materialize the photographs of all registered sequences in one run."""
        return self.materialize(
            city, "image_files", partitions=self.sequences(city), raise_on_error=raise_on_error
        )
