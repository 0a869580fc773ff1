"""The installed package, as its own build makes it, without the repository around it."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vsvi_assets_tests.conftest import temporary_postgis

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the project's wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [*(sys.executable, "-m", "pip", "wheel"), "--quiet", "--no-deps", "--no-cache-dir"]
    build += ["--no-build-isolation", "--disable-pip-version-check"]
    source = folder / "source"
    source.mkdir()
    # A copy, since the build writes beside its sources.
    for name in ("pyproject.toml", "README.md", "LICENSE", "dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, source)
    shutil.copy(ROOT / ".env.example", source)
    for name in ("vsvi_assets", "vsvi_assets_tests", "cities"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    subprocess.run([*build, "--wheel-dir", folder, source], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def vsvi(installed: Path, folder: Path, *arguments: str) -> str:
    return python(installed, folder, "-m", "vsvi_assets.cli", *arguments)


def python(installed: Path, folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_init_makes_a_project_of_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    names = ["dagster.yaml", "workspace.yaml", ".env.example", "cities/demo.json"]

    assert vsvi(installed, tmp_path, "init").split() == names

    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_init_keeps_the_files_that_are_there(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("mine")

    assert "dagster.yaml" not in vsvi(installed, tmp_path, "init").split()
    assert vsvi(installed, tmp_path, "init").endswith("nothing was written.\n")

    assert (tmp_path / "dagster.yaml").read_text() == "mine"


def test_the_wheel_holds_the_package_alone(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"vsvi_assets"}
    for name in ("views/report.html", "views/project.qgs"):
        assert (installed / "vsvi_assets" / name).is_file()


def test_the_five_lines_of_the_readme_run_a_city(installed: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"### From Python.*?```python\n(.*?)```", readme, re.DOTALL)
    assert found
    lines = found[1]
    assert len([line for line in lines.splitlines() if line]) == 5
    with temporary_postgis() as postgis:
        folder = postgis.data_dir.parent
        vsvi(installed, folder, "init")
        city_file = folder / "cities/demo.json"
        city = json.loads(city_file.read_text())
        box = city["bounding_box"]
        box["east"] = box["west"] + 0.004
        city_file.write_text(json.dumps(city))
        more = """
import asyncio, os, geopandas, warnings
table = photographs("demo")
assert isinstance(table, geopandas.GeoDataFrame) and table.crs == "EPSG:4326"
assert str(table.image_id.dtype) == "Int64"
stored = table[table.state == "stored"]
assert len(stored) and stored.file.map(os.path.isfile).all()
assert table[table.state == "gap"].image_id.isna().all()
assert stored.image_id.nunique() == status("demo").numbers.inventory.on_disk
assert "VSVI_SANDBOX_URL" not in os.environ
caught = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *about: caught.append(str(message))
async def in_a_kernel():
    return run_city("demo")
images = asyncio.run(in_a_kernel()).numbers.images
assert not [message for message in caught if "never awaited" in message], caught
print(images)
"""
        try:
            printed = python(installed, folder, "-c", lines + more)
        finally:
            vsvi(installed, folder, "down")

    assert "to download" in printed
    assert "images, 0 bytes" not in printed
    assert "every selected image was there already" not in printed
    assert printed.endswith("\n0\n")


def test_a_city_that_does_not_exist_is_an_exception(installed: Path) -> None:
    with temporary_postgis() as postgis:
        folder = postgis.data_dir.parent
        vsvi(installed, folder, "init")
        lines = """
from vsvi_assets.api import run_city
from vsvi_assets.city import CityFileError
try:
    run_city("delft")
except CityFileError as error:
    print(error)
"""
        printed = python(installed, folder, "-c", lines)

    assert printed.startswith("There is no city 'delft'")
