"""Inputs and commands for percept-vsvi-filter, the suite that segments and crops photographs.

Source: https://github.com/Spatial-Data-Science-and-GEO-AI-Lab/percept-vsvi-filter, whose scripts
take lists of files, and GeoJSON files whose names begin with `mly1_public`.
"""

import os
import re
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

from vsvi_assets.dataset.manifest import photographs_on_disk
from vsvi_assets.files import atomic_write

_COLUMNS = [
    *("image_id", "sequence_id", "file"),
    *("image_lon", "image_lat", "compass_angle", "is_pano"),
]
_DERIVED = re.compile(r"(\d+)(_x\d+\.jpe?g|(_\w+)?\.(npz|npy|err|out))")


@dataclass(frozen=True)
class PerceptInputs:
    """What was written for the suite, and how to run it.

    Attributes
    ----------
    photographs
        Number of photographs on its lists.
    without_place
        How many of these have no position or compass angle. The suite segments and crops
        them, but writes no SQL for them.
    stale
        Files of the suite that are older than their photograph, so made of another one.
    commands
        Commands to run in the suite's folder, in this order.
    """

    photographs: int
    without_place: int
    stale: list[Path]
    commands: list[str]


def write_percept_inputs(
    table: Path, photographs: Path, city_name: str, folder: Path
) -> PerceptInputs:
    """Write the lists and the tile file that the suite's scripts read.

    - `photographs.txt`: the photographs of the selection that are on disk, and no others
    - `segmentations.txt`: the files that `torch_segm_images.py` makes of them
    - `stale.txt`: photographs whose segmentation was made before they were fetched again
    - `tiles/mly1_public_selected`: these images as a tile file. Images without a compass
      angle are left out, as they end `torch_process_segm.py`; angles are below 360.
    - `img/<city>`: a link to the photographs, so that paths end as the suite's SQL has them

    Parameters
    ----------
    table
        GeoParquet as `vsvi export` writes it, rows of one image beside each other.
    photographs
        The folder below which the table's `file` lie.
    """
    folder = folder.absolute()
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    linked = folder / "img" / city_name
    linked.parent.mkdir(exist_ok=True)
    linked.unlink(missing_ok=True)
    linked.symlink_to(photographs.absolute(), target_is_directory=True)
    count = without_place = 0
    stale: list[Path] = []
    paths = {name: folder / f"{name}.txt" for name in ("photographs", "segmentations", "stale")}
    with ExitStack() as files:
        lists = {name: files.enter_context(atomic_write(path)) for name, path in paths.items()}
        tile = files.enter_context(atomic_write(folder / "tiles" / "mly1_public_selected"))
        tile.write(b'{"type":"FeatureCollection","features":[')
        separator = b"\n"
        on_disk = (row for row, *_ in photographs_on_disk(table, _COLUMNS))
        for _, images in groupby(on_disk, key=itemgetter("sequence_id")):
            sequence = {str(image["image_id"]): image for image in images}
            for image in sequence.values():
                path = linked / image["file"]
                count += 1
                lists["photographs"].write(f"{path}\n".encode())
                lists["segmentations"].write(f"{path.with_suffix('.npz')}\n".encode())
                if None in (image["compass_angle"], image["image_lon"], image["image_lat"]):
                    without_place += 1
                else:
                    tile.write(separator + orjson.dumps(_feature(image)))
                    separator = b",\n"
            old = _stale_files(photographs, sequence)
            stale += [path for paths in old.values() for path in paths]
            for image_id in old:
                lists["stale"].write(f"{linked / sequence[image_id]['file']}\n".encode())
        tile.write(b"\n]}\n")
    commands = _commands(folder, city_name, overwrite=bool(stale))
    return PerceptInputs(count, without_place, stale, commands)


def _feature(image: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {
            "type": "Point",
            "coordinates": [image["image_lon"], image["image_lat"]],
        },
        "properties": {
            "id": image["image_id"],
            "sequence_id": image["sequence_id"],
            "compass_angle": image["compass_angle"] % 360,
            "is_pano": bool(image["is_pano"]),
        },
    }


def _stale_files(photographs: Path, sequence: dict[str, dict[str, Any]]) -> dict[str, list[Path]]:
    """Return the suite's files that are older than their photograph, by image id."""
    stale: dict[str, list[Path]] = {}
    folder = (photographs / next(iter(sequence.values()))["file"]).parent
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        match = _DERIVED.fullmatch(entry.name)
        if match and match[1] in sequence:
            photograph = photographs / sequence[match[1]]["file"]
            if entry.stat().st_mtime < photograph.stat().st_mtime:
                stale.setdefault(match[1], []).append(Path(entry.path))
    return stale


def _commands(folder: Path, city_name: str, *, overwrite: bool) -> list[str]:
    tiles_db = folder / "tiles.db"
    commands: list[list[str | Path]] = [
        ["./make_tiles_db.py", folder / "tiles", "-o", tiles_db],
        ["./torch_segm_images.py", "-v", "-F", folder / "photographs.txt"],
        [
            *("./torch_process_segm.py", "--log", "-F", folder / "segmentations.txt"),
            *("-T", tiles_db, "-C", city_name, "-D", folder / "img", "-S", folder / "sql"),
        ],
    ]
    if overwrite:
        commands.insert(1, ["./torch_segm_images.py", "-v", "-O", "-F", folder / "stale.txt"])
        commands[-1].append("--overwrite")
    return [shlex.join(map(str, command)) for command in commands]
