"""What a city keeps on disk: its points, its tiles, its photographs, one path per partition."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Generic, TypeVar

import geopandas as gpd
import pyarrow as pa
import pyarrow.parquet
from dagster import InputContext, IOManager, MetadataValue, OutputContext

from vsvi_assets.city import City
from vsvi_assets.dataset.export import write_table
from vsvi_assets.files import DataPath, atomic_write, entries_in, local_copy, remove_abandoned_parts
from vsvi_assets.mapillary.tile_files import read_tile, write_tile
from vsvi_assets.mapillary.tiles import TileImages
from vsvi_assets.photographs.sidecar import (
    Sidecar,
    known_images,
    read_sidecar,
    sequence_folder,
    write_sidecar,
)
from vsvi_assets.streets.point_files import read_points, write_points
from vsvi_assets.streets.points import StreetsAndPoints, no_streets

Value = TypeVar("Value")


class PartitionMissingError(FileNotFoundError):
    """A partition that is asked for is not on disk."""


class StoredPartitions(Mapping[str, Value]):
    """Partitions on disk, by key, each read when it is asked for and not kept in memory."""

    def __init__(self, paths: Mapping[str, DataPath], read: Callable[[DataPath], Value]) -> None:
        self.paths = paths
        self._read = read

    def __getitem__(self, key: str) -> Value:
        return self._read(self.paths[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


class FilesystemIOManager(IOManager, Generic[Value]):
    """Keeps one kind of asset under the paths that the city file gives.

    A partitioned asset hands over pairs of partition key and value, for as many partitions
    as its run covers; each is stored as it comes. None for a value says that the partition
    is on disk already and stands as it is. When the run breaks off, those stored until then
    are recorded as materialized, so that a retry has only the rest to do.

    Parameters
    ----------
    cities
        The cities by name, which is the first part of their assets' keys.
    """

    def __init__(self, cities: Mapping[str, City]) -> None:
        self._cities = cities

    @abstractmethod
    def path(self, city: City, partition: str | None) -> DataPath:
        """Where the asset, or its partition, is kept."""

    @abstractmethod
    def write(self, city: City, path: DataPath, value: Value) -> None:
        """Store a value, whole or not at all."""

    @abstractmethod
    def read(self, city: City, path: DataPath) -> Value:
        """Read what `write` stored."""

    def tidy(self, folder: DataPath) -> None:
        """Remove what killed runs left half written in the folder of the partitions."""
        remove_abandoned_parts(folder)

    def handle_output(self, context: OutputContext, obj: object) -> None:
        city = self._city(context.asset_key.path)
        if not context.has_asset_partitions:
            path = self.path(city, None)
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned_parts(path.parent)
            self.write(city, path, obj)  # type: ignore[arg-type]
            context.add_output_metadata({"path": MetadataValue.path(str(path))})
            return
        wanted = sorted(context.asset_partition_keys)
        folder = self.path(city, wanted[0]).parent
        folder.mkdir(parents=True, exist_ok=True)
        self.tidy(folder)
        stored = set()
        with closing(_pairs(obj)) as pairs:
            for key, value in pairs:
                if value is not None:
                    self.write(city, self.path(city, key), value)
                stored.add(key)
        missing = [key for key in wanted if key not in stored]
        if missing:
            raise PartitionMissingError(
                f"{context.asset_key.to_user_string()}: {len(missing)} of {len(wanted)} "
                f"partitions did not come, the first {missing[0]}"
            )
        context.add_output_metadata({"folder": MetadataValue.path(str(folder))})

    def load_input(self, context: InputContext) -> Value | StoredPartitions[Value]:
        city = self._city(context.asset_key.path)
        name = context.asset_key.to_user_string()
        keys = sorted(context.asset_partition_keys) if context.has_asset_partitions else [None]
        paths = {key: self.path(city, key) for key in keys}
        present = {folder: _names_in(folder) for folder in {path.parent for path in paths.values()}}
        missing = [
            str(key or path) for key, path in paths.items() if path.name not in present[path.parent]
        ]
        if missing:
            raise PartitionMissingError(
                f"{name}: {len(missing)} of {len(paths)} are not on disk, the first "
                f"{missing[0]}; materialize {name} first"
            )
        if not context.has_asset_partitions:
            return self.read(city, paths[None])
        return StoredPartitions(paths, partial(self.read, city))  # type: ignore[arg-type]

    def _city(self, asset_path: Sequence[str]) -> City:
        return self._cities[asset_path[0]]


class StreetPointsFile(FilesystemIOManager[StreetsAndPoints]):
    """Keeps street points as one GeoJSON file per city (EPSG:4326), and the streets beside it.

    The points' file has their class of street only where the city file chooses among classes, so
    that it stays what it was for those that do not; it comes back from the streets.
    """

    def path(self, city: City, partition: str | None) -> DataPath:
        return city.street_points_path

    def write(self, city: City, path: DataPath, value: StreetsAndPoints) -> None:
        with atomic_write(city.streets_table_path) as file:
            value.streets.to_parquet(file)
        points = value.points
        if not city.street_classes and city.places is None:
            points = points.drop(columns="highway")
        with atomic_write(path) as file:
            write_points(points, file)

    def read(self, city: City, path: DataPath) -> StreetsAndPoints:
        with local_copy(path) as copy:
            points = read_points(copy, of_user=city.places is not None)
        try:
            with local_copy(city.streets_table_path) as copy:
                streets = gpd.read_parquet(copy)
        except FileNotFoundError:  # made by an earlier version
            return StreetsAndPoints(points.assign(highway=None), no_streets())
        if city.places is not None:
            return StreetsAndPoints(points, streets)
        class_of = streets.drop_duplicates("osmid").set_index("osmid")["highway"]
        highway = points["osmid"].map(class_of).astype(object)
        points["highway"] = highway.where(highway.notna(), None)
        return StreetsAndPoints(points, streets)


class TileFiles(FilesystemIOManager[TileImages]):
    """Keeps the images of each tile as GeoJSON, in percept-vsvi-filter's tile cache."""

    def path(self, city: City, partition: str | None) -> DataPath:
        return city.tile_path(str(partition))

    def write(self, city: City, path: DataPath, value: TileImages) -> None:
        write_tile(value, path, city.services)

    def read(self, city: City, path: DataPath) -> TileImages:
        return read_tile(path, city.services)


class SequenceFolders(FilesystemIOManager[Sidecar]):
    """Keeps, beside the photographs of each sequence, the sidecar that describes them.

    What a sidecar already says of other images in the folder is kept.
    """

    def path(self, city: City, partition: str | None) -> DataPath:
        return sequence_folder(city.sequences_folder, str(partition))

    def tidy(self, folder: DataPath) -> None:
        """Leave the folder of all sequences alone: each download tidies those that it is about."""

    def write(self, city: City, path: DataPath, value: Sidecar) -> None:
        path.mkdir(parents=True, exist_ok=True)
        before = known_images(path)
        after = before.updated(value)
        if after != before:
            write_sidecar(path, after)

    def read(self, city: City, path: DataPath) -> Sidecar:
        return read_sidecar(path)


class CoverageReportFile(FilesystemIOManager[str]):
    """Keeps a city's coverage report as one HTML file."""

    def path(self, city: City, partition: str | None) -> DataPath:
        return city.coverage_report_path

    def write(self, city: City, path: DataPath, value: str) -> None:
        with atomic_write(path) as file:
            file.write(value.encode())

    def read(self, city: City, path: DataPath) -> str:
        return path.read_text(encoding="utf-8")


class DatasetFile(FilesystemIOManager[pa.RecordBatchReader]):
    """Keeps a city's dataset as one GeoParquet file, written as its rows come."""

    def handle_output(self, context: OutputContext, obj: object) -> None:
        super().handle_output(context, obj)
        path = self.path(self._city(context.asset_key.path), None)
        with local_copy(path) as copy:
            rows = pyarrow.parquet.read_metadata(copy).num_rows
        context.add_output_metadata({"dagster/row_count": rows})

    def path(self, city: City, partition: str | None) -> DataPath:
        return city.dataset_path

    def write(self, city: City, path: DataPath, value: pa.RecordBatchReader) -> None:
        write_table(value, path)

    def read(self, city: City, path: DataPath) -> pa.RecordBatchReader:
        with local_copy(path) as copy:
            file = pyarrow.parquet.ParquetFile(copy)  # which stays open, whatever becomes of a copy
        return pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())


def _names_in(folder: DataPath) -> Collection[str]:
    try:
        return entries_in(folder).keys()
    except FileNotFoundError:
        return ()


def _pairs(value: object) -> Generator[tuple[str, Any], None, None]:
    """Iterate over partition keys and values, of a mapping or of pairs as they come."""
    pairs: Any = value.items() if isinstance(value, Mapping) else value
    yield from pairs
