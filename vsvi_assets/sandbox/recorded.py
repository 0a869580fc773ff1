"""A world of recorded data: vector tiles, an OpenStreetMap extract, photographs."""

import gzip
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from vsvi_assets.sandbox.pictures import draw
from vsvi_assets.sandbox.vector_tiles import decode_images
from vsvi_assets.sandbox.world import ZOOM, SandboxError, Street, StreetImage, Tile, World

_TILE_NAMES = (
    re.compile(r"mly1_public_(?P<x>\d+)_(?P<y>\d+)_(?P<z>\d+)(\.\w+)?"),
    re.compile(r"(?P<z>\d+)-(?P<x>\d+)-(?P<y>\d+)\.\w+"),
)
_PHOTOGRAPHS = (".jpg", ".jpeg", ".mpo")


def recorded_world(
    tiles: Iterable[str] = (), osm: Path | None = None, jpegs: Path | None = None
) -> World:
    """Make a world of recorded files.

    Parameters
    ----------
    tiles
        Folders of vector tiles named `mly1_public_<x>_<y>_<z>` (with any suffix or none) or
        `<z>-<x>-<y>.mvt`, and single files laid on a tile: `FILE@14/x/y`. They are served
        byte for byte, and the graph knows the images that are in them.
    osm
        `.osm` or Overpass `.json`, either may be gzipped (`.gz`); served as Overpass.
    jpegs
        Folder of photographs, dealt round by image id and served byte for byte in every
        size. None: pictures are drawn.

    Raises
    ------
    SandboxError
        When a file is missing, or not named or made as described.
    """
    photographs = _photographs(jpegs) if jpegs is not None else []
    contents = cache(Path.read_bytes)

    def photograph_of(image: StreetImage) -> Path:
        return photographs[zlib.crc32(str(image.id).encode()) % len(photographs)]

    def dealt(image: StreetImage, _: str) -> bytes:
        return contents(photograph_of(image))

    world = World(picture=dealt if photographs else draw)
    for tile, path, encoded in _tiles(tiles):
        try:
            images = decode_images(tile, encoded)
        except ValueError as error:
            raise SandboxError(f"{path}: {error}") from error
        if photographs:
            sizes = (_size(photograph_of(image)) for image in images)
            images = [
                replace(image, width=width, height=height)
                for image, (width, height) in zip(images, sizes, strict=True)
            ]
        world.recorded_tiles[tile] = encoded
        world.add_images(images)
    if osm is not None:
        _add_streets(world, osm)
    return world


def _tiles(sources: Iterable[str]) -> Iterator[tuple[Tile, Path, bytes]]:
    for source in sources:
        path, _, place = source.partition("@")
        if place:
            if not re.fullmatch(rf"{ZOOM}/\d+/\d+", place):
                raise SandboxError(f"{source}: expected FILE@{ZOOM}/x/y")
            z, x, y = map(int, place.split("/"))
            yield (z, x, y), Path(path), _contents(Path(path))
            continue
        if not Path(path).is_dir():
            raise SandboxError(f"{path}: no folder; a single tile is given as FILE@{ZOOM}/x/y")
        named = [
            (match, file)
            for file in sorted(Path(path).iterdir())
            for pattern in _TILE_NAMES
            if (match := pattern.fullmatch(file.name))
        ]
        if not named:
            raise SandboxError(f"{path}: no file in it is named mly1_public_<x>_<y>_{ZOOM}")
        for match, file in named:
            yield (int(match["z"]), int(match["x"]), int(match["y"])), file, _contents(file)


def _contents(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise SandboxError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _photographs(folder: Path) -> list[Path]:
    photographs = sorted(p for p in folder.glob("*") if p.suffix.lower() in _PHOTOGRAPHS)
    if not photographs:
        raise SandboxError(f"{folder}: there is no .jpg, .jpeg or .mpo in it")
    return photographs


@cache
def _size(photograph: Path) -> tuple[int, int]:
    try:
        with Image.open(photograph) as opened:
            return opened.size
    except (OSError, Image.DecompressionBombError) as error:
        raise SandboxError(f"{photograph}: no picture that can be read") from error


def _add_streets(world: World, path: Path) -> None:
    content = _contents(path)
    try:
        is_json = content[:1] == b"{"
        for element in orjson.loads(content)["elements"] if is_json else _xml_elements(content):
            match element["type"]:
                case "node":
                    world.nodes[element["id"]] = (element["lon"], element["lat"])
                case "way" if "highway" in element.get("tags", {}):
                    world.streets[element["id"]] = Street(
                        element["id"], tuple(element["nodes"]), element["tags"]
                    )
    except (orjson.JSONDecodeError, ET.ParseError, KeyError) as error:
        message = f"{path}: neither OSM XML nor an Overpass JSON answer ({error!r})"
        raise SandboxError(message) from error


def _xml_elements(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the nodes and ways of OSM XML as they are written in Overpass's JSON."""
    for element in ET.fromstring(content):
        if element.tag == "node":
            lon, lat = float(element.attrib["lon"]), float(element.attrib["lat"])
            yield {"type": "node", "id": int(element.attrib["id"]), "lon": lon, "lat": lat}
        elif element.tag == "way":
            yield {
                "type": "way",
                "id": int(element.attrib["id"]),
                "nodes": [int(nd.attrib["ref"]) for nd in element.iter("nd")],
                "tags": {tag.attrib["k"]: tag.attrib["v"] for tag in element.iter("tag")},
            }
