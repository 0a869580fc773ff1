"""`vsvi export`, `freeze`, `rebuild` and `percept`, as they are typed."""

from collections.abc import Callable
from pathlib import Path

import bagit
import geopandas
import pytest
from click.testing import CliRunner, Result

from vsvi_assets import cli
from vsvi_assets.running import services
from vsvi_assets_tests.project import Project


@pytest.fixture
def vsvi(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command on the project's own services, which are started already."""
    monkeypatch.setattr(cli, "start_postgis", lambda: project.settings)
    monkeypatch.setattr(cli, "start_all", lambda: services.Started({}, []))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return run


def test_a_city_that_was_not_run_says_what_to_run(
    project: Project, vsvi: Callable[..., Result]
) -> None:
    project.write_city()
    for command in ("export", "freeze", "percept"):
        result = vsvi(command, "town")
        assert result.exit_code == 1
        assert "run `vsvi materialize town` first" in result.output


def test_a_finished_city_goes_all_the_way(
    project: Project, vsvi: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    city = project.write_city()
    assert project.run_city(city).success

    rows = len(geopandas.read_parquet(city.dataset_path))
    for name in ("dataset.parquet", "dataset.gpkg", "dataset.csv"):
        result = vsvi("export", "town", "--format", name.split(".")[1])
        assert result.exit_code == 0, result.output
        assert f"{city.folder / name}: {rows:,} rows" in result.output
    assert len(geopandas.read_file(city.folder / "dataset.gpkg")) == rows

    result = vsvi(
        *("export", "town", "--output", "here.csv", "--shards", "shards", "--copies", "copies")
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "here.csv").exists()
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["shard-000000.tar"]
    originals, copies = (
        {path.relative_to(folder) for path in folder.glob("*/*.jpg")}
        for folder in (city.sequences_folder, tmp_path / "copies")
    )
    assert copies == originals

    for option, given, expected in (
        ("--output", "here.txt", "must end in one of .parquet, .gpkg, .csv"),
        ("--output", "here.csv/below.csv", "here.csv: File exists"),
        ("--output", f"{'long' * 100}.csv", "File name too long"),
        ("--copies", city.sequences_folder, "a copy must be another file than the photograph"),
    ):
        result = vsvi("export", "town", option, given)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert expected in result.output

    result = vsvi("freeze", "town", "--output", "frozen")
    assert result.exit_code == 0, result.output
    assert "@misc{town_street_view_" in result.output
    bagit.Bag("frozen").validate()
    result = vsvi("freeze", "town", "--output", "frozen")
    assert "is there already" in result.output

    result = vsvi("rebuild", "frozen/data/manifest.json", "--into", "again")
    assert result.exit_code == 0, result.output
    assert f"{len(originals):,} photographs are those that were frozen" in result.output

    result = vsvi("percept", "town")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith("./torch_process_segm.py")


def test_a_manifest_that_is_none_is_refused(vsvi: Callable[..., Result], tmp_path: Path) -> None:
    result = vsvi("rebuild", tmp_path / "manifest.json")
    assert result.exit_code == 1
    assert "not the manifest of a frozen dataset" in result.output
