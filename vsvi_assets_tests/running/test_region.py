"""Cities whose area is a region: points, images, tiles, checks and maps keep to the polygons."""

import json

import geopandas as gpd
import mercantile
import numpy as np
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner

from vsvi_assets.city import BrokenCity, City, PlaceNotLookedUpError, load_cities, load_city
from vsvi_assets.cli import main
from vsvi_assets.database.audit import wrong_geometries
from vsvi_assets.running.places import look_up_all, look_up_region
from vsvi_assets.streets.errors import PlaceError
from vsvi_assets_tests.project import BOX, Project

WEST, SOUTH, EAST, NORTH = BOX.values()
L_SHAPE = shapely.difference(
    shapely.box(WEST, SOUTH, EAST, NORTH),
    shapely.union(
        shapely.box(WEST + 0.005, SOUTH + 0.003, EAST, NORTH),
        shapely.box(WEST + 0.001, SOUTH + 0.0005, WEST + 0.004, SOUTH + 0.0015),
    ),
)
"""The small city's box without its north-eastern quarter, and with a hole."""


def region_of(project: Project, shape: shapely.Geometry) -> City:
    path = project.settings.data_dir / "area.geojson"
    path.parent.mkdir(exist_ok=True)
    gpd.GeoDataFrame(geometry=[shape], crs=4326).to_file(path)
    return project.write_city(bounding_box=None, region="area.geojson")


def images_of(project: Project, city: City) -> pd.DataFrame:
    with project.postgis.transaction() as cursor:
        cursor.execute("SELECT id, ST_X(geometry), ST_Y(geometry) FROM town.images ORDER BY id")
        return pd.DataFrame(cursor.fetchall(), columns=["id", "lon", "lat"])


def test_all_of_a_city_keeps_to_its_region(project: Project) -> None:
    city = region_of(project, L_SHAPE)
    run = project.run_city(city)
    assert run.success, run.failures
    assert all(check.passed for check in run.checks.values())
    assert run.selected
    assert not wrong_geometries(project.postgis, city).count

    # By every image of the world, and every place on its streets.
    world = project.sandbox.world
    wanted = {
        image.id
        for image in world.images.values()
        if L_SHAPE.intersects(shapely.Point(round_to_cell(image.lon, image.lat)))
    }
    assert set(images_of(project, city)["id"]) == wanted
    points = gpd.read_file(city.street_points_path).geometry
    assert shapely.distance(points.to_numpy(), L_SHAPE).max() <= 1e-7
    metres = points.to_crs(28992).union_all()
    for street in world.streets.values():
        line = shapely.LineString([world.nodes[node] for node in street.nodes])
        inside = gpd.GeoSeries([line.intersection(L_SHAPE)], crs=4326).to_crs(28992)
        vertices = shapely.get_coordinates(inside.segmentize(5).to_numpy())
        assert shapely.distance(shapely.points(vertices), metres).max() <= city.interval + 0.01

    asked = set(project.sandbox.stats.tiles_asked)
    assert asked == {f"14/{tile.x}/{tile.y}" for tile in city.tiles}
    assert {tuple(map(int, key.split("/"))) for key in asked} == {
        (14, tile.x, tile.y)
        for tile in mercantile.tiles(WEST, SOUTH, EAST, NORTH, 14)
        if shapely.box(*mercantile.bounds(tile)).intersects(L_SHAPE)
    }


def round_to_cell(lon: float, lat: float) -> tuple[float, float]:
    """Return where a position comes out of a vector tile: in the corner of its grid cell."""
    cells = 4096 << 14
    x, y = np.floor((lon + 180) / 360 * cells), 0.0
    y = np.floor((0.5 - np.arcsinh(np.tan(np.radians(lat))) / (2 * np.pi)) * cells)
    return x / cells * 360 - 180, float(np.degrees(np.arctan(np.sinh((1 - 2 * y / cells) * np.pi))))


def test_the_checks_find_what_lies_outside(project: Project) -> None:
    city = region_of(project, L_SHAPE)
    project.materialize_metadata(city)
    with project.postgis.transaction() as cursor:
        cursor.execute(
            "UPDATE town.images SET geometry = ST_Point(%s, %s, 4326) WHERE id = "
            "(SELECT min(id) FROM town.images)",
            [EAST - 0.001, NORTH - 0.001],
        )
    assert wrong_geometries(project.postgis, city).count == 1


def place_city(project: Project, place: str = "Polderstad") -> PlaceNotLookedUpError:
    path = project.settings.cities_dir / "town.json"
    path.parent.mkdir(exist_ok=True)
    content = {"region": {"place": place}, "required_disk_space": 0, "max_distance": 60}
    path.write_text(json.dumps(content))
    [broken] = load_cities(path.parent, project.settings.data_dir)[1]
    assert isinstance(broken, BrokenCity)
    assert isinstance(broken.error, PlaceNotLookedUpError)
    return broken.error


def test_a_place_is_looked_up_once_and_kept(project: Project) -> None:
    world = project.sandbox.world
    world.add_place(
        "Polderstad, Flevoland, Nederland", L_SHAPE.__geo_interface__, osm_id=47, importance=0.6
    )
    elsewhere = shapely.box(9, 50, 9.1, 50.1).__geo_interface__
    world.add_place("Polderstad, Hessen, Deutschland", elsewhere, osm_id=48, importance=0.3)
    said = look_up_region(place_city(project), project.settings)
    assert "Polderstad is Polderstad, Flevoland, Nederland (relation 47), 0." in said
    [city], broken = load_cities(project.settings.cities_dir, project.settings.data_dir)
    assert not broken
    assert city.area.outline.equals(L_SHAPE)
    assert json.loads(city.region_path.read_text())["features"][0]["properties"]["osm_id"] == 47

    # OpenStreetMap goes on; the study stays what it was.
    world.places.clear()
    assert project.run_city(city).success
    assert project.run_city(city).success
    assert project.sandbox.stats.requests["nominatim"] == 1
    [asked] = project.sandbox.stats.asked("nominatim")
    assert "vsvi-assets" in asked.user_agent

    other = place_city(project, "Polderstad, Deutschland")
    with pytest.raises(PlaceError, match=r"knows nothing of the place 'Polderstad, Deutschland'"):
        look_up_region(other, project.settings)


def test_places_of_all_cities_are_looked_up_where_they_never_were(project: Project) -> None:
    project.sandbox.world.add_place("Polderstad", L_SHAPE.__geo_interface__, osm_id=47)
    place_city(project)
    nowhere = {"region": {"place": "Atlantis"}}
    (project.settings.cities_dir / "lost.json").write_text(json.dumps(nowhere))
    project.write_city("plain")
    lost, town = sorted(look_up_all(project.settings))
    assert "lost: Nominatim (127.0.0.1) knows nothing of the place 'Atlantis'" in lost
    assert town.startswith("town: Polderstad is Polderstad (relation 47)")
    asked = project.sandbox.stats.requests["nominatim"]
    [again] = look_up_all(project.settings)
    assert again == lost
    assert project.sandbox.stats.requests["nominatim"] == asked + 1


def test_the_command_looks_up_a_relation(project: Project) -> None:
    project.sandbox.world.add_place("Polderstad", L_SHAPE.__geo_interface__, osm_id=47)
    path = project.settings.cities_dir / "town.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"region": {"osm_relation": 47}}))
    missing = load_cities(path.parent, project.settings.data_dir)[1][0].error
    assert isinstance(missing, PlaceNotLookedUpError)
    look_up_region(missing, project.settings)
    assert load_city(path, project.settings.data_dir).area.outline.equals(L_SHAPE)
    said = CliRunner().invoke(main, ["region", "town"])
    assert said.exit_code == 0
    assert "The region of town is kept in" in said.output


def test_some_classes_of_streets(project: Project) -> None:
    city = project.write_city(street_classes=["residential", "track"])
    run = project.materialize(city, "street_points")
    points = gpd.read_file(city.street_points_path)
    assert set(points["highway"]) == {"residential"}
    assert {name.split()[0] for name in points["street"]} == {"Row"}
    assert run.success

    everything = project.write_city("other")
    project.materialize(everything, "street_points")
    others = gpd.read_file(everything.street_points_path)
    assert "highway" not in others  # the file is what it was before there were classes
    assert {name.split()[0] for name in others["street"]} == {"Row", "Lane"}


def test_a_class_that_no_street_has_is_named_beside_those_there_are(project: Project) -> None:
    city = project.write_city(street_classes=["residental"])
    with pytest.raises(
        Exception, match=r"residental lies in the area\. The classes there are footway, residential"
    ):
        project.materialize(city, "street_points")
