from collections.abc import Callable
from pathlib import Path

import pytest

from vsvi_assets.city import City
from vsvi_assets.database.connection import Postgis
from vsvi_assets_tests.project import BOX


@pytest.fixture
def database(postgis_url: str) -> Postgis:
    return Postgis(postgis_url)


@pytest.fixture
def make_city(tmp_path: Path) -> Callable[..., City]:
    def make(name: str = "town", **keys: object) -> City:
        content = {"bounding_box": BOX, "srid": 28992, **keys}
        return City.parse(content, name=name, data_dir=tmp_path)

    return make
