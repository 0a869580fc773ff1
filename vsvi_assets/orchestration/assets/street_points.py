"""Points every so many metres along every street of a city."""

from typing import Any

import geopandas as gpd
import pandas as pd
import shapely
from dagster import AssetExecutionContext, AssetsDefinition, MetadataValue, asset

from vsvi_assets.city import City
from vsvi_assets.orchestration.columns import STREET_POINTS_FILE
from vsvi_assets.orchestration.common import Fetch, identity, not_before, picture, table
from vsvi_assets.orchestration.resources import OverpassResource, PostgisResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.settings import Settings
from vsvi_assets.streets.errors import NoStreetsError, NoStreetsOfClassError
from vsvi_assets.streets.networks import read_streets
from vsvi_assets.streets.overpass import download_streets
from vsvi_assets.streets.points import (
    StreetsAndPoints,
    no_streets,
    streets_within,
    with_nearest_street,
)
from vsvi_assets.streets.points import street_points as place_points
from vsvi_assets.views.pictures import street_points_map


def build_street_points(city: City, settings: Settings) -> AssetsDefinition:
    @asset(
        **identity(city, "street_points", {"osmnx", "geojson"}),
        description=(
            f"Step 1. The places of {city.points_file}, as one GeoJSON file."
            if city.points_path
            else f"Step 1. Points every {city.interval:g} m along every street of the "
            f"{city.area_name} (OpenStreetMap), as one GeoJSON file."
        ),
        metadata={"dagster/column_schema": STREET_POINTS_FILE},
        io_manager_key="street_points_file",
    )
    @retry_boundary()
    def street_points(
        context: AssetExecutionContext,
        config: Fetch,
        overpass: OverpassResource,
        postgis: PostgisResource,
    ) -> StreetsAndPoints:
        if city.places is not None:
            return _places(context, city)
        box = city.area.bounds
        if city.streets_path:
            lines = read_streets(
                city.streets_path, city.network_type, box=box, layer=city.streets_layer
            )
            source: dict[str, Any] = {"streets": MetadataValue.path(city.streets_path)}
        else:
            download = download_streets(
                box,
                city.network_type,
                overpass=overpass.server(city, postgis, context.log.warning),
                cache_folder=settings.data_dir / "osmnx",
                within=city.area.polygons,
                not_before=not_before(context, city, config),
                report=context.log.warning,
            )
            lines = download.streets
            asked_at = f"{download.asked_at:%Y-%m-%d %H:%M} UTC"
            if download.from_cache:
                context.log.info(
                    f"Streets as Overpass gave them on {asked_at}, kept in {download.folder}. "
                    "Overwrite, or the city's refresh, asks again."
                )
            source = {
                "streets": MetadataValue.path(str(download.folder)),
                "streets of": asked_at,
                "streets from cache": download.from_cache,
            }
        lines = _of_chosen_classes(context, city, lines)
        points = place_points(
            lines, box, city.projected_srid, city.interval, within=city.area.polygons
        )
        ways = streets_within(lines, box, city.projected_srid, within=city.area.polygons)
        context.add_output_metadata(
            {
                "map": _map(city, points, ways, "street points"),
                "dagster/row_count": len(points),
                "streets (km)": round(float(ways["metres"].sum()) / 1000, 1),
                "classes": _classes(ways, points),
                "interval (m)": city.interval,
                "srid": city.projected_srid,
                **source,
            }
        )
        return StreetsAndPoints(points, ways)

    return street_points


def _places(context: AssetExecutionContext, city: City) -> StreetsAndPoints:
    """Return the user's places, and the streets of `streets_file` if there is one."""
    places, box = city.places, city.area.bounds
    assert places is not None
    ways = no_streets()
    if city.streets_path:
        lines = read_streets(
            city.streets_path, city.network_type, box=box, layer=city.streets_layer
        )
        lines = _of_chosen_classes(context, city, lines)
        ways = streets_within(lines, box, city.projected_srid, within=city.area.polygons)
    points = with_nearest_street(places, ways, city.projected_srid, city.max_distance)
    context.add_output_metadata(
        {
            "map": _map(city, points, ways, "places"),
            "dagster/row_count": len(points),
            "places": MetadataValue.path(str(city.points_path)),
            "places outside": int(city.places_outside.sum()),
            "srid": city.projected_srid,
        }
    )
    return StreetsAndPoints(points, ways)


def _map(
    city: City, points: gpd.GeoDataFrame, ways: gpd.GeoDataFrame, called: str
) -> MetadataValue:
    drawn = street_points_map(
        ways.geometry.to_numpy(),
        points.geometry.x.to_numpy(),
        points.geometry.y.to_numpy(),
        city.area,
    )
    return picture(drawn, called)


def _of_chosen_classes(
    context: AssetExecutionContext, city: City, lines: gpd.GeoDataFrame
) -> gpd.GeoDataFrame:
    """Return the streets whose class the city file chooses, of those that meet its area."""
    if city.street_classes is None:
        return lines
    lines = lines[shapely.intersects(city.area.outline, lines.geometry.to_numpy())]
    chosen = lines[lines["highway"].isin(city.street_classes)]
    present = lines["highway"].dropna().unique()
    if chosen.empty:
        if lines.empty:
            raise NoStreetsError(city.area.bounds)
        raise NoStreetsOfClassError(city.street_classes, sorted(present))
    if absent := sorted(set(city.street_classes) - set(present)):
        context.log.warning(
            f"No street of {city.name} is of the class {', '.join(absent)}; the classes there are "
            f"{', '.join(sorted(present))}"
        )
    return chosen


def _classes(ways: gpd.GeoDataFrame, points: gpd.GeoDataFrame) -> MetadataValue:
    """Return how many kilometres of street and how many points there are of each class."""
    kilometres = ways.groupby("highway", dropna=False)["metres"].sum().sort_values() / 1000
    counts = points["highway"].value_counts(dropna=False)
    return table(
        {
            "class": "unknown" if pd.isna(highway) else highway,
            "km": round(float(length), 2),
            "street points": int(counts.get(highway, 0)),
        }
        for highway, length in kilometres[::-1].items()
    )
