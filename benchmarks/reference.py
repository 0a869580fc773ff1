"""The way people do it today, in a short version: what the project is compared with."""

import json
import math
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import mapbox_vector_tile
import mercantile
import networkx as nx
import osmnx
import psycopg2
import requests
from psycopg2 import sql

from benchmarks.inputs import EXTENT


def download(
    graph_url: str, token: str, ids: Sequence[int], folder: Path, size: str = "original"
) -> None:
    """Fetch images one after the other, with two requests each: for the link, for the file."""
    for image_id in ids:
        answer = requests.get(
            f"{graph_url}/{image_id}",
            params={"fields": f"thumb_{size}_url"},
            headers={"Authorization": f"OAuth {token}"},
            timeout=30,
        )
        image = requests.get(answer.json()[f"thumb_{size}_url"], timeout=30)
        (folder / f"{image_id}.jpg").write_bytes(image.content)


def store_tile(tile: mercantile.Tile, data: bytes, path: Path) -> None:
    """Decode a whole tile to dicts, turn each into a GeoJSON feature, dump them indented."""
    decoded = mapbox_vector_tile.decode(data, default_options={"y_coord_down": True})
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Point",
                "coordinates": _degrees(feature["geometry"]["coordinates"], tile),
            },
            "properties": feature["properties"],
        }
        for feature in decoded["image"]["features"]
    ]
    with path.open("w") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file, indent=2)


def fetch_tiles(tiles_url: str, token: str, tiles: Iterable[mercantile.Tile], folder: Path) -> None:
    """Fetch and store tiles one after the other."""
    for tile in tiles:
        url = f"{tiles_url}/maps/vtp/mly1_public/2/{tile.z}/{tile.x}/{tile.y}"
        answer = requests.get(url, params={"access_token": token}, timeout=60)
        store_tile(tile, answer.content, folder / f"{tile.x}_{tile.y}.geojson")


def load_images(url: str, files: Iterable[Path], srid: int) -> int:
    """Append tile after tile by ogr2ogr, then make the second geometry and its index."""
    with _cursor(url) as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS reference CASCADE; CREATE SCHEMA reference")
    for file in files:
        subprocess.run(
            ["ogr2ogr", "-f", "PostgreSQL", "-append", f"PG:{url}", "-nln", "reference.images",
             "-lco", "GEOMETRY_NAME=geometry", "-lco", "FID=ogc_fid", file],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    with _cursor(url) as cursor:
        cursor.execute(
            "SELECT AddGeometryColumn('reference', 'images', 'geo', %s, 'POINT', 2)", [srid]
        )
        cursor.execute(
            "UPDATE reference.images SET geo = ST_Transform(geometry::geometry(Point), %s)", [srid]
        )
        cursor.execute("CREATE INDEX ON reference.images USING gist (geo)")
        cursor.execute("ANALYZE reference.images")
        cursor.execute("SELECT count(*) FROM reference.images")
        [(count,)] = cursor.fetchall()
    return int(count)


def load_points(url: str, source: sql.Identifier, srid: int) -> None:
    """Take over street points from a table with `id` and `geometry`."""
    with _cursor(url) as cursor:
        cursor.execute(
            sql.SQL(
                "CREATE TABLE reference.points AS"
                " SELECT id, ST_Transform(geometry, {}) AS geo FROM {}.street_points"
            ).format(sql.Literal(srid), source)
        )
        cursor.execute("CREATE INDEX ON reference.points USING gist (geo)")
        cursor.execute("ANALYZE reference.points")


def nearest_images(url: str, max_distance: float) -> dict[int, int]:
    """Join all pairs within the distance and rank them; return point id -> image id."""
    with _cursor(url) as cursor:
        cursor.execute(
            """
            SELECT DISTINCT point.id, FIRST_VALUE(image.id) OVER (
                PARTITION BY point.id ORDER BY ST_Distance(point.geo, image.geo), image.id
            )
            FROM reference.points AS point
            JOIN reference.images AS image ON ST_DWithin(point.geo, image.geo, %s)
            """,
            [max_distance],
        )
        return dict(cursor.fetchall())


def street_points(network: nx.MultiDiGraph, srid: int, interval: float) -> gpd.GeoDataFrame:
    """Interpolate along edge after edge, in a loop."""
    projected = osmnx.project_graph(network, to_crs=f"EPSG:{srid}")
    edges = osmnx.graph_to_gdfs(projected, nodes=False)
    rows: list[dict[str, Any]] = []
    for _, edge in edges.iterrows():
        distance = 0.0
        while distance < edge.geometry.length:
            point = edge.geometry.interpolate(distance)
            rows.append({"osmid": edge.osmid, "geometry": point})
            distance += interval
    return gpd.GeoDataFrame(rows, crs=f"EPSG:{srid}").to_crs("EPSG:4326")


def _degrees(cell: Sequence[int], tile: mercantile.Tile) -> list[float]:
    column, row = cell
    size = EXTENT * 2**tile.z
    mercator = 180 - (row + EXTENT * tile.y) * 360 / size
    lat = 360 / math.pi * math.atan(math.exp(mercator * math.pi / 180)) - 90
    return [(column + EXTENT * tile.x) * 360 / size - 180, lat]


def _cursor(url: str) -> Any:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection.cursor()
