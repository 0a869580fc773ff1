"""`python -m benchmarks`: the project beside the way people do it today."""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks import adoption as adoptions
from benchmarks import city, dataset, downloads, partitions, stored, streets, tiles
from benchmarks.surroundings import MissingProgramError, home, require
from benchmarks.table import Row, as_markdown
from vsvi_assets.settings import Settings

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _images(default: int) -> Option:
    return click.option("--images", default=default, show_default=True)


def _repeat(default: int = 3) -> Option:
    return click.option(
        "--repeat", default=default, show_default=True, help="Medians of so many runs."
    )


@contextmanager
def _workshop() -> Iterator[Path]:
    """Give a folder on the disk that holds the project's data."""
    data_dir = Settings.from_environment().machine_dir
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=data_dir) as folder:
        yield Path(folder)


def _reported(rows: Iterable[Row]) -> list[Row]:
    """Collect rows, and print each as soon as it is there."""
    collected = []
    for row in rows:
        click.echo(f"{row.work}: {row.project} (reference {row.reference})", err=True)
        collected.append(row)
    return collected


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> list[Row]:
    """Run every line of the table, or the named one."""
    rows: list[Row] = []
    if context.invoked_subcommand is None:
        require("aria2c", "aria2")
        require("ogr2ogr", "gdal-bin")
        started = time.monotonic()
        for command in main.commands.values():
            rows += context.invoke(command)
        click.echo(f"{(time.monotonic() - started) / 60:.0f} minutes", err=True)
    return rows


@main.result_callback()
def _print(rows: list[Row]) -> None:
    click.echo(as_markdown(rows))


@main.command()
@_images(3000)
@_repeat()
def download(images: int, repeat: int) -> list[Row]:
    """Photographs at 50 ms latency, beside one request at a time and aria2c."""
    with _workshop() as folder:
        return _reported(downloads.download(folder, images, repeat))


@main.command()
@_images(100_000)
@_repeat()
def present(images: int, repeat: int) -> list[Row]:
    """A run when all photographs are on disk already."""
    with _workshop() as folder, home(folder / "home") as place:
        return _reported(downloads.present(place, images, repeat))


@main.command("object-store")
@_images(1500)
@click.option("--objects", default=100_000, show_default=True)
@_repeat()
def object_store(images: int, objects: int, repeat: int) -> list[Row]:
    """Photographs into an object store, beside the disk; the inventory of many objects."""
    with _workshop() as folder:
        return _reported(stored.object_store(folder, images, objects, repeat))


@main.command()
@_images(50_000)
@_repeat(5)
def tile(images: int, repeat: int) -> list[Row]:
    """A dense tile, from bytes to stored GeoJSON."""
    with _workshop() as folder:
        return _reported(tiles.tile(folder, images, repeat))


@main.command()
@_images(1_000_000)
@_repeat()
def points(images: int, repeat: int) -> list[Row]:
    """Points along the streets of the city that has so many images."""
    return _reported(streets.points(images, repeat))


@main.command()
@_images(1_000_000)
@_repeat()
def metropolis(images: int, repeat: int) -> list[Row]:
    """Tiles to selection: into PostGIS, the nearest image, and all through Dagster."""
    with _workshop() as folder:
        return _reported(city.metropolis(folder, images, repeat))


@main.command()
@click.option("--images", multiple=True, default=[10_000, 100_000, 1_000_000], show_default=True)
@_repeat(1)
def growth(images: tuple[int, ...], repeat: int) -> list[Row]:
    """The same through Dagster, for cities of several sizes."""
    with _workshop() as folder:
        return _reported(city.growth(folder, images, repeat))


@main.command()
@click.option("--images", multiple=True, default=[20_000, 200_000], show_default=True)
@_repeat(1)
def adoption(images: tuple[int, ...], repeat: int) -> list[Row]:
    """Cities whose photographs are all on disk: adopted, run again, and counted."""
    with _workshop() as folder:
        return _reported(adoptions.adoption(folder, images, repeat))


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@_repeat()
def export(rows: int, repeat: int) -> list[Row]:
    """The dataset of a city, as one table."""
    with _workshop() as folder, home(folder / "home") as place:
        return _reported(dataset.export(place, rows, repeat))


@main.command()
@click.option("--sequences", default=2000, show_default=True)
@_repeat()
def sequences(sequences: int, repeat: int) -> list[Row]:
    """What Dagster costs per sequence."""
    with _workshop() as folder:
        return _reported(partitions.sequences(folder, sequences, repeat))


@main.command()
@click.option("--cities", default=50, show_default=True)
@_repeat()
def definitions(cities: int, repeat: int) -> list[Row]:
    """How long the definitions of many cities take to load."""
    with _workshop() as folder:
        return _reported(partitions.definitions(folder, cities, repeat))


if __name__ == "__main__":
    # Ended from outside, it stops its server and removes its folder too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    try:
        main()
    except MissingProgramError as error:
        raise SystemExit(str(error)) from error
