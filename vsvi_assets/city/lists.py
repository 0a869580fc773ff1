"""The lists that a city file can name: tiles to keep, images to download."""

import json
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.tiles import is_tile_file_name
from vsvi_assets.files import TextFileError, read_text

ENTRIES_SHOWN = 3


def read_tile_names(path: Path) -> list[str]:
    """Read the `tile_list_file`: names of tile files, one per line.

    Raises
    ------
    CityFileError
        When the file cannot be read, or an entry is not written like a tile's name.
    """
    names = _read(path, "tile_list_file").split()
    wrong = [name for name in names if not is_tile_file_name(name)]
    if wrong:
        raise CityFileError(
            f"tile_list_file = {path}: {shortened(wrong)} in it: write each tile as "
            "mly1_public_<x>_<y>_14, one per line"
        )
    return names


def read_image_ids(path: Path) -> list[int]:
    """Read the `imgid_file`: one image id per line or, as .json, objects `mapillary_img_id`.

    Raises
    ------
    CityFileError
        When the file cannot be read, or an entry is not an image id.
    """
    text = _read(path, "imgid_file")
    try:
        if path.suffix == ".json":
            ids = [entry["mapillary_img_id"] for entry in json.loads(text)]
        else:
            ids = text.split()
        return [_image_id(id_) for id_ in ids]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CityFileError(
            f"imgid_file = {path}: must hold one image id per line, or as .json a list of "
            f'{{"mapillary_img_id": ...}} objects ({error})'
        ) from error


def shortened(entries: Collection[str]) -> str:
    """Quote the first entries, and count the others."""
    shown = ", ".join(f"{entry!r:.80}" for entry in islice(entries, ENTRIES_SHOWN))
    others = len(entries) - ENTRIES_SHOWN
    return f"{shown} and {others} more" if others > 0 else shown


def _read(path: Path, key: str) -> str:
    try:
        return read_text(path)
    except TextFileError as error:
        raise CityFileError(f"{key} = {error}") from error


def _image_id(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise ValueError(f"{text!r:.80} is not an image id")
    return int(text)
