"""The lists that a city file can name: tiles to keep, images to download.

They are read as UTF-8, with or without the byte order mark that Windows' editors write.
"""

import json
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.tiles import is_tile_file_name

ENTRIES_SHOWN = 3


def read_tile_names(path: Path) -> list[str]:
    """Read the `tile_list_file`: names of tile files, one per line.

    Raises
    ------
    CityFileError
        When the file cannot be read, or an entry is not written like a tile's name.
    """
    where = f"tile_list_file = {path}"
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise CityFileError(f"{where}: cannot be read ({error})") from error
    wrong = [name for name in names if not is_tile_file_name(name)]
    if wrong:
        raise CityFileError(
            f"{where}: {shortened(wrong)} in it: write each tile as mly1_public_<x>_<y>_14, "
            "one per line"
        )
    return names


def read_image_ids(path: Path) -> list[int]:
    """Read the `imgid_file`: one image id per line or, as .json, objects `mapillary_img_id`.

    Raises
    ------
    CityFileError
        When the file cannot be read, or an entry is not an image id.
    """
    where = f"imgid_file = {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            ids = [entry["mapillary_img_id"] for entry in json.loads(text)]
        else:
            ids = text.split()
        return [_image_id(id_) for id_ in ids]
    except OSError as error:
        raise CityFileError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CityFileError(
            f"{where}: must hold one image id per line, or as .json a list of "
            f'{{"mapillary_img_id": ...}} objects ({error})'
        ) from error


def shortened(entries: Collection[str]) -> str:
    """Quote the first entries, and count the others."""
    shown = ", ".join(f"{entry!r:.80}" for entry in islice(entries, ENTRIES_SHOWN))
    others = len(entries) - ENTRIES_SHOWN
    return f"{shown} and {others} more" if others > 0 else shown


def _image_id(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise ValueError(f"{text!r:.80} is not an image id")
    return int(text)
