"""A city that is too large, cut into several."""

import json
from pathlib import Path

import mercantile
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets.city import BoundingBox, City, CityFileError, load_cities
from vsvi_assets.city.area import MAX_TILES, Area
from vsvi_assets.city.split import _parts, split_city

NETHERLANDS = {"west": 3.36, "south": 50.75, "east": 7.23, "north": 53.56}
UTRECHT = {"west": 5.033, "south": 52.047, "east": 5.188, "north": 52.137}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    cities, data = tmp_path / "cities", tmp_path / "data"
    cities.mkdir()
    data.mkdir()
    return cities, data


def write(folder: Path, name: str, **keys: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(keys))
    return path


def tiles_of(cities: list[City]) -> list[mercantile.Tile]:
    return [tile for city in cities for tile in city.tiles]


def test_a_country_becomes_cities_that_together_are_the_country(
    folders: tuple[Path, Path],
) -> None:
    path = write(folders[0], "nl", bounding_box=NETHERLANDS, interval=20, seqdir="photographs")
    before = path.read_bytes()
    assert [broken.name for broken in load_cities(*folders)[1]] == ["nl"]

    parts = split_city("nl", *folders, MAX_TILES)

    assert [part.name for part in parts] == [f"nl-{number}" for number in range(1, len(parts) + 1)]
    assert max(len(part.tiles) for part in parts) <= MAX_TILES
    assert sorted(tiles_of(parts)) == sorted(mercantile.tiles(*NETHERLANDS.values(), 14))
    assert {part.interval for part in parts} == {20}
    assert {part.tiles_folder for part in parts} == {folders[1] / "nl/tiles"}
    assert path.read_bytes() == before
    path.unlink()
    cities, broken = load_cities(*folders)
    assert {city.name for city in cities} == {part.name for part in parts}
    assert broken == []


@given(
    st.floats(-170, 170),
    st.floats(-80, 80),
    st.floats(1e-3, 0.4),
    st.floats(1e-3, 0.4),
    st.integers(1, 100),
)
def test_every_tile_of_a_box_is_in_one_part(
    west: float, south: float, width: float, height: float, max_tiles: int
) -> None:
    box = BoundingBox(west=west, south=south, east=west + width, north=south + height)

    parts = list(_parts(Area(box), max_tiles))

    tiles = [tile for part in parts for tile in part.tiles()]
    assert sorted(tiles) == sorted(Area(box).tiles())
    assert max(len(part.tiles()) for part in parts) <= max_tiles
    assert sum(shapely.area(part.outline) for part in parts) == pytest.approx(width * height)


def test_a_region_becomes_regions(folders: tuple[Path, Path]) -> None:
    shape = shapely.Point(5.11, 52.09).buffer(0.15)
    (folders[1] / "round.geojson").write_text(shapely.to_geojson(shape))
    write(folders[0], "round", region="round.geojson", buffer=500)

    parts = split_city("round", *folders, 30)

    whole = City.parse(
        {"region": "round.geojson", "buffer": 500}, name="round", data_dir=folders[1]
    )
    assert len(parts) > 3
    assert max(len(part.tiles) for part in parts) <= 30
    assert set(tiles_of(parts)) == set(whole.tiles)
    together = shapely.union_all([part.area.outline for part in parts])
    assert shapely.area(shapely.symmetric_difference(together, whole.area.outline)) < 1e-9
    overlap = sum(shapely.area(part.area.outline) for part in parts) - shapely.area(together)
    assert abs(overlap) < 1e-9


def test_what_cannot_be_cut_is_refused(folders: tuple[Path, Path]) -> None:
    write(folders[0], "utrecht", bounding_box=UTRECHT)
    with pytest.raises(CityFileError, match="at most 20,000 tiles already"):
        split_city("utrecht", *folders, MAX_TILES)
    with pytest.raises(CityFileError, match=r"no city file .*delft\.json"):
        split_city("delft", *folders, MAX_TILES)
    write(folders[0], "wrong", bounding_box={"west": 5})
    with pytest.raises(CityFileError, match=r"wrong\.json: bounding_box\.south"):
        split_city("wrong", *folders, MAX_TILES)
    assert {path.name for path in folders[0].iterdir()} == {"utrecht.json", "wrong.json"}


def test_files_that_are_there_are_kept(folders: tuple[Path, Path]) -> None:
    write(folders[0], "utrecht", bounding_box=UTRECHT)
    mine = write(folders[0], "utrecht-2", bounding_box=UTRECHT)
    before = mine.read_bytes()
    with pytest.raises(CityFileError, match=r"utrecht-2\.json exists already"):
        split_city("utrecht", *folders, 30)
    assert mine.read_bytes() == before
    assert not (folders[0] / "utrecht-1.json").exists()
