"""The report of a study: streets and outlines on the map, coverage by class, year and district."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from playwright.sync_api import expect

from vsvi_assets.city import City
from vsvi_assets.views.report import make_report
from vsvi_assets_tests.project import BOX, Project
from vsvi_assets_tests.views.test_report import opened, write_report

WEST, SOUTH, EAST, NORTH = BOX.values()
MIDDLE = (WEST + EAST) / 2
REGION = shapely.Polygon([(WEST, SOUTH), (EAST, SOUTH), (EAST, NORTH), (WEST + 0.003, NORTH)])
WEST_PART = shapely.box(WEST, SOUTH, MIDDLE, NORTH)
NORTH_EAST = shapely.box(MIDDLE, SOUTH + 0.003, EAST, NORTH)


@pytest.fixture
def study(project: Project) -> Project:
    folder = project.settings.data_dir
    folder.mkdir(exist_ok=True)
    gpd.GeoDataFrame(geometry=[REGION], crs=4326).to_file(folder / "area.gpkg")
    gpd.GeoDataFrame(
        {"code": [1, 2], "Name": ["West", "North-east"]},
        geometry=[WEST_PART, NORTH_EAST],
        crs=4326,
    ).to_crs(28992).to_file(folder / "districts.shp")
    run = project.run_city(city_of(project))
    assert run.success, run.failures
    return project


def city_of(study: Project) -> City:
    return study.write_city(
        bounding_box=None, region="area.gpkg", districts="districts.shp", max_distance=25
    )


def test_coverage_by_group_is_what_the_tables_say(study: Project) -> None:
    city = city_of(study)
    report = make_report(city, study.postgis)
    with study.postgis.transaction() as cursor:
        cursor.execute(
            "SELECT ST_X(point.geometry), ST_Y(point.geometry), highway, metres, captured_at"
            " FROM town.street_points AS point"
            " LEFT JOIN town.selected_images ON street_point_id = point.id"
            " LEFT JOIN town.images AS image ON image.id = image_id"
        )
        points = pd.DataFrame(
            cursor.fetchall(), columns=["lon", "lat", "highway", "metres", "captured_at"]
        )
    points["covered"] = points["captured_at"].notna()
    at = [shapely.Point(lon, lat) for lon, lat in zip(points["lon"], points["lat"], strict=True)]
    points["district"] = [
        "West"
        if WEST_PART.intersects(place)
        else "North-east"
        if NORTH_EAST.intersects(place)
        else "outside all districts"
        for place in at
    ]
    for column, group in (("highway", "street class"), ("district", "district")):
        found = {each.name: each for each in report.groups[group]}
        assert set(found) == set(points[column])
        for name, of_group in points.groupby(column):
            covered = of_group[of_group["covered"]]
            row = found[str(name)]
            assert (row.points, row.covered_points) == (len(of_group), len(covered))
            assert row.kilometres == pytest.approx(of_group["metres"].sum() / 1000)
            assert row.covered_kilometres == pytest.approx(covered["metres"].sum() / 1000)
    years = pd.to_datetime(points["captured_at"], unit="ms").dt.year.dropna().astype(int)
    by_year = {each.name: each.covered_points for each in report.groups["year"]}
    assert by_year == {str(year): count for year, count in years.value_counts().items()}
    # The streets of the region, independently.
    world = study.sandbox.world
    lines = [
        shapely.LineString([world.nodes[node] for node in street.nodes]).intersection(REGION)
        for street in world.streets.values()
    ]
    length = gpd.GeoSeries(lines, crs=4326).to_crs(28992).length.sum() / 1000
    of_classes = sum(each.kilometres for each in report.groups["street class"])
    assert of_classes == pytest.approx(length, rel=1e-3)


def test_the_report_filters_by_class_and_district(study: Project) -> None:
    city = city_of(study)
    write_report(study, city)
    with opened(city) as report:
        labels = report.classes()
        assert {"residential", "footway", "West", "North-east", "outside all districts"} <= set(
            labels
        )
        total = sum(labels[name] for name in ("residential", "footway"))
        assert report.shown().startswith(f"{total} of {total} street points shown, ")
        assert "km of street" in report.shown()
        with_footways = report.picture()
        report.page.get_by_label("footway").uncheck()
        assert report.shown().startswith(f"{labels['residential']} of {total} street points shown")
        assert report.classes()["West"] < labels["West"]
        assert report.picture() != with_footways
        report.page.get_by_label("West", exact=False).first.uncheck()
        report.page.get_by_role("radio", name="District").check()
        report.page.locator("canvas").press("n")
        panel = report.page.locator("#point")
        expect(panel).to_contain_text("Class")
        expect(panel).to_contain_text("residential")


def test_streets_and_outlines_lie_under_the_points(study: Project) -> None:
    city = city_of(study)
    write_report(study, city)
    with opened(city) as report:
        for label in ("photograph on disk", "gap: none within 25 m"):
            report.page.get_by_label(label).uncheck()
        assert report.shown().startswith("0 of ")
        pixels = report.page.locator("canvas").evaluate(
            """canvas => {
                const { width, height } = canvas
                const { data } = canvas.getContext("2d").getImageData(0, 0, width, height)
                let drawn = 0
                for (let i = 3; i < data.length; i += 4) drawn += data[i] > 0
                return drawn
            }"""
        )
        assert pixels > 5000


def test_the_city_has_no_streets_where_its_tables_are_old(study: Project) -> None:
    city = city_of(study)
    with study.postgis.transaction() as cursor:
        cursor.execute("DROP TABLE town.streets; UPDATE town.street_points SET metres = NULL")
    write_report(study, city)
    with opened(city) as report:
        assert "km" not in report.shown()
    report_ = make_report(city, study.postgis)
    assert np.allclose([each.kilometres for each in report_.groups["street class"]], 0)


def test_a_city_without_a_photograph_has_a_report(project: Project) -> None:
    nowhere = project.write_city()
    for image in list(project.sandbox.world.images):
        project.sandbox.world.remove_image(image)
    run = project.run_city(nowhere)
    assert run.success, run.failures
    groups = make_report(nowhere, project.postgis).groups
    assert groups["year"] == []
    assert all(each.covered_points == 0 for each in groups["street class"])


def test_the_report_of_places_shows_their_columns(project: Project) -> None:
    folder = project.settings.data_dir
    folder.mkdir(exist_ok=True)
    (folder / "schools.csv").write_text(
        f"id,name,lon,lat,pupils\ns-1,De <b>Dijk</b>,{WEST + 0.002},{SOUTH + 0.0005},120\n"
    )
    city = project.write_city(points_file="schools.csv")
    project.materialize_metadata(city)
    write_report(project, city)
    with opened(city) as report:
        assert report.shown() == "1 of 1 places shown"
        report.page.locator("canvas").press("n")
        panel = report.page.locator("#point")
        expect(panel).to_contain_text("De <b>Dijk</b>")
        expect(panel).to_contain_text("120")
        expect(panel).to_contain_text("s-1")


def test_the_report_of_a_panel_counts_the_years_of_each_point(project: Project) -> None:
    city = project.write_city(per_year=True, max_distance=25)
    project.materialize_metadata(city)
    write_report(project, city)
    with project.postgis.transaction() as cursor:
        cursor.execute(
            "SELECT years, count(*) FROM ("
            " SELECT count(DISTINCT year) AS years FROM town.street_points AS point"
            " LEFT JOIN town.selected_images ON street_point_id = point.id GROUP BY point.id"
            ") AS of_points GROUP BY years"
        )
        of_years: dict[int, int] = dict(cursor.fetchall())
    assert {0, 1, 2} <= of_years.keys()
    with opened(city) as report:
        classes = report.classes()
        names = {0: "none", 1: "1 year"}
        for years, points in of_years.items():
            assert classes[names.get(years, f"{years} years")] == points
        report.page.get_by_label("none", exact=False).last.uncheck()
        report.page.get_by_label("1 year", exact=False).last.uncheck()
        assert report.shown().startswith(f"{of_years[2]} of {sum(of_years.values())} ")
