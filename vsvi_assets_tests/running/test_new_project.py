"""The installed package, as its own build makes it, without the repository around it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    return subprocess.run(
        [sys.executable, "-m", "vsvi_assets.cli", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_init_makes_a_project_of_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    names = ["dagster.yaml", "workspace.yaml", ".env.example", "cities/demo.json"]

    assert vsvi(installed, tmp_path, "init").split() == names

    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_init_keeps_the_files_that_are_there(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("mine")

    assert "dagster.yaml" not in vsvi(installed, tmp_path, "init").split()
    assert vsvi(installed, tmp_path, "init") == ""

    assert (tmp_path / "dagster.yaml").read_text() == "mine"


def test_the_wheel_holds_the_package_alone(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"vsvi_assets"}
    for name in ("views/report.html", "views/project.qgs"):
        assert (installed / "vsvi_assets" / name).is_file()
