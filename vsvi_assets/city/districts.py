"""The key `districts` of a city file: polygons by which coverage is counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from vsvi_assets.city.area import Polygons
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.region import polygons_of
from vsvi_assets.city.vector_files import read_features


class District(NamedTuple):
    """A part of a city: its name, and its polygons in degrees (EPSG:4326)."""

    name: str
    polygons: Polygons


def read_districts(path: Path, layer: str | None) -> tuple[tuple[District, ...], tuple[str, ...]]:
    """Read districts, and what had to be repaired of them.

    Their names are those of the column `name`; without it those of the first column of texts, or
    their numbers.

    Raises
    ------
    CityFileError
        When the file holds anything but polygons, the same name twice, or a district without one.
    """
    what = f"districts = {path}"
    table = read_features(path, "districts", layer)
    columns = [name for name in table.columns if name != table.geometry.name]
    texts = [name for name in columns if all(isinstance(each, str) for each in table[name])]
    called = next((name for name in columns if str(name).lower() == "name"), None)
    called = called or next(iter(texts), None)
    names = [str(number) for number in range(1, len(table) + 1)]
    if called is not None:
        names = ["" if pd.isna(name) else str(name) for name in table[called]]
    unnamed = [number for number, name in enumerate(names, 1) if not name.strip()]
    if unnamed:
        raise CityFileError(
            f"{what}: district {unnamed[0]} of {len(names)} has no name in the column {called}; "
            "give each its own"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CityFileError(f"{what}: two districts are called {twice!r}; give each its own name")
    districts: list[District] = []
    warnings: list[str] = []
    for number, name in enumerate(names):
        region = polygons_of(table.iloc[[number]], f"{what} ({name})")
        districts.append(District(name, region.polygons))
        warnings += region.warnings
    return tuple(districts), tuple(warnings)


def district_of(
    districts: Sequence[District], lon: NDArray[np.float64], lat: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the number of the first district that covers each position; -1 where none does."""
    found = np.full(len(lon), -1)
    for number in reversed(range(len(districts))):
        polygons = districts[number].polygons
        shapely.prepare(polygons)
        found[shapely.intersects_xy(polygons, lon, lat)] = number
    return found
