"""What the photographs of a city will take: room, time and requests, before any is downloaded."""

import math
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import take_inventory
from vsvi_assets.database.queries import selected_images_shuffled
from vsvi_assets.files import atomic_write, gigabytes
from vsvi_assets.mapillary.client import (
    IMAGES_PER_REQUEST,
    LINK_REQUESTS_PER_SECOND,
    ImageSize,
    Mapillary,
)
from vsvi_assets.mapillary.errors import (
    MapillaryError,
    OversizedImageError,
    RefusedRequestError,
    StaleLinkError,
    TransientError,
    UnavailableError,
)
from vsvi_assets.mapillary.pacing import TILES_PER_DAY

SAMPLE_OF_A_KIND = 15
"""Panoramas, and as many flat images, that are fetched for their sizes."""

NOT_TO_BE_HAD = (OversizedImageError, RefusedRequestError, StaleLinkError, TransientError)

RANGE_PERCENTILES = (5, 95)
RESAMPLINGS = 2000


@dataclass(frozen=True)
class Sample:
    """Images that were fetched for their sizes.

    Attributes
    ----------
    image_size
        As in the city file.
    sizes
        Bytes by image id; 0 where Mapillary has the image no longer. Images that could not be
        had are not among them.
    bytes_per_second
        How fast they came; None where none came.
    """

    image_size: ImageSize
    sizes: Mapping[int, int] = field(default_factory=dict)
    bytes_per_second: float | None = None


@dataclass(frozen=True)
class DownloadPlan:
    """What is yet to be downloaded, and what it will take.

    Attributes
    ----------
    selected, on_disk, unavailable
        Images: selected, of these on disk already (some of them yet to be read, see
        `Inventory.unread`), and known to be gone from Mapillary.
    images, panoramas
        Images to download, and how many of them are panoramas.
    bytes, bytes_low, bytes_high
        What they take on disk: the estimate, and the range that holds it in 9 of 10 cases.
    sampled
        Images fetched to estimate it.
    bytes_per_second
        The rate at which these came; None where nothing was sampled.
    link_requests
        Requests to the Graph API.
    tiles, tile_requests_left
        Tiles that a refresh asks for, and how many may still be asked for today.
    free_bytes, required_free_bytes
        Free on the disk now, and what has to stay free of it.
    """

    selected: int
    on_disk: int
    unavailable: int
    images: int
    panoramas: int
    bytes: int
    bytes_low: int
    bytes_high: int
    sampled: int
    bytes_per_second: float | None
    link_requests: int
    tiles: int
    tile_requests_left: int
    free_bytes: int
    required_free_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What the disk can take."""
        return max(self.free_bytes - self.required_free_bytes, 0)

    @property
    def fits(self) -> bool:
        """Whether the estimate fits on the disk."""
        return self.bytes <= self.usable_bytes

    @property
    def surely_fits(self) -> bool:
        """Whether the upper end of the range fits too."""
        return self.bytes_high <= self.usable_bytes

    def seconds(self, bytes_: int) -> float:
        """Return how long so many bytes take at the rate of the sample, in seconds."""
        links = self.link_requests / LINK_REQUESTS_PER_SECOND
        return max(bytes_ / self.bytes_per_second, links) if self.bytes_per_second else links


def make_plan(city: City, postgis: Postgis, client: Mapillary) -> DownloadPlan:
    """Plan the download of a city's selected images that are not on disk yet.

    The sizes come from images that are fetched once and remembered in the city's folder.
    Which these are depends on the city's name and the selection alone; flat images and
    panoramas are sampled apart, being of different sizes. The range comes from drawing the
    sample again from itself many times (the percentile bootstrap, B. Efron 1979).

    Raises
    ------
    MapillaryError
        When no sampled image can be had, for another reason than that it is gone.
    psycopg2.errors.UndefinedTable
        When nothing is selected yet.
    """
    inventory = take_inventory(city, postgis)
    missing = set(chain.from_iterable(inventory.missing.values())).difference(inventory.unread)
    selected = selected_images_shuffled(postgis, city)
    panoramas = pc.sum(_those_of(selected, missing)["is_pano"]).as_py() or 0
    known = _read_sample(city)
    # What is on disk is not fetched for its size.
    kinds = _draw_sample(_those_of(selected, missing | known.sizes.keys())) if missing else {}
    sample = _sample(city, client, known, list(chain.from_iterable(kinds.values())))
    counts = {False: len(missing) - panoramas, True: panoramas}
    estimate, low, high = estimate_bytes(
        {
            is_pano: (
                counts[is_pano],
                # Of a kind none of which could be had, the other tells most.
                [sample.sizes[image_id] for image_id in ids if image_id in sample.sizes]
                or list(sample.sizes.values()),
            )
            for is_pano, ids in kinds.items()
        }
    )
    assert client.tile_budget
    return DownloadPlan(
        selected=inventory.selected,
        on_disk=inventory.on_disk + len(inventory.unread),
        unavailable=len(inventory.unavailable),
        images=len(missing),
        panoramas=panoramas,
        bytes=estimate,
        bytes_low=low,
        bytes_high=high,
        sampled=len(sample.sizes),
        bytes_per_second=sample.bytes_per_second,
        link_requests=math.ceil(len(missing) / IMAGES_PER_REQUEST),
        tiles=len(city.tiles),
        tile_requests_left=client.tile_budget.left(),
        free_bytes=shutil.disk_usage(_existing(city.sequences_folder)).free,
        required_free_bytes=city.required_free_bytes,
    )


def estimate_bytes(kinds: Mapping[bool, tuple[int, Sequence[int]]]) -> tuple[int, int, int]:
    """Estimate what images take on disk, from the sizes of some.

    Parameters
    ----------
    kinds
        For each kind of image how many there are, and the sizes of a sample in bytes.

    Returns
    -------
    estimate, low, high
        Bytes; the range holds the true value in 9 of 10 cases.
    """
    numbers = np.random.default_rng(0)
    estimate, resampled = 0.0, np.zeros(RESAMPLINGS)
    for count, sizes in kinds.values():
        estimate += count * float(np.mean(sizes))
        draws = numbers.choice(sizes, (RESAMPLINGS, len(sizes)))
        resampled += count * draws.mean(axis=1)
    low, high = np.percentile(resampled, RANGE_PERCENTILES)
    return round(estimate), round(low), round(high)


def plan_lines(city: City, plan: DownloadPlan) -> list[str]:
    """Tell a plan to people."""
    lines = [city.name]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<14} {text}")

    add(
        "selected",
        f"{plan.selected:,} images, {plan.on_disk:,} of them on disk, "
        f"{plan.unavailable:,} no longer at Mapillary",
    )
    add("to download", f"{plan.images:,} images, {plan.panoramas:,} of them panoramas")
    if plan.images:
        add(
            "room",
            f"{gigabytes(plan.bytes)} ({gigabytes(plan.bytes_low)} to "
            f"{gigabytes(plan.bytes_high)}, from the sizes of {plan.sampled})",
        )
    add(
        "disk",
        f"{gigabytes(plan.free_bytes)} free, {gigabytes(plan.required_free_bytes)} of it to "
        f"stay free ({city.sequences_folder})",
    )
    if plan.images and plan.bytes_per_second:
        low, high = (
            timedelta(seconds=round(plan.seconds(bytes_)))
            for bytes_ in (plan.bytes_low, plan.bytes_high)
        )
        add("time", f"{low} to {high}, at {plan.bytes_per_second / 1e6:,.1f} MB a second")
    add("requests", f"{plan.link_requests:,} for links, {plan.images:,} for images")
    add(
        "tiles",
        f"a refresh asks for {plan.tiles:,}; {plan.tile_requests_left:,} of "
        f"{TILES_PER_DAY:,} requests are left today",
    )
    return lines


def fit_message(city: City, plan: DownloadPlan, needed: str, fits: bool) -> str:
    """Tell whether what is needed fits on the disk, and if not what to do."""
    usable = f"the disk of {city.sequences_folder} can take {gigabytes(plan.usable_bytes)}"
    if fits:
        return f"The photographs need {needed}; {usable}."
    return (
        f"The photographs need {needed}, but {usable}. Make room, put seqdir on a larger disk, or "
        "ask for less in the city file: a smaller image_size or box, a larger interval, a lower "
        "required_disk_space."
    )


def _those_of(images: pa.Table, ids: Collection[int]) -> pa.Table:
    return images.filter(pc.is_in(images["id"], pa.array(ids, pa.int64())))


def _draw_sample(selected: pa.Table) -> dict[bool, list[int]]:
    """Take the first images of each kind."""
    drawn = {
        is_pano: selected.filter(pc.equal(selected["is_pano"], is_pano))["id"]
        .slice(0, SAMPLE_OF_A_KIND)
        .to_pylist()
        for is_pano in (False, True)
    }
    return {is_pano: ids for is_pano, ids in drawn.items() if ids}


def _sample(city: City, client: Mapillary, known: Sample, ids: Sequence[int]) -> Sample:
    """Return the sizes of the images, of which those known from before are not fetched again."""
    unknown = [image_id for image_id in ids if image_id not in known.sizes]
    if unknown:
        fetched, failed = _fetch_sample(client, unknown, city.image_size)
        known = Sample(
            city.image_size,
            {**known.sizes, **fetched.sizes},
            fetched.bytes_per_second or known.bytes_per_second,
        )
        if known.sizes.keys().isdisjoint(ids):
            raise failed[0]
        city.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(_sample_path(city)) as file:
            file.write(orjson.dumps(asdict(known), option=orjson.OPT_NON_STR_KEYS))
    return Sample(
        known.image_size,
        {image_id: known.sizes[image_id] for image_id in ids if image_id in known.sizes},
        known.bytes_per_second,
    )


def _sample_path(city: City) -> Path:
    return city.folder / "image_sizes.json"


def _read_sample(city: City) -> Sample:
    if _sample_path(city).is_file():
        content = orjson.loads(_sample_path(city).read_bytes())
        if content["image_size"] == city.image_size:
            sizes = {int(image_id): bytes_ for image_id, bytes_ in content["sizes"].items()}
            return Sample(city.image_size, sizes, content["bytes_per_second"])
    return Sample(city.image_size)


def _fetch_sample(
    client: Mapillary, ids: Sequence[int], image_size: ImageSize
) -> tuple[Sample, list[MapillaryError]]:
    """Fetch images all at once, as a download does, and throw them away.

    As in a download, one that cannot be had stops no other: the errors come beside the sample.
    """
    arrived: list[float] = []
    failed: list[MapillaryError] = []
    with client.workers(len(ids)) as (pool, stop):
        links = client.image_links(ids, image_size, stop).found

        def size(image_id: int) -> int | None:
            if image_id not in links:
                return 0
            try:
                bytes_ = client.image_size(links[image_id], stop)
            except UnavailableError:
                return 0
            except NOT_TO_BE_HAD as error:
                failed.append(error)
                return None
            arrived.append(time.monotonic())
            return bytes_

        began = time.monotonic()
        found = zip(ids, pool.map(size, ids), strict=True)
        sizes = {image_id: size for image_id, size in found if size is not None}
    rate = sum(sizes.values()) / (max(arrived) - began) if arrived else None
    return Sample(image_size, sizes, rate), failed


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
