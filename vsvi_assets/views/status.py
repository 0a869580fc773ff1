"""What a city has: counted in its tables and on disk, in a few lines."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.photographs import count_oversized, take_inventory
from vsvi_assets.database.queries import (
    count_points_without_image,
    points_without_good_image,
    row_count,
)
from vsvi_assets.database.schema import IMAGES, SELECTED_IMAGES, STREET_POINTS
from vsvi_assets.database.summaries import MeasuredQuality, measured_quality
from vsvi_assets.files import DataPath
from vsvi_assets.mapillary.pacing import TileState
from vsvi_assets.photographs.inventory import Inventory
from vsvi_assets.photographs.jpeg import MAX_PIXELS
from vsvi_assets.photographs.verification import Verification
from vsvi_assets.threads import interruptible_workers

SHOWN = 10
"""At most so many images or reasons of one kind are listed."""


@dataclass(frozen=True)
class CityStatus:
    """The counts of a city; those of its tables are None until they are made."""

    street_points: int | None
    points_without_image: int | None
    tiles: int
    tiles_on_disk: int
    tiles_refreshed: datetime | None
    images: int | None
    inventory: Inventory | None
    oversized: int
    quality: MeasuredQuality | None = None
    points_without_good_image: int = 0


def city_status(city: City, postgis: Postgis) -> CityStatus:
    """Count what a city has."""
    times = [entry.stat().st_mtime for entry in city.stored_tiles().values()]
    selected = row_count(postgis, city, SELECTED_IMAGES) is not None
    inventory = without_image = None
    if selected:
        # The server looks for points while the folders are listed here.
        with interruptible_workers(1) as (pool, _):
            counting = pool.submit(count_points_without_image, postgis, city)
            inventory = take_inventory(city, postgis)
            without_image = counting.result()
    return CityStatus(
        street_points=row_count(postgis, city, STREET_POINTS),
        points_without_image=without_image,
        tiles=len(city.tile_keys),
        tiles_on_disk=len(times),
        tiles_refreshed=datetime.fromtimestamp(max(times), UTC) if times else None,
        images=row_count(postgis, city, IMAGES),
        inventory=inventory,
        oversized=count_oversized(postgis, city) if selected else 0,
        quality=measured_quality(postgis, city) if selected and city.quality else None,
        points_without_good_image=len(points_without_good_image(postgis, city))
        if selected and city.quality
        else 0,
    )


def status_lines(city: City, status: CityStatus, tile_state: TileState | None = None) -> list[str]:
    """Return a status as lines for people; with `tile_state` also whether tiles can be fetched."""
    lines = [city.name]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<14} {text}")

    points = "not made yet" if status.street_points is None else f"{status.street_points:,}"
    if status.points_without_image is not None:
        points += f", {status.points_without_image:,} of them without an image"
    if status.points_without_good_image:
        points += f" ({status.points_without_good_image:,} without one that is good enough)"
    add("places" if city.points_file else "street points", f"{points}  ({city.street_points_path})")
    tiles = f"{status.tiles_on_disk:,} of {status.tiles:,} on disk"
    if status.tiles_refreshed:
        tiles += f", the newest of {status.tiles_refreshed:%Y-%m-%d %H:%M} UTC"
    add("tiles", f"{tiles}  ({city.tiles_folder})")
    if tile_state:
        add("tile requests", tile_state.summary(status.tiles))
    images = status.images
    add("images", "no table yet" if images is None else f"{images:,} in the {city.area_name}")
    inventory = status.inventory
    if inventory is None:
        add("selected", "nothing yet")
        return lines
    add("selected", f"{inventory.selected:,} images  ({city.selected_image_ids_path})")
    if city.imgid_file and (absent := _count_lines(city.absent_image_ids_path)):
        add(
            f"not in the {city.area_name}",
            f"{absent:,} ids of {city.imgid_file}, or left out by the city's filters  "
            f"({city.absent_image_ids_path})",
        )
    add(
        "on disk",
        f"{inventory.on_disk:,} images, {inventory.bytes:,} bytes  ({city.sequences_folder})",
    )
    if status.oversized:
        add(
            "oversized",
            f"{status.oversized:,} files of more than {MAX_PIXELS:,} pixels, which Pillow opens "
            "only when its limit is raised",
        )
    missing = sum(map(len, inventory.missing.values()))
    add("missing", f"{missing:,} images of {len(inventory.missing):,} sequences")
    if inventory.unread:
        add("unread", f"{len(inventory.unread):,} of the missing have a file that is not read yet")
    if inventory.failed:
        add("failed", f"{len(inventory.failed):,} of the missing, at the last attempt:")
        lines += _most_frequent(inventory.failed)
    if inventory.not_answered:
        due = sum(map(len, inventory.due.values()))
        add(
            "not answered",
            f"{len(inventory.not_answered):,} that Mapillary leaves out of its answers; the next "
            f"run asks again for {due:,} of them:",
        )
        lines += [
            f"    {image_id} not answered since {absence.first_asked:%Y-%m-%d %H:%M} UTC"
            for image_id, absence in islice(inventory.not_answered.items(), SHOWN)
        ]
    if inventory.unavailable:
        add("unavailable", f"{len(inventory.unavailable):,} that Mapillary does not have any more")
    if inventory.refused:
        add("refused", f"{len(inventory.refused):,} that cannot be used:")
        lines += _most_frequent(inventory.refused)
    if quality := status.quality:
        add("measured", f"{quality.photographs:,} photographs: {quality.summary()}")
    if inventory.unmeasured:
        count = sum(map(len, inventory.unmeasured.values()))
        add("not measured", f"{count:,} of those on disk; the next run measures them")
    if quality and quality.rejected:
        add("rejected", f"{quality.rejected:,} on disk that are not good enough:")
        lines += [f"    {count:,} {reason}" for reason, count in quality.reasons.items()]
    if inventory.orphaned:
        add("orphaned", f"{len(inventory.orphaned):,} sequences on disk, no longer selected:")
        lines += [f"    {sequence_id}" for sequence_id in inventory.orphaned]
    if city.coverage_report_path.exists():
        add("report", str(city.coverage_report_path))
    if city.dataset_path.exists():
        add("table", f"{city.dataset_path}  (one row per point and image)")
    return lines


def verification_lines(found: Verification) -> list[str]:
    """Return what a verification found as lines for people, but for the differences."""
    lines = [f"  {'verified':<14} {found.photographs:,} photographs are as they were downloaded"]
    if found.unlisted:
        few = "" if len(found.unlisted) <= SHOWN else f"; the first {SHOWN} are"
        lines.append(f"  {'not listed':<14} {len(found.unlisted):,} that no sidecar lists{few}:")
        lines += [f"    {name}" for name in found.unlisted[:SHOWN]]
    if found.others:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.others.items()))
        lines.append(f"  {'other files':<14} {counts}")
    return lines


def _count_lines(path: DataPath) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0


def _most_frequent(reasons: Mapping[int, str]) -> list[str]:
    """Return the most frequent of the images' reasons, each with an image that it holds for."""
    examples = {reason: image_id for image_id, reason in reasons.items()}
    return [
        f"    {count:,}, such as {examples[reason]}: {reason}"
        for reason, count in Counter(reasons.values()).most_common(SHOWN)
    ]
