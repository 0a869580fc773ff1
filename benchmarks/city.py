"""A whole city, from its tiles to the images selected for its street points."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql

from benchmarks import reference
from benchmarks.inputs import SRID, SyntheticCity
from benchmarks.measure import Clock, Measured, measure, middle, server_memory
from benchmarks.streets import INTERVAL, reference_points
from benchmarks.surroundings import Home, emptied, home, require, serving, settle
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.city import City, load_city
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import row_count
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.schema import STREET_POINTS
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.tables import images_table
from vsvi_assets.mapillary.tile_files import read_tile
from vsvi_assets.sandbox import TOKEN, World

if TYPE_CHECKING:
    from vsvi_assets.running.run_city import CityRun

MAX_DISTANCE = 100.0
NAME = "metropolis"

STUDY = {
    "months": [3, 4, 5, 6, 7, 8, 9, 10],
    "hours": "08:00-18:00",
    "daylight": 5,
    "duplicates": {"metres": 1, "seconds": 2},
    "prefer": "newest",
    "per_year": True,
    "assignment": "one_to_one",
    "same_street": True,
    "facing": "along",
}
"""Every rule that a city file can have for its images."""


def world(tiles_folder: Path) -> World:
    """Make a world that serves the tiles of a folder as they are."""
    tiles = {
        (14, *map(int, path.stem.split("_"))): path.read_bytes() for path in tiles_folder.iterdir()
    }
    return World(picture=lambda image, size: b"", recorded_tiles=tiles)  # type: ignore[arg-type]


# In processes of their own


def prepare(
    clock: Clock, size: SyntheticCity, home: Home, tiles_folder: Path, selection: str = "nearest"
) -> None:
    """Write the city file, the streets, and the tiles that the sandbox serves."""
    size.write_extract(_streets(home))
    _write_city_file(size, home, selection=selection)
    tiles_folder.mkdir()
    largest = 0
    for tile, data in size.vector_tiles():
        (tiles_folder / f"{tile.x}_{tile.y}").write_bytes(data)
        largest = max(largest, len(data))
    clock.facts = {"largest tile": largest}


def _streets(home: Home) -> Path:
    return home.folder / "cities" / "streets.osm"


def _write_city_file(size: SyntheticCity, home: Home, **keys: object) -> None:
    size.write(
        home.folder / "cities",
        NAME,
        interval=INTERVAL,
        max_distance=MAX_DISTANCE,
        streets_file=str(_streets(home)),
        **keys,
    )


def project_chain(clock: Clock, home: Home, environment: Mapping[str, str]) -> None:
    """Materialize points, tiles, tables and selection in one run, recorded in Postgres.

    Not by `run_city`, whose plan downloads a sample of photographs.
    """
    city = _city(home)
    settle({**home.environment, **environment})
    from dagster import DagsterInstance

    from vsvi_assets.orchestration.build import build_cities_defs
    from vsvi_assets.orchestration.common import asset_key
    from vsvi_assets.settings import Settings

    job = build_cities_defs(
        [city], Settings.from_environment()
    ).resolve_implicit_global_asset_job_def()
    names = ("street_points", "tile_metadata", "postgis_tables", "selected_image_ids")
    with DagsterInstance.get() as instance, clock:
        job.execute_in_process(
            asset_selection=[asset_key(city, name) for name in names],
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": city.tile_keys[0],
                "dagster/asset_partition_range_end": city.tile_keys[-1],
            },
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    postgis = Postgis(home.postgis.vsvi_url)
    clock.facts = {"points": row_count(postgis, city, STREET_POINTS)}


def run(clock: Clock, home: Home, environment: Mapping[str, str]) -> "CityRun":
    """Run the city as `vsvi materialize` does; loading the modules is not measured."""
    settle({**home.environment, **environment})
    from dagster import DagsterInstance

    from vsvi_assets.progress import LogProgress
    from vsvi_assets.running.run_city import run_city
    from vsvi_assets.settings import Settings

    settings = Settings.from_environment()
    with DagsterInstance.get() as instance, clock:
        return run_city(_city(home), settings, instance, progress=LogProgress())


def project_load(clock: Clock, home: Home) -> None:
    city = _city(home)
    tiles = (read_tile(city.tile_path(key), city.services).images for key in city.tile_keys)
    with clock:
        counts = replace_tables(Postgis(home.postgis.vsvi_url), NAME, [images_table(tiles, city)])
    clock.facts = {"rows": counts["images"]}


def project_nearest(clock: Clock, home: Home) -> None:
    postgis = Postgis(home.postgis.vsvi_url)
    with clock:
        selection = select_images(postgis, _city(home))
    pairs = selection.select(["street_point_id", "image_id"])
    clock.facts = {"selection": dict(zip(*pairs.to_pydict().values(), strict=True))}


def reference_tiles(
    clock: Clock, environment: Mapping[str, str], size: SyntheticCity, folder: Path
) -> None:
    folder.mkdir()
    with clock:
        reference.fetch_tiles(environment["MAPILLARY_TILES_URL"], TOKEN, size.tiles, folder)


def reference_load(clock: Clock, url: str, folder: Path) -> None:
    files = sorted(folder.iterdir())
    with clock:
        clock.facts = {"rows": reference.load_images(url, files, SRID)}
    reference.load_points(url, sql.Identifier(NAME), SRID)


def reference_nearest(clock: Clock, url: str) -> None:
    with clock:
        selection = reference.nearest_images(url, MAX_DISTANCE)
    clock.facts = {"selection": selection}


def _city(home: Home) -> City:
    return load_city(home.folder / "cities" / f"{NAME}.json", home.folder / "data")


# The lines of the table


def metropolis(folder: Path, images: int, repeat: int) -> Iterator[Row]:
    """Tiles to selection: through Dagster, and the two heaviest steps by themselves."""
    require("ogr2ogr", "gdal-bin")
    size = SyntheticCity.of_size(images)
    with home(folder / "home") as place:
        measure(prepare, size, place, place.folder / "tiles")
        with serving(world, place.folder / "tiles") as environment:
            rounds = [_round(place, size, environment) for _ in range(repeat)]
    step = {name: middle([round_[name] for round_ in rounds]) for name in rounds[0]}
    assert step["load"].facts == step["reference load"].facts == {"rows": images}
    same = step["nearest"].facts == step["reference nearest"].facts
    points = step["chain"].facts["points"]

    ratio = step["reference load"].seconds / step["load"].seconds
    yield Row(
        f"{images:,} images of {len(size.tiles)} tiles into PostGIS, both geometries, indexed",
        seconds(step["reference load"].seconds),
        seconds(step["load"].seconds),
        f"{ratio:.1f}",
        megabytes(step["load"].memory),
        ">= 5",
        ratio >= 5,
    )
    ratio = step["reference nearest"].seconds / step["nearest"].seconds
    yield Row(
        f"nearest image, {points:,} points x {images:,} images; "
        + ("the same answer" if same else "ANOTHER ANSWER"),
        seconds(step["reference nearest"].seconds),
        seconds(step["nearest"].seconds),
        f"{ratio:.1f}",
        megabytes(step["nearest"].memory),
        ">= 15, the same answer",
        ratio >= 15 and same,
    )
    chain = step["chain"]
    names = ("points", "tiles", "load", "nearest")
    theirs = sum(step[f"reference {name}"].seconds for name in names)
    memory = chain.memory + chain.facts["server"]
    yield Row(
        f"{len(size.tiles)} tiles, {images:,} images, {points:,} points: "
        "streets and tiles to selection through Dagster",
        seconds(theirs),
        seconds(chain.seconds),
        f"{theirs / chain.seconds:.1f}",
        f"{megabytes(chain.memory)}, and the server {megabytes(chain.facts['server'])}",
        ">= 12; under 1.5 GB",
        theirs >= 12 * chain.seconds and memory < 1500,
    )
    study = step["study"]
    yield Row(
        "the same with every rule for images that a city file can have",
        f"{seconds(chain.seconds)} without rules",
        seconds(study.seconds),
        f"{study.seconds / chain.seconds:.1f}",
        f"{megabytes(study.memory)}, and the server {megabytes(study.facts['server'])}",
        "<= 3",
        study.seconds <= 3 * chain.seconds,
    )


def growth(folder: Path, images: Sequence[int], repeat: int) -> Iterator[Row]:
    """The same chain, the project's way alone, for cities of several sizes."""
    for count in images:
        size = SyntheticCity.of_size(count)
        with home(folder / f"home{count}") as place:
            prepared = measure(prepare, size, place, place.folder / "tiles")
            with serving(world, place.folder / "tiles") as environment:
                chain = middle([_chain(place, environment) for _ in range(repeat)])
        yield Row(
            f"growth: {count:,} images in {len(size.tiles)} tiles, the largest of "
            f"{prepared.facts['largest tile'] / 1e6:.1f} MB, through Dagster",
            "–",
            seconds(chain.seconds),
            f"{chain.seconds / count * 1e6:.0f} µs an image",
            f"{megabytes(chain.memory)}, and the server {megabytes(chain.facts['server'])}",
            "n log n; memory by the largest tile",
        )


def _chain(place: Home, environment: Mapping[str, str]) -> Measured:
    """Measure the chain when no tile is on disk."""
    shutil.rmtree(_city(place).tiles_folder, ignore_errors=True)
    with server_memory(place.postmaster) as highest:
        chain = measure(project_chain, place, environment)
    chain.facts["server"] = highest[0]
    return chain


def _round(place: Home, size: SyntheticCity, environment: Mapping[str, str]) -> dict[str, Measured]:
    """Measure every step once, the project's and the reference's in turn."""
    _write_city_file(size, place, **STUDY)
    study = _chain(place, environment)
    _write_city_file(size, place)
    with emptied(place.folder / "reference") as files:
        return {
            "study": study,
            "chain": _chain(place, environment),
            "reference points": measure(reference_points, size),
            "reference tiles": measure(reference_tiles, environment, size, files),
            "load": measure(project_load, place),
            "reference load": measure(reference_load, place.database_url, files),
            "nearest": measure(project_nearest, place),
            "reference nearest": measure(reference_nearest, place.database_url),
        }
