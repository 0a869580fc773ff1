"""What must hold for a city's street points."""

from collections.abc import Iterator

import geopandas as gpd
import shapely
from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    multi_asset_check,
)

from vsvi_assets.city import City
from vsvi_assets.database.audit import EXAMPLES, WrongRows
from vsvi_assets.files import local_copy
from vsvi_assets.orchestration.checks.rules import Rule
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.streets.point_files import read_points
from vsvi_assets.streets.points import COORDINATE_DECIMALS


def build_street_points_checks(city: City) -> AssetChecksDefinition:
    asset = asset_key(city, "street_points")
    is_of_user = city.places is not None
    in_the_box = Rule(
        asset,
        "in_the_box",
        f"Every street point lies in the {city.area_name}.",
        # Places of the user's stay in the result, whatever is wrong with them.
        AssetCheckSeverity.WARN if is_of_user else AssetCheckSeverity.ERROR,
    )
    spacing = Rule(
        asset,
        "spacing",
        f"No two street points are closer than {city.interval / 2:g} m, half the interval.",
    )

    @multi_asset_check(
        name=f"{city.group}__street_points_checks",
        specs=[in_the_box.spec] if is_of_user else [in_the_box.spec, spacing.spec],
    )
    def street_points_checks() -> Iterator[AssetCheckResult]:
        with retry_boundary():
            with local_copy(city.street_points_path) as copy:
                points = read_points(copy, of_user=is_of_user)
            yield in_the_box.result(_points_outside(points, city))
            if not is_of_user:
                yield spacing.result(_crowded_points(points, city))

    return street_points_checks


def _points_outside(points: gpd.GeoDataFrame, city: City) -> WrongRows:
    inside = city.area.covers(points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    if city.area.polygons is not None:
        # A street along the edge has its points on it, but for what their coordinates are rounded.
        edge = city.area.polygons.boundary
        inside |= shapely.dwithin(points.geometry.to_numpy(), edge, 10**-COORDINATE_DECIMALS)
    wrong = points[~inside]
    examples = [
        {"street point": point.id, "lon": point.geometry.x, "lat": point.geometry.y}
        for point in wrong.head(EXAMPLES).itertuples()
    ]
    return WrongRows(len(wrong), len(points), examples)


def _crowded_points(points: gpd.GeoDataFrame, city: City) -> WrongRows:
    # A millimetre less, for what the way through two coordinate systems rounds.
    distance = city.interval / 2 - 0.001
    places = points.geometry.to_crs(city.projected_srid).to_numpy()
    one, other = shapely.STRtree(places).query(places, "dwithin", distance)
    one, other = one[one < other], other[one < other]
    ids = points["id"].to_numpy()
    examples = [
        {"street point": ids[a], "other": ids[b], "metres": places[a].distance(places[b])}
        for a, b in zip(one[:EXAMPLES], other[:EXAMPLES], strict=True)
    ]
    return WrongRows(len(one), len(points), examples)
