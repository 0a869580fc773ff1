"""The assets that follow the photographs: the dataset, and the views of panoramas."""

import io
import json
from dataclasses import replace
from typing import Any

import geopandas
import pytest
from PIL import Image

from vsvi_assets.city import City
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.sandbox import StreetImage
from vsvi_assets.views.status import city_status
from vsvi_assets_tests.project import Project, picture


def picture_or_panorama(image: StreetImage, size: str) -> bytes:
    """Draw a small panorama where the image is one."""
    if not image.is_pano:
        return picture(image, size)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "green").save(buffer, "JPEG")
    return buffer.getvalue()


def metadata(project: Project, city: City, name: str) -> dict[str, Any]:
    event = project.instance.get_latest_materialization_event(asset_key(city, name))
    assert event
    assert event.asset_materialization
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def test_a_run_ends_with_a_table_that_geopandas_reads(project: Project) -> None:
    city = project.write_city(max_distance=25)
    assert project.run_city(city).success
    table = geopandas.read_parquet(city.dataset_path)
    status = city_status(city, project.postgis)
    assert (
        len(table)
        == status.street_points
        == metadata(project, city, "dataset")["dagster/row_count"]
    )
    assert table["image_id"].isna().sum() == status.points_without_image
    assert table["file"].dropna().map(lambda file: (city.sequences_folder / file).is_file()).all()
    assert table.crs == "EPSG:4326"


def test_its_columns_are_described_on_the_asset_page(project: Project) -> None:
    city = project.write_city()
    spec = project.defs().resolve_asset_graph().get(asset_key(city, "dataset"))
    columns = {column.name: column for column in spec.metadata["dagster/column_schema"].columns}
    assert {
        "street_point_id",
        "image_id",
        "captured_at",
        "file",
        "creator",
        "page",
    } <= columns.keys()
    assert all(column.description for column in columns.values())


def test_views_are_made_only_where_the_city_file_asks(project: Project) -> None:
    project.sandbox.world = replace(project.sandbox.world, picture=picture_or_panorama)
    city = project.write_city()
    assert project.run_city(city).success
    assert not city.views_folder.exists()
    keys = project.defs().resolve_asset_graph().get_all_asset_keys()
    assert asset_key(city, "views") not in keys

    city = project.write_city(
        views={"directions": ["front", "back"], "relative_to": "camera", "width": 32, "height": 32}
    )
    assert project.run_city(city).success
    found = metadata(project, city, "views")
    table = (
        geopandas.read_parquet(city.dataset_path).drop_duplicates("image_id").dropna(subset="file")
    )
    panoramas = int(table["is_pano"].sum())
    assert panoramas > 0
    assert found["views"] == 2 * panoramas
    assert found["flat photographs"] == len(table) - panoramas
    described = [
        feature["properties"]
        for sidecar in city.views_folder.glob("*/views.geojson")
        for feature in json.loads(sidecar.read_text())["features"]
    ]
    assert len(described) == found["views"] + found["flat photographs"]
    assert {view["heading"] for view in described if view["direction"] == "back"} == {270}

    assert project.run_city(city).success
    again = metadata(project, city, "views")
    assert again["there already"] == len(described)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"fov": 180}, "fov"),
        ({"directions": []}, "directions"),
        ({"directions": ["up"]}, "directions"),
        ({"heading_at": "right"}, "heading_at"),
        ({"size": 3}, "size"),
    ],
)
def test_views_that_cannot_be_made_are_refused_in_the_city_file(
    project: Project, views: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        project.write_city(views=views)
