"""Street points as a file: what Arrow reads is what GDAL reads."""

from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from vsvi_assets.files import atomic_write
from vsvi_assets.streets.point_files import read_points, write_points

NAMES = st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def table(rows: list[tuple[int, int, str | None, float, int, int]]) -> gpd.GeoDataFrame:
    ids, osmids, streets, bearings, lon, lat = zip(*rows, strict=True)
    return gpd.GeoDataFrame(
        {
            "id": pd.array(ids, "int64"),
            "osmid": pd.array(osmids, "int64"),
            "street": pd.Series(streets, dtype=object),
            "bearing": pd.array(bearings, "float64"),
        },
        geometry=shapely.points([x / 1e7 for x in lon], [y / 1e7 for y in lat]),
        crs="EPSG:4326",
    )


def write(points: gpd.GeoDataFrame, path: Path) -> None:
    with atomic_write(path) as file:
        write_points(points, file)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2**53),
            st.integers(1, 2**40),
            NAMES,
            st.integers(0, 1799).map(lambda tenths: tenths / 10),
            st.integers(-(180 * 10**7), 180 * 10**7),
            st.integers(-(90 * 10**7), 90 * 10**7),
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda row: row[0],
    )
)
def test_points_come_back_as_gdal_reads_them(
    rows: list[tuple[int, int, str | None, float, int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("points") / "points.geojson"
    write(table(rows), path)
    read, expected = read_points(path), gpd.read_file(path)
    assert read["id"].tolist() == [row[0] for row in rows]
    assert [name if isinstance(name, str) else None for name in read["street"]] == [
        row[2] for row in rows
    ]
    assert read["street"].fillna("").tolist() == expected["street"].fillna("").tolist()
    others = ["id", "osmid", "bearing", "geometry"]
    assert_geodataframe_equal(read[others], expected[others], check_dtype=False)


def test_an_edited_file_is_read_with_all_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "points.geojson"
    rows = [(1, 2, "a", 3.0, 10**7, 2 * 10**7), (2, 2, None, 4.5, 3 * 10**7, 10**7)]
    write(table(rows), path)
    as_written = path.read_text()
    for edited in (
        as_written.replace("\n", ""),
        as_written.replace('"id": 1,', '"id": null,'),
        as_written.replace('"id": 1,', '"id": 1.5,'),
        as_written.replace('"type": "Point", "coordinates": [ 1.0, 2.0 ]', '"type": "Point"'),
    ):
        assert edited != as_written
        path.write_text(edited)
        expected = gpd.read_file(path)
        assert_geodataframe_equal(read_points(path), expected, check_dtype=False)
    gpd.GeoDataFrame(table(rows).assign(note="mine")).to_crs(3857).to_file(path)
    assert "note" in read_points(path)
