"""What the photographs of a city will take: room, time and requests, before any is downloaded."""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import (
    PhotographRecords,
    latest_rate,
    latest_stored,
    selected_sizes_shuffled,
    take_inventory,
)
from vsvi_assets.database.queries import images_shuffled
from vsvi_assets.database.selection import read_removals
from vsvi_assets.database.summaries import MeasuredQuality, measured_quality, read_corrections
from vsvi_assets.database.tables import selected_images_of
from vsvi_assets.files import NO_LIMIT, DiskFullError, DiskGuard, free_bytes, gigabytes
from vsvi_assets.mapillary.client import (
    IMAGES_PER_REQUEST,
    REQUESTS_PER_SECOND,
    Mapillary,
)
from vsvi_assets.mapillary.corrections import Corrections
from vsvi_assets.mapillary.errors import Service
from vsvi_assets.mapillary.pacing import TileState, duration
from vsvi_assets.photographs.attribution import write_attribution
from vsvi_assets.photographs.downloads import MAX_WITNESSES, SequenceJob, download_sequences
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.photographs.sidecar import Sidecar
from vsvi_assets.selection.rules import Removal

SAMPLE_OF_A_KIND = 15
"""Panoramas, and as many flat images, whose sizes are known or fetched for the plan."""

SIZES_OF_A_KIND = 500
"""At most so many sizes of a kind are used, where they are known."""

RANGE_PERCENTILES = (5, 95)
RESAMPLINGS = 2000


_GRAPH_PER_SECOND = REQUESTS_PER_SECOND[Service.GRAPH]


class SampleFailedError(Exception):
    """None of the images could be fetched whose sizes the plan is made of.

    `may_pass` says whether the same may succeed minutes later, with nothing changed.
    """

    def __init__(self, message: str, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


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
        0 where no size is known, because the disk takes no more photographs.
    sampled
        Images whose sizes it is made of.
    bytes_per_second
        The rate at which the latest of them came; None where none came.
    link_requests
        Requests to the Graph API.
    tile_requests, tile_state
        Tile requests of a refresh, and how many may be made now.
    free_bytes, required_free_bytes
        Free on the disk now, and what has to stay free of it. None for an object store, which has
        no limit that is known.
    removals
        What each rule of the city file left out at the selection.
    quality
        What was measured of the photographs in store; None where nothing was.
    corrections
        What Mapillary corrected of the images in the tiles; None where the city does not go by it.
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
    tile_requests: int
    tile_state: TileState
    free_bytes: int | None
    required_free_bytes: int
    removals: Sequence[Removal] = ()
    quality: MeasuredQuality | None = None
    corrections: Corrections | None = None

    @property
    def usable_bytes(self) -> int | None:
        """What the disk can take; None for an object store."""
        if self.free_bytes is None:
            return None
        return max(self.free_bytes - self.required_free_bytes, 0)

    @property
    def fits(self) -> bool:
        """Whether the estimate fits on the disk."""
        return self._can_take(self.bytes)

    @property
    def surely_fits(self) -> bool:
        """Whether the upper end of the range fits too."""
        return self._can_take(self.bytes_high)

    def _can_take(self, bytes_: int) -> bool:
        return not self.images or self.usable_bytes is None or bytes_ < self.usable_bytes

    @property
    def headings(self) -> str | None:
        """What the headings of a refresh take, in words; None where none are asked for."""
        if not self.corrections or not self.corrections.heading_requests:
            return None
        requests, per_minute = self.corrections.heading_requests, 60 * _GRAPH_PER_SECOND
        return (
            f"{requests:,} requests take {duration(requests / per_minute)} at "
            f"{per_minute:,.0f} per minute"
        )

    def seconds(self, bytes_: int) -> float:
        """Return how long so many bytes take at the latest rate, in seconds."""
        links = self.link_requests / _GRAPH_PER_SECOND
        return max(bytes_ / self.bytes_per_second, links) if self.bytes_per_second else links


def make_plan(city: City, postgis: Postgis, client: Mapillary) -> DownloadPlan:
    """Plan the download of a city's selected images that are not on disk yet.

    The sizes are those of images that are on disk. Where these are few, some of the missing
    images are downloaded first, to where they belong. Flat images and panoramas are sampled
    apart, being of different sizes; what is sampled depends on the city's name and selection
    alone. The range comes from drawing the sample again from itself many times (the
    percentile bootstrap, B. Efron 1979).

    Raises
    ------
    SampleFailedError
        When no size is known, and none of the sampled images could be fetched.
    psycopg2.errors.UndefinedTable
        When nothing is selected yet.
    """
    inventory = take_inventory(city, postgis)
    missing = set(chain.from_iterable(inventory.missing.values())).difference(inventory.unread)
    shuffled = images_shuffled(postgis, city, missing)
    kinds = _by_kind(shuffled["is_pano"], shuffled["id"])
    sizes = _known_sizes(city, postgis)
    sample = [
        image_id
        for is_pano, ids in kinds.items()
        for image_id in ids[: max(SAMPLE_OF_A_KIND - len(sizes.get(is_pano, [])), 0)]
    ]
    fetched, may_pass = (
        _fetch(city, postgis, client, inventory, sample) if sample else (Sidecar(), True)
    )
    if fetched.images or fetched.absent or fetched.refused:
        sizes = _known_sizes(city, postgis)
    elif fetched.failed and not sizes:
        raise SampleFailedError(
            f"{city.name}: none of {len(sample)} images could be fetched to plan the download. "
            f"The first reason: {next(iter(fetched.failed.values()))}",
            may_pass,
        )
    left = missing - (fetched.ids - fetched.failed.keys())
    counts = {is_pano: sum(id_ in left for id_ in ids) for is_pano, ids in kinds.items()}
    # Of a kind of which no size is known, the other says most.
    all_sizes = list(chain.from_iterable(sizes.values()))
    estimate, low, high = estimate_bytes(
        {
            is_pano: (count, sizes.get(is_pano) or all_sizes)
            for is_pano, count in counts.items()
            if count and all_sizes
        }
    )
    assert client.tile_gate
    return DownloadPlan(
        selected=inventory.selected,
        on_disk=inventory.on_disk + len(inventory.unread) + len(fetched.images),
        unavailable=len(inventory.unavailable),
        images=len(left),
        panoramas=counts.get(True, 0),
        bytes=estimate,
        bytes_low=low,
        bytes_high=high,
        sampled=len(all_sizes),
        bytes_per_second=latest_rate(postgis, city),
        link_requests=math.ceil(len(left) / IMAGES_PER_REQUEST),
        tile_requests=city.tile_requests,
        tile_state=client.tile_gate.state(),
        free_bytes=free_bytes(city.sequences_folder),
        required_free_bytes=city.required_free_bytes,
        removals=read_removals(postgis, city),
        quality=measured_quality(postgis, city) if city.quality else None,
        corrections=read_corrections(postgis, city) if city.goes_by_corrections else None,
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
    """Return a plan as lines for people."""
    lines = [city.name]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<14} {text}")

    add(
        "selected",
        f"{plan.selected:,} images, {plan.on_disk:,} of them on disk, "
        f"{plan.unavailable:,} not available any more",
    )
    for sentence in plan.corrections.sentences(city) if plan.corrections else ():
        add("corrections", sentence)
    for removal in plan.removals:
        add(removal.rule, f"{removal.setting}: {removal}")
    add("to download", f"{plan.images:,} images, {plan.panoramas:,} of them panoramas")
    if plan.quality:
        add("rejected", rejected_text(plan))
        add("measured", plan.quality.summary())
    if plan.sampled and plan.images:
        add(
            "room",
            f"{gigabytes(plan.bytes)} ({gigabytes(plan.bytes_low)} to "
            f"{gigabytes(plan.bytes_high)}, from the sizes of {plan.sampled})",
        )
    room = (
        NO_LIMIT
        if plan.free_bytes is None
        else f"{gigabytes(plan.free_bytes)} free, {gigabytes(plan.required_free_bytes)} of it to "
        "stay free"
    )
    add("disk", f"{room} ({city.sequences_folder})")
    if plan.images and plan.bytes_per_second:
        low, high = (
            timedelta(seconds=round(plan.seconds(bytes_)))
            for bytes_ in (plan.bytes_low, plan.bytes_high)
        )
        add("time", f"{low} to {high}, at {plan.bytes_per_second / 1e6:,.1f} MB per second")
    add("requests", f"{plan.link_requests:,} for links, {plan.images:,} for images")
    add("tiles", f"of a refresh: {plan.tile_state.summary(plan.tile_requests)}")
    if plan.headings:
        add("headings", f"of a refresh: {plan.headings}")
    return lines


def rejected_text(plan: DownloadPlan) -> str:
    """Say how many photographs are not good enough, and what that means for those to come."""
    quality = plan.quality
    assert quality
    if not quality.rejected:
        return f"none of {quality.photographs:,} measured photographs"
    share = quality.rejected / quality.photographs
    low, high = quality.share_range
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in quality.reasons.items())
    return (
        f"{quality.rejected:,} of {quality.photographs:,} measured photographs ({share:.0%}; "
        f"{low:.0%} to {high:.0%} in 9 of 10 cases), about {round(share * plan.images):,} of those "
        f"to download, in whose place others are tried: {reasons}"
    )


def fit_message(city: City, plan: DownloadPlan, needed: str, fits: bool) -> str:
    """Say whether what is needed fits on the disk, and if not what to do."""
    if not plan.sampled:
        needed = "more"
    if plan.usable_bytes is None:
        return f"The photographs need {needed}; {city.sequences_folder} is in an {NO_LIMIT}."
    usable = f"the disk of {city.sequences_folder} can take {gigabytes(plan.usable_bytes)}"
    if fits:
        return f"The photographs need {needed}; {usable}."
    return (
        f"The photographs need {needed}, but {usable}. Make room, put seqdir on a larger disk, or "
        "ask for less in the city file: a smaller image_size or box, a larger interval, a lower "
        "required_disk_space."
    )


def _by_kind(is_pano: pa.ChunkedArray, values: pa.ChunkedArray) -> dict[bool, list[int]]:
    """Return the values of flat images, and those of panoramas, without kinds that have none."""
    kinds = {kind: values.filter(pc.equal(is_pano, kind)).to_pylist() for kind in (False, True)}
    return {kind: found for kind, found in kinds.items() if found}


def _known_sizes(city: City, postgis: Postgis) -> dict[bool, list[int]]:
    """Return the bytes of images that were asked for, by kind; 0 where there is no file."""
    known = selected_sizes_shuffled(postgis, city)
    return {
        is_pano: sizes[:SIZES_OF_A_KIND]
        for is_pano, sizes in _by_kind(known["is_pano"], known["bytes"]).items()
    }


def _fetch(
    city: City,
    postgis: Postgis,
    client: Mapillary,
    inventory: Inventory,
    image_ids: Collection[int],
) -> tuple[Sidecar, bool]:
    """Download some of the missing images.

    Returns what became of them, and whether one of those that failed may succeed minutes later.
    """
    found, may_pass, wanted = Sidecar(), False, set(image_ids)
    sequence_ids = [key for key, ids in inventory.missing.items() if not wanted.isdisjoint(ids)]
    jobs = [
        SequenceJob(sequence_id, [image for image in images if image.id in wanted])
        for sequence_id, images in selected_images_of(postgis, city.name, sequence_ids)
    ]
    city.sequences_folder.mkdir(parents=True, exist_ok=True)
    write_attribution(city.sequences_folder)
    results = download_sequences(
        client,
        jobs,
        city.sequences_folder,
        size=city.image_size,
        services=city.services,
        guard=DiskGuard(city.sequences_folder, city.required_free_bytes),
        witnesses=latest_stored(postgis, city, MAX_WITNESSES),
        measures_quality=city.quality is not None,
    )
    # A full disk is no error here: the plan says that the photographs do not fit on it.
    with suppress(DiskFullError), closing(results), PhotographRecords(postgis, city) as records:
        for result in results:
            records.add(result.sequence_id, result.sidecar)
            found = found.updated(result.found)
            may_pass |= bool(result.found.failed) and result.may_pass
    return found, may_pass
