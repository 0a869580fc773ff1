"""A whole city, from its tiles to the images selected for its street points."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from psycopg2 import sql

from benchmarks import reference
from benchmarks.inputs import SRID, SyntheticCity, photograph
from benchmarks.measure import Clock, Measured, measure, middle, server_memory
from benchmarks.streets import INTERVAL, reference_points
from benchmarks.surroundings import Home, emptied, home, require, run, serving
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.city import ZOOM
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import row_count
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.schema import STREET_POINTS
from vsvi_assets.database.selection import select_images
from vsvi_assets.database.tables import images_table
from vsvi_assets.mapillary.tile_files import read_tile
from vsvi_assets.sandbox import TOKEN, StreetImage, World

MAX_DISTANCE = 100.0
NAME = "metropolis"

TILES_TO_SELECTION = tuple(
    f"{NAME}__{asset}" for asset in ("tile_metadata", "postgis_tables", "selected_image_ids")
)
"""How the steps begin from the first tile to the selection, with the checks of each."""

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


def world(size: SyntheticCity, tiles_folder: Path) -> World:
    """Make a world that serves the tiles of a folder as they are, and knows their images."""
    picture = photograph(2000)
    made = World(picture=lambda image, size: picture)
    for path in tiles_folder.iterdir():
        x, y = map(int, path.stem.split("_"))
        made.recorded_tiles[ZOOM, x, y] = path.read_bytes()
    columns = size.image_table().select(["id", "lon", "lat", "sequence_id"]).to_pydict().values()
    made.add_images(StreetImage(*image) for image in zip(*columns, strict=True))
    return made


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
    """Run the city as `vsvi plan` does: all that comes before the photographs, and a sample."""
    run(clock, home, environment, NAME, plan_only=True)
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        steps = instance.get_run_step_stats(instance.get_runs(limit=1)[0].run_id)
    took = sum(
        step.end_time - step.start_time
        for step in steps
        if step.start_time and step.end_time and step.step_key.startswith(TILES_TO_SELECTION)
    )
    points = row_count(Postgis(home.postgis.vsvi_url), home.city(NAME), STREET_POINTS)
    clock.facts = {"points": points, "tiles to selection": took}


def project_load(clock: Clock, home: Home) -> None:
    city = home.city(NAME)
    tiles = (read_tile(city.tile_path(key), city.services).images for key in city.tile_keys)
    with clock:
        counts = replace_tables(Postgis(home.postgis.vsvi_url), NAME, [images_table(tiles, city)])
    clock.facts = {"rows": counts["images"]}


def project_nearest(clock: Clock, home: Home) -> None:
    postgis = Postgis(home.postgis.vsvi_url)
    with clock:
        selection = select_images(postgis, home.city(NAME))
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


# The lines of the table


def metropolis(folder: Path, images: int, repeat: int) -> Iterator[Row]:
    """Tiles to selection: through Dagster, and the two heaviest steps by themselves."""
    require("ogr2ogr", "gdal-bin")
    size = SyntheticCity.of_size(images)
    with home(folder / "home") as place:
        measure(prepare, size, place, place.folder / "tiles")
        with serving(world, size, place.folder / "tiles") as environment:
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
    theirs = sum(step[f"reference {name}"].seconds for name in ("tiles", "load", "nearest"))
    ours = chain.facts["tiles to selection"]
    yield Row(
        f"{len(size.tiles)} tiles, {images:,} images, {points:,} points: tiles to selection, by "
        "`run_city`",
        seconds(theirs),
        seconds(ours),
        f"{theirs / ours:.1f}",
        "",
        ">= 12",
        theirs >= 12 * ours,
    )
    theirs += step["reference points"].seconds
    memory = chain.memory + chain.facts["server"]
    yield Row(
        "the same with the streets and points before it and the plan after it",
        f"{seconds(theirs)} without a plan",
        seconds(chain.seconds),
        f"{theirs / chain.seconds:.1f}",
        f"{megabytes(chain.memory)}, and the server {megabytes(chain.facts['server'])}",
        "under 1.5 GB",
        memory < 1500,
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
            with serving(world, size, place.folder / "tiles") as environment:
                chain = middle([_chain(place, environment) for _ in range(repeat)])
        yield Row(
            f"growth: {count:,} images in {len(size.tiles)} tiles, the largest of "
            f"{prepared.facts['largest tile'] / 1e6:.1f} MB, by `run_city`",
            "–",
            seconds(chain.seconds),
            f"{chain.seconds / count * 1e6:.0f} µs per image",
            f"{megabytes(chain.memory)}, and the server {megabytes(chain.facts['server'])}",
            "n log n; memory by the largest tile",
        )


def _chain(place: Home, environment: Mapping[str, str]) -> Measured:
    """Measure the chain when no tile is on disk."""
    shutil.rmtree(place.city(NAME).tiles_folder, ignore_errors=True)
    with server_memory(place.postmaster) as highest:
        chain = measure(project_chain, place, environment)
    chain.facts["server"] = highest[0]
    return chain


def _round(place: Home, size: SyntheticCity, environment: Mapping[str, str]) -> dict[str, Measured]:
    """Measure every step once, the project's and the reference's in turn."""
    with emptied(place.folder / "reference") as files:
        steps = {
            "chain": _chain(place, environment),
            "reference points": measure(reference_points, size),
            "reference tiles": measure(reference_tiles, environment, size, files),
            "load": measure(project_load, place),
            "reference load": measure(reference_load, place.database_url, files),
            "nearest": measure(project_nearest, place),
            "reference nearest": measure(reference_nearest, place.database_url),
        }
    _write_city_file(size, place, **STUDY)
    steps["study"] = _chain(place, environment)
    _write_city_file(size, place)
    return steps
