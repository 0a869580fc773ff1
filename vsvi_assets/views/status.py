"""What a city has: counted in its tables and on disk, told in a few lines."""

from dataclasses import dataclass
from datetime import UTC, datetime

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import count_points_without_image, row_count
from vsvi_assets.database.schema import IMAGES, SELECTED_IMAGES, STREET_POINTS
from vsvi_assets.mapillary.errors import InvalidSidecarError
from vsvi_assets.photographs.inventory import Inventory, take_inventory
from vsvi_assets.photographs.sidecar import SIDECAR_NAME, differences, strangers


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


def city_status(city: City, postgis: Postgis) -> CityStatus:
    """Count what a city has."""
    times = [
        path.stat().st_mtime for key in city.tile_keys if (path := city.tile_path(key)).exists()
    ]
    selected = row_count(postgis, city, SELECTED_IMAGES) is not None
    return CityStatus(
        street_points=row_count(postgis, city, STREET_POINTS),
        points_without_image=count_points_without_image(postgis, city) if selected else None,
        tiles=len(city.tile_keys),
        tiles_on_disk=len(times),
        tiles_refreshed=datetime.fromtimestamp(max(times), UTC) if times else None,
        images=row_count(postgis, city, IMAGES),
        inventory=take_inventory(city, postgis) if selected else None,
    )


def status_lines(city: City, status: CityStatus) -> list[str]:
    """Tell a status to people."""
    lines = [city.name]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<14} {text}")

    points = "not made yet" if status.street_points is None else f"{status.street_points:,}"
    if status.points_without_image is not None:
        points += f", {status.points_without_image:,} of them without an image"
    add("street points", f"{points}  ({city.street_points_path})")
    tiles = f"{status.tiles_on_disk:,} of {status.tiles:,} on disk"
    if status.tiles_refreshed:
        tiles += f", the newest of {status.tiles_refreshed:%Y-%m-%d %H:%M} UTC"
    add("tiles", f"{tiles}  ({city.tiles_folder})")
    add("images", "no table yet" if status.images is None else f"{status.images:,} in the box")
    inventory = status.inventory
    if inventory is None:
        add("selected", "nothing yet")
        return lines
    add("selected", f"{inventory.selected:,} images  ({city.selected_image_ids_path})")
    add(
        "on disk",
        f"{inventory.on_disk:,} images, {inventory.bytes:,} bytes  ({city.sequences_folder})",
    )
    missing = sum(map(len, inventory.missing.values()))
    add("missing", f"{missing:,} images of {len(inventory.missing):,} sequences")
    if inventory.failed:
        add("failed", f"{len(inventory.failed):,} of the missing, at the last try")
    if inventory.unavailable:
        add("unavailable", f"{len(inventory.unavailable):,} that Mapillary has no longer")
    if inventory.orphaned:
        add("orphaned", f"{len(inventory.orphaned):,} sequences on disk, no longer selected:")
        lines.extend(f"    {sequence_id}" for sequence_id in inventory.orphaned)
    if city.coverage_report_path.exists():
        add("report", str(city.coverage_report_path))
    return lines


def verify_lines(city: City) -> list[str]:
    """Read every photograph, compare it with its sidecar, and tell what is wrong, a line each."""
    lines = []
    for folder in sorted(path for path in city.sequences_folder.glob("*") if path.is_dir()):
        try:
            wrong, unlisted = differences(folder), strangers(folder)
        except InvalidSidecarError as error:
            lines.append(str(error))
            continue
        lines += [f"{folder.name}/{image_id}.jpg: {what}" for image_id, what in wrong.items()]
        lines += [f"{folder.name}/{name}: not in {SIDECAR_NAME}" for name in unlisted]
    return lines
