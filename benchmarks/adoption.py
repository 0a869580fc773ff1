"""A city whose photographs are all on disk: adopted, run again, and counted."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.city import NAME, prepare, world
from benchmarks.downloads import lay_down
from benchmarks.inputs import SyntheticCity, photograph
from benchmarks.measure import Clock, Measured, measure, middle
from benchmarks.surroundings import Home, home, requests_made, run, serving
from benchmarks.table import Row, megabytes, seconds

IMAGES_PER_SEQUENCE = 33
MOST_SECONDS = {"adopted": 60, "run again": 20, "vsvi status": 3}
"""For 200,000 images in 6,000 sequences."""

# In processes of their own


def lay_down_all(clock: Clock, place: Home, size: SyntheticCity) -> None:
    """Put the photographs of all images on disk, with their sidecars, in no database."""
    city = place.city(NAME)
    picture = photograph(2000)
    columns = (size.image_table()[name].to_pylist() for name in ("sequence_id", "id"))
    rows = zip(*columns, strict=True)
    for sequence_id, images in groupby(rows, key=lambda row: row[0]):
        lay_down(city.sequences_folder / sequence_id, [id_ for _, id_ in images], picture)


def adopt(clock: Clock, place: Home, environment: Mapping[str, str]) -> None:
    before = requests_made(environment)
    done = run(clock, place, environment, NAME)
    assert (done.images, done.missing) == (0, 0)
    after = requests_made(environment)
    clock.facts = {name: after[name] - before.get(name, 0) for name in after}


def status(clock: Clock, place: Home, environment: Mapping[str, str]) -> None:
    with clock:
        subprocess.run(
            [sys.executable, "-m", "vsvi_assets", "status", NAME],
            env={**place.environment, **environment},
            cwd=place.folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )


# The lines of the table


def adoption(folder: Path, images: Sequence[int], repeat: int) -> Iterator[Row]:
    """Adopt the photographs of cities of several sizes, run them again, and count them."""
    for count in images:
        size = SyntheticCity.of_size(count, IMAGES_PER_SEQUENCE)
        sequences = -(-count // IMAGES_PER_SEQUENCE)
        with home(folder / f"home{count}") as place:
            measure(prepare, size, place, place.folder / "tiles", "all")
            measure(lay_down_all, place, size)
            with serving(world, size, place.folder / "tiles") as environment:
                done = {"adopted": measure(adopt, place, environment)}
                for name, work in (("run again", adopt), ("vsvi status", status)):
                    done[name] = middle([measure(work, place, environment) for _ in range(repeat)])
        assert not any(done["run again"].facts.values()), done["run again"].facts
        for name, measured in done.items():
            yield _row(f"{count:,} images in {sequences:,} sequences, {name}", name, measured)


def _row(work: str, name: str, measured: Measured) -> Row:
    return Row(
        work,
        "–",
        seconds(measured.seconds),
        "",
        megabytes(measured.memory),
        f"at most {MOST_SECONDS[name]} s",
        measured.seconds <= MOST_SECONDS[name],
    )
