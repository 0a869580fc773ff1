"""Cuts a city that is too large into several, each with a part of its area."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mercantile
import shapely
from pydantic import ValidationError

from vsvi_assets.city.area import Area, BoundingBox
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.model import City
from vsvi_assets.city.reading import CITY_FILE_SUFFIXES, load_city, read_content
from vsvi_assets.city.region import write_polygons
from vsvi_assets.city.tiles import ZOOM
from vsvi_assets.files import DataPath, atomic_write, machine_folder


def split_city(name: str, cities_dir: Path, data_dir: DataPath, max_tiles: int) -> list[City]:
    """Write city files for the parts of a city's area, and return the cities.

    The cuts are edges of tiles, and the parts share the city's tile cache, so no tile is fetched
    twice. They are called after the city, with a number, and keep its other keys. The city's own
    file stays.

    Parameters
    ----------
    max_tiles
        Of each part.

    Raises
    ------
    CityFileError
        When the city file cannot be used, does not need to be cut, or a file of a part is there
        already. Nothing is written then.
    """
    paths = [cities_dir / f"{name}{suffix}" for suffix in CITY_FILE_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise CityFileError(f"There is no city file {paths[0]}.")
    try:
        content = read_content(path)
        area = City.find_area(content, name=name, data_dir=data_dir)
    except ValidationError:
        load_city(path, data_dir)  # which says what is wrong
        raise
    parts = list(_parts(area, max_tiles))
    if len(parts) == 1:
        raise CityFileError(
            f"{path}: has at most {max_tiles:,} tiles already. Name a lower number of tiles to cut "
            "it into smaller parts."
        )
    width = len(str(len(parts)))
    names = [f"{name}-{number:0{width}}" for number in range(1, len(parts) + 1)]
    if taken := [each for each in names if (cities_dir / f"{each}.json").exists()]:
        raise CityFileError(
            f"{cities_dir / taken[0]}.json exists already, and is left as it is. Delete it, or "
            f"rename {path}."
        )
    common = {key: value for key, value in content.items() if key not in _OF_THE_AREA}
    common.setdefault("tile_cache_dir", f"{name}/tiles")
    cities = []
    for part_name, part in zip(names, parts, strict=True):
        keys = {**_where(part, part_name, data_dir), **common}
        if "seqdir" in common:
            keys["seqdir"] = f"{common['seqdir']}/{part_name}"
        part_path = cities_dir / f"{part_name}.json"
        with atomic_write(part_path) as file:
            file.write(json.dumps(keys, indent=4, default=str).encode() + b"\n")
        cities.append(load_city(part_path, data_dir))
    return cities


_OF_THE_AREA = ("bounding_box", "region", "buffer")


def _parts(area: Area, max_tiles: int) -> Iterator[Area]:
    """Cut an area into halves, along edges of tiles, until each has few enough."""
    west, south, east, north = area.bounds
    first = mercantile.tile(west, north, ZOOM)
    # As `mercantile.tiles` has it: an edge on the edge of a tile does not meet the next.
    last = mercantile.tile(east - mercantile.LL_EPSILON, south + mercantile.LL_EPSILON, ZOOM)
    # Polygons also meet the tiles that they touch.
    is_one_tile = (first.x, first.y) == (last.x, last.y)
    if is_one_tile or _count_tiles(area, max_tiles) <= max_tiles:
        yield area
        return
    if last.x - first.x >= last.y - first.y:
        middle = mercantile.bounds(mercantile.Tile((first.x + last.x + 1) // 2, 0, ZOOM)).west
        halves = [(west, south, middle, north), (middle, south, east, north)]
    else:
        middle = mercantile.bounds(mercantile.Tile(0, (first.y + last.y + 1) // 2, ZOOM)).north
        halves = [(west, middle, east, north), (west, south, east, middle)]
    for half in halves:
        if part := _clipped(area, half):
            yield from _parts(part, max_tiles)


def _count_tiles(area: Area, max_tiles: int) -> int:
    """Return the number of tiles of an area; more than `max_tiles` where they are too many."""
    try:
        return len(area.tiles())
    except ValueError:
        return max_tiles + 1


def _clipped(area: Area, bounds: tuple[float, float, float, float]) -> Area | None:
    west, south, east, north = bounds
    if area.polygons is None:
        return Area(BoundingBox(west=west, south=south, east=east, north=north))
    clipped = shapely.intersection(area.polygons, shapely.box(*bounds))
    shapes = [each for each in shapely.get_parts(clipped) if each.geom_type == "Polygon"]
    return Area.of_polygons(shapely.union_all(shapes)) if shapes else None


def _where(part: Area, name: str, data_dir: DataPath) -> dict[str, Any]:
    """Return the keys that say where a part is; polygons are written to a file of their own."""
    if part.polygons is None:
        return {"bounding_box": part.box.model_dump()}
    file = Path(name, "area.geojson")
    write_polygons(machine_folder(data_dir) / file, part.polygons, {})
    return {"region": str(file)}
