"""Photographs: fetched, and found to be there already."""

import hashlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa

from benchmarks import reference
from benchmarks.inputs import SyntheticCity, photograph
from benchmarks.measure import Clock, Measured, Work, in_turn, measure
from benchmarks.surroundings import Home, emptied, requests_made, require, serving
from benchmarks.table import Row, megabytes, seconds
from vsvi_assets.city import City, load_city
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.tables import SELECTION_SCHEMA, selected_images_table
from vsvi_assets.files import DataPath, DiskGuard
from vsvi_assets.mapillary.client import IMAGES_PER_REQUEST, Mapillary
from vsvi_assets.photographs.downloads import SequenceJob, download_sequences
from vsvi_assets.photographs.sidecar import ImageRecord, Sidecar, image_path, write_sidecar
from vsvi_assets.sandbox import TOKEN, StreetImage, World
from vsvi_assets.settings import Settings

LATENCY = 0.05
PHOTOGRAPH_BYTES = 500_000
IMAGES_OF_THE_REFERENCE = 60
FIRST_ID = 10_000_000


def world(sequences: int, images_per_sequence: int, bytes_: int) -> World:
    """Make a world of photographs of one size, all with the same bytes."""
    picture = cache(lambda: photograph(bytes_))
    world = World(picture=lambda image, size: picture())
    world.add_images(
        StreetImage(id=image_id, lon=4.9, lat=52.4, sequence_id=job.sequence_id)
        for job in jobs(sequences, images_per_sequence)
        for image_id in ids_of(job)
    )
    return world


def jobs(sequences: int, images_per_sequence: int) -> Iterator[SequenceJob]:
    """Yield the sequences of such a world."""
    for number in range(sequences):
        first = FIRST_ID + number * images_per_sequence
        ids = range(first, first + images_per_sequence)
        yield SequenceJob(
            f"sequence_{number:013d}", [StreetImage(id_, 4.9, 52.4, "") for id_ in ids]
        )


def ids_of(job: SequenceJob) -> list[int]:
    return [image.id for image in job.images]


def client(environment: Mapping[str, str]) -> Mapillary:
    """Return a client of a sandbox."""
    return Mapillary(Settings.from_environment(environment).services_of("mapillary"))


# In processes of their own


def project_downloads(
    clock: Clock,
    environment: Mapping[str, str],
    folder: DataPath,
    sequences: int,
    per_sequence: int,
) -> None:
    folder.mkdir(exist_ok=True)
    before = requests_made(environment)
    fetched = present = 0
    with clock:
        for result in download_sequences(
            client(environment),
            jobs(sequences, per_sequence),
            folder,
            size="original",
            services="mapillary",
            guard=DiskGuard(folder, 0),
        ):
            fetched += result.fetched_images
            present += len(result.found.images) - result.fetched_images
    after = requests_made(environment)
    clock.facts = {
        "fetched": fetched,
        "present": present,
        "requests": sum(after.values()) - sum(before.values()),
    }


def reference_downloads(
    clock: Clock, environment: Mapping[str, str], folder: Path, images: int
) -> None:
    folder.mkdir()
    with clock:
        reference.download(
            environment["MAPILLARY_GRAPH_URL"], TOKEN, range(FIRST_ID, FIRST_ID + images), folder
        )


def aria2c_downloads(
    clock: Clock, environment: Mapping[str, str], folder: Path, images: int
) -> None:
    links = []
    for start in range(FIRST_ID, FIRST_ID + images, IMAGES_PER_REQUEST):
        ids = range(start, min(start + IMAGES_PER_REQUEST, FIRST_ID + images))
        links += [
            f"{link.url}\n out={link.id}.jpg\n"
            for link in client(environment).image_links(ids, "original").found.values()
        ]
    folder.mkdir()
    (folder / "links").write_text("".join(links))
    with clock:
        subprocess.run(
            ["aria2c", "-x1", "-j64", "-q", "--file-allocation=none", "-d", folder,
             "-i", folder / "links"],
            check=True,
        )  # fmt: skip


def inventory(clock: Clock, environment: Mapping[str, str], city: City) -> None:
    postgis = Postgis(environment["VSVI_POSTGRES_URL"])
    with clock:
        found = take_inventory(city, postgis)
    clock.facts = {"present": found.on_disk}


# The lines of the table


def download(folder: Path, images: int, repeat: int) -> Iterator[Row]:
    """Downloads, 50 ms latency a request, 500 KB an image."""
    require("aria2c", "aria2")
    sequences = max(images // 50, 1)
    with serving(world, sequences, 50, PHOTOGRAPH_BYTES, latency=LATENCY) as environment:

        def side(name: str, work: Work, *arguments: object) -> Measured:
            with emptied(folder / name) as target:
                return measure(work, environment, target, *arguments)

        images = sequences * 50
        ours, aria2c, theirs = in_turn(
            repeat,
            lambda: side("project", project_downloads, sequences, 50),
            lambda: side("aria2c", aria2c_downloads, images),
            lambda: side("reference", reference_downloads, min(images, IMAGES_OF_THE_REFERENCE)),
        )
        few = side("project", project_downloads, max(sequences // 10, 1), 50)
    rate, aria2c_rate = images / ours.seconds, images / aria2c.seconds
    reference_rate = min(images, IMAGES_OF_THE_REFERENCE) / theirs.seconds
    per_image = ours.facts["requests"] / ours.facts["fetched"]
    yield Row(
        f"download of {images:,} images, 50 ms latency, 500 KB",
        f"{reference_rate:.1f} images/s",
        f"{rate:.0f} images/s",
        f"{rate / reference_rate:.1f}",
        f"{megabytes(ours.memory)} ({megabytes(few.memory)} at a tenth)",
        ">= 25; under 400 MB",
        rate >= 25 * reference_rate and ours.memory < 400,
    )
    yield Row(
        "the same beside aria2c -x1 -j64, which is given the links",
        f"{aria2c_rate:.0f} images/s (aria2c)",
        f"{rate:.0f} images/s",
        f"{rate / aria2c_rate:.2f}",
        megabytes(ours.memory),
        ">= 0.8",
        rate >= 0.8 * aria2c_rate,
    )
    yield Row("requests per image", "2", f"{per_image:.3f}", "", "", "<= 1.05", per_image <= 1.05)


def present(home: Home, images: int, repeat: int) -> Iterator[Row]:
    """A second run, when all is there: nothing is asked for."""
    sequences = max(images // 20, 1)
    SyntheticCity.of_size(1).write(home.folder / "cities", "present")
    city = load_city(home.folder / "cities" / "present.json", home.folder / "data")
    picture = photograph(2000)
    for job in jobs(sequences, 20):
        lay_down(city.sequences_folder / job.sequence_id, ids_of(job), picture)
    selection = pa.Table.from_pylist(
        [
            {"image_id": image_id, "sequence_id": job.sequence_id}
            for job in jobs(sequences, 20)
            for image_id in ids_of(job)
        ],
        SELECTION_SCHEMA,
    )
    replace_tables(
        Postgis(home.postgis.vsvi_url), "present", [selected_images_table(selection, city)]
    )
    with serving(world, sequences, 20, 2000) as environment:
        downloads, inventories = in_turn(
            repeat,
            lambda: measure(project_downloads, environment, city.sequences_folder, sequences, 20),
            lambda: measure(inventory, home.environment, city),
        )
    assert downloads.facts["present"] == inventories.facts["present"] == sequences * 20
    asked = downloads.facts["requests"]
    yield Row(
        f"{sequences * 20:,} images in {sequences:,} sequences, all on disk already",
        "–",
        f"{seconds(downloads.seconds)}, {asked} requests",
        "",
        megabytes(downloads.memory),
        "under 20 s, no request",
        downloads.seconds < 20 and not asked,
    )
    yield Row(
        "the same, only counted (`vsvi status`)",
        "–",
        seconds(inventories.seconds),
        "",
        megabytes(inventories.memory),
        "under 20 s",
        inventories.seconds < 20,
    )


def lay_down(folder: Path, image_ids: Sequence[int], picture: bytes) -> None:
    """Put photographs and their sidecar into a sequence's folder, as a run leaves them."""
    folder.mkdir(parents=True)
    records = {}
    for image_id in image_ids:
        image_path(folder, image_id).write_bytes(picture)
        records[image_id] = ImageRecord(
            id=image_id, lon=4.9, lat=52.4, captured_at=1_600_000_000_000, compass_angle=90.0,
            is_pano=False, creator="sandbox", width=64, height=64, bytes=len(picture),
            sha256=hashlib.sha256(picture).hexdigest(),
        )  # fmt: skip
    write_sidecar(folder, Sidecar(records))
