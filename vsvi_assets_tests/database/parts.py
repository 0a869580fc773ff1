"""Small cities in a real PostGIS: their points, their images, and what is in the tables."""

from collections.abc import Iterable, Mapping, Sequence

import geopandas as gpd
import numpy as np
import pyarrow as pa
from psycopg2 import sql

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import replace_tables
from vsvi_assets.database.tables import images_table, street_points_table
from vsvi_assets.mapillary.tiles import IMAGE_SCHEMA
from vsvi_assets_tests.project import BOX

WEST, SOUTH, EAST, NORTH = BOX.values()


def ask(database: Postgis, query: str, table: str = "images") -> list[tuple]:
    """Return a query's rows; `{table}` in it is the table, `{name}` its name as text."""
    names = {"table": sql.Identifier("town", table), "name": sql.Literal(table)}
    with database.transaction() as cursor:
        cursor.execute(sql.SQL(query).format(**names))
        return cursor.fetchall()


def image(id: int, lon: float = 5.209, lat: float = 52.525, **properties: object) -> dict:
    return {"id": id, "lon": lon, "lat": lat, "sequence_id": "sequence"} | properties


def tile(*images: Mapping[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(images), IMAGE_SCHEMA)


def points(
    lons: Sequence[float] | np.ndarray, lats: Sequence[float] | np.ndarray, street: str = "A"
) -> gpd.GeoDataFrame:
    count = len(lons)
    return gpd.GeoDataFrame(
        {"id": np.arange(count), "osmid": np.arange(count) + 10, "street": [street] * count},
        geometry=gpd.points_from_xy(lons, lats),
        crs=4326,
    )


def load(
    database: Postgis,
    city: City,
    tiles: Iterable[pa.Table] = (),
    lons: Sequence[float] | np.ndarray = (),
    lats: Sequence[float] | np.ndarray = (),
) -> dict[str, int]:
    tables = [street_points_table(points(lons, lats), city), images_table(tiles, city)]
    return replace_tables(database, city.name, tables)


def scattered(count: int, seed: int = 0) -> pa.Table:
    """Return images scattered over the box."""
    numbers = np.random.default_rng(seed)
    return tile(
        *(
            image(id, lon, lat, sequence_id=f"sequence{id % 7}")
            for id, lon, lat in zip(
                range(1, count + 1),
                numbers.uniform(WEST, EAST, count),
                numbers.uniform(SOUTH, NORTH, count),
                strict=True,
            )
        )
    )


def exhaustive(
    images: pa.Table, lons: np.ndarray, lats: np.ndarray, max_distance: float
) -> dict[int, tuple[int, float]]:
    """Return, for each point, the nearest image and its distance, by comparing all of them."""
    ids = images["id"].to_numpy()
    order = np.argsort(ids)
    here = gpd.GeoSeries.from_xy(lons, lats, crs=4326).to_crs(28992)
    there = gpd.GeoSeries.from_xy(
        images["lon"].to_numpy()[order], images["lat"].to_numpy()[order], crs=4326
    ).to_crs(28992)
    nearest = {}
    for point, position in enumerate(here):
        distances = there.distance(position).to_numpy()
        best = int(np.argmin(np.round(distances, 6)))
        if distances[best] <= max_distance:
            nearest[point] = (int(ids[order][best]), float(distances[best]))
    return nearest
