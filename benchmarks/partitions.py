"""What Dagster itself costs: to record a partition, and to load the definitions."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.downloads import client, jobs, world
from benchmarks.inputs import SyntheticCity
from benchmarks.measure import Clock, Measured, Work, in_turn, measure
from benchmarks.surroundings import Home, emptied, home, run, serving, settle
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import PhotographRecords, take_inventory
from vsvi_assets.database.tables import selected_images_of
from vsvi_assets.files import DiskGuard
from vsvi_assets.photographs.downloads import SequenceJob, download_sequences
from vsvi_assets.sandbox import World

NAME = "hamlet"
SEQUENCES_PER_RUN = 200
IMAGES_PER_SEQUENCE = 2


def town(sequences: int) -> World:
    """Make a world of photographs along one street."""
    made = world(sequences, IMAGES_PER_SEQUENCE, 2000)
    made.add_street([(4.899, 52.4), (4.901, 52.4)], highway="residential", name="Street")
    return made


# In processes of their own


def register(clock: Clock, place: Home, environment: Mapping[str, str]) -> None:
    """Make the city, its selection and its partitions."""
    box = {"west": 4.89, "south": 52.39, "east": 4.91, "north": 52.41}
    SyntheticCity.of_size(1).write(place.folder / "cities", NAME, bounding_box=box, selection="all")
    run(clock, place, environment, NAME, plan_only=True)


def through_dagster(clock: Clock, place: Home, environment: Mapping[str, str]) -> None:
    done = run(clock, place, environment, NAME, sequences_per_run=SEQUENCES_PER_RUN)
    assert done.images


def without_dagster(clock: Clock, place: Home, environment: Mapping[str, str], count: int) -> None:
    """Do what the asset does, run by run."""
    city, postgis = place.city(NAME), Postgis(place.postgis.vsvi_url)
    city.sequences_folder.mkdir(parents=True)
    every = [job.sequence_id for job in _jobs(count)]
    with clock:
        for start in range(0, count, SEQUENCES_PER_RUN):
            keys = every[start : start + SEQUENCES_PER_RUN]
            take_inventory(city, postgis, keys)
            selected = dict(selected_images_of(postgis, NAME, keys))
            with PhotographRecords(postgis, city) as records:
                for result in download_sequences(
                    client(environment),
                    (SequenceJob(key, selected[key]) for key in keys),
                    city.sequences_folder,
                    size="original",
                    services=city.services,
                    guard=DiskGuard(city.sequences_folder, 0),
                ):
                    records.add(result.sequence_id, result.sidecar)


def load_definitions(clock: Clock, environment: Mapping[str, str]) -> None:
    settle(environment)
    load = "from vsvi_assets.definitions import defs; defs.get_repository_def()"
    with clock:
        subprocess.run([sys.executable, "-c", load], check=True)


def _jobs(sequences: int) -> Iterator[SequenceJob]:
    return jobs(sequences, IMAGES_PER_SEQUENCE)


# The lines of the table


def sequences(folder: Path, count: int, repeat: int) -> Iterator[Row]:
    """What Dagster costs per partition: the same work with it and without."""
    with (
        home(folder / "home") as place,
        serving(town, count) as environment,
    ):
        measure(register, place, environment)
        city = place.city(NAME)

        def side(work: Work, *arguments: object) -> Measured:
            with emptied(city.sequences_folder):
                return measure(work, place, environment, *arguments)

        dagster, plain = in_turn(
            repeat, lambda: side(through_dagster), lambda: side(without_dagster, count)
        )
    cost = (dagster.seconds - plain.seconds) / count * 1000
    yield Row(
        f"{count:,} sequences of {IMAGES_PER_SEQUENCE} images, with Dagster and without",
        f"{seconds(plain.seconds)} without",
        f"{seconds(dagster.seconds)} with",
        f"{cost:.1f} ms per partition",
        megabytes(dagster.memory),
        "<= 15 ms per partition",
        cost <= 15,
    )


def definitions(folder: Path, cities: int, repeat: int) -> Iterator[Row]:
    """The definitions of many cities, in a new Python."""
    for number in range(cities):
        SyntheticCity.of_size(100_000).write(folder / "cities", f"city{number}")
    environment = {"VSVI_CITIES_DIR": str(folder / "cities"), "VSVI_DATA_DIR": str(folder)}
    [loaded] = in_turn(repeat, lambda: measure(load_definitions, environment))
    yield Row(
        f"definitions of {cities} cities, from `python` to a repository",
        "–",
        seconds(loaded.seconds),
        "",
        megabytes(loaded.memory),
        "under 5 s",
        loaded.seconds < 5,
    )
