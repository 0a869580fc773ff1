"""What a city has on disk, held against what is selected for it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import selected_ids_by_sequence
from vsvi_assets.photographs.sidecar import ImageRecord, Sidecar, image_path, known_images


@dataclass
class Inventory:
    """The selected images of a city, by what became of them.

    Attributes
    ----------
    selected
        Number of selected images.
    on_disk
        Number of selected images on disk, as long as their sidecar says.
    bytes
        The room these take.
    unavailable
        Selected images that Mapillary has no longer.
    missing
        Selected images that are yet to be downloaded, by sequence.
    unread
        Missing images of which there is a file that no sidecar tells of, as
        percept-vsvi-filter leaves them. The next run reads it, and downloads the image where
        the file is not whole.
    failed
        Why missing images could not be had at the last try, by id.
    orphaned
        Sequences on disk of which no image is selected any more; they are kept.
    """

    selected: int = 0
    on_disk: int = 0
    bytes: int = 0
    unavailable: list[int] = field(default_factory=list)
    missing: dict[str, list[int]] = field(default_factory=dict)
    unread: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    orphaned: list[str] = field(default_factory=list)

    @property
    def missing_images(self) -> int:
        """Number of images to download, should the unread files be whole."""
        return sum(map(len, self.missing.values())) - len(self.unread)


def take_inventory(
    city: City, postgis: Postgis, sequence_ids: Sequence[str] | None = None
) -> Inventory:
    """Compare a city's selection with the sidecars and sizes of its files on disk.

    With `sequence_ids` only these sequences are looked at, and none for being orphaned.
    """
    inventory = Inventory()
    selected_sequences = set()
    for sequence_id, image_ids in selected_ids_by_sequence(postgis, city, sequence_ids):
        selected_sequences.add(sequence_id)
        _count_sequence(inventory, city.sequences_folder / sequence_id, image_ids)
    if sequence_ids is not None:
        return inventory
    inventory.orphaned = sorted(
        entry.name
        for entry in _folders(city.sequences_folder)
        if entry.name not in selected_sequences
    )
    return inventory


def whole_images(folder: Path, sidecar: Sidecar) -> dict[int, ImageRecord]:
    """Return the images of a sequence's sidecar whose files are there, as long as it says."""
    return _whole(_sizes(folder), folder, sidecar)


def _whole(sizes: Mapping[str, int], folder: Path, sidecar: Sidecar) -> dict[int, ImageRecord]:
    return {
        image_id: record
        for image_id, record in sidecar.images.items()
        if sizes.get(image_path(folder, image_id).name) == record.bytes
    }


def _count_sequence(inventory: Inventory, folder: Path, image_ids: list[int]) -> None:
    sidecar = known_images(folder)
    sizes = _sizes(folder)
    whole = _whole(sizes, folder, sidecar)
    inventory.selected += len(image_ids)
    missing = []
    for image_id in image_ids:
        if record := whole.get(image_id):
            inventory.on_disk += 1
            inventory.bytes += record.bytes
        elif image_id in sidecar.unavailable:
            inventory.unavailable.append(image_id)
        else:
            missing.append(image_id)
            if image_id in sidecar.failed:
                inventory.failed[image_id] = sidecar.failed[image_id]
            elif sizes.get(image_path(folder, image_id).name):
                inventory.unread.append(image_id)
    if missing:
        inventory.missing[folder.name] = missing


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.is_dir()]


def _sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
