"""Against recorded data of the real service, in the folder that VSVI_REAL_DATA names."""

import math
import os
from pathlib import Path

import mapbox_vector_tile
import mercantile
import numpy as np
import pytest
from PIL import Image

from vsvi_assets.mapillary.tile_files import read_tile, write_tile
from vsvi_assets.mapillary.tiles import TileImages, decode_tile
from vsvi_assets.photographs.errors import InvalidImageError
from vsvi_assets.photographs.jpeg import check_jpeg

REAL_DATA = Path(os.environ.get("VSVI_REAL_DATA", "/nowhere"))
TILE = mercantile.Tile(8574, 5735, 14)
pytestmark = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="VSVI_REAL_DATA names no folder")


@pytest.mark.parametrize("path", sorted((REAL_DATA / "tiles").glob("*.mvt")), ids=lambda p: p.name)
def test_real_tiles_decode_to_the_points_of_mapbox_vector_tile(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    layer = mapbox_vector_tile.decode(data, default_options={"y_coord_down": True})["image"]
    cells = np.array([feature["geometry"]["coordinates"] for feature in layer["features"]])
    size = layer["extent"] * 2**TILE.z
    mercator = math.pi * (1 - 2 * (cells[:, 1] + layer["extent"] * TILE.y) / size)
    lon = (cells[:, 0] + layer["extent"] * TILE.x) / size * 360 - 180
    lat = np.degrees(np.arctan(np.sinh(mercator)))

    table = decode_tile(data, TILE).images
    np.testing.assert_allclose(table["lon"].to_numpy(), lon, rtol=0, atol=1e-9)
    np.testing.assert_allclose(table["lat"].to_numpy(), lat, rtol=0, atol=1e-9)
    properties = [feature["properties"] for feature in layer["features"]]
    for name in set().union(*properties):
        assert table[name].to_pylist() == [image.get(name) for image in properties]

    write_tile(TileImages(table), tmp_path / "tile", "mapillary")
    assert read_tile(tmp_path / "tile", "mapillary").images.equals(table)


@pytest.mark.parametrize("path", sorted((REAL_DATA / "jpeg").glob("*")), ids=lambda p: p.name)
def test_real_images_are_whole_but_the_truncated_one(path: Path) -> None:
    if path.name == "truncated_jpeg.jpg":
        with pytest.raises(InvalidImageError):
            check_jpeg(path)
    else:
        with Image.open(path) as picture:
            assert (check_jpeg(path).width, check_jpeg(path).height) == picture.size
