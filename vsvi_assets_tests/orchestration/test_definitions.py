"""What Dagster makes of the project, by its own tools."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import serialize_value

from vsvi_assets.orchestration.build import build_defs
from vsvi_assets.settings import Settings
from vsvi_assets_tests.dagster_internals import RepositorySnap
from vsvi_assets_tests.project import METADATA_ASSETS, Project

BIN = Path(sys.executable).parent


def test_each_city_is_a_group_with_keys_under_its_name(project: Project) -> None:
    project.write_city("greater-amsterdam")
    project.write_city("utrecht")
    specs = build_defs(project.settings).resolve_all_asset_specs()
    groups: dict[str, set[str]] = {}
    for spec in specs:
        city, _ = spec.key.path
        assert spec.group_name == city.replace("-", "_")
        assert spec.tags["vsvi/city"] == city
        groups.setdefault(city, set()).add(spec.key.path[1])
    assert groups.keys() == {"greater-amsterdam", "utrecht"}
    assert groups["greater-amsterdam"] == groups["utrecht"]
    assert groups["utrecht"] >= {*METADATA_ASSETS, "image_files"}
    for spec in specs:
        assert {dep.asset_key.path[0] for dep in spec.deps} <= {spec.key.path[0]}


def test_every_asset_says_what_it_is(project: Project) -> None:
    project.write_city()
    for spec in build_defs(project.settings).resolve_all_asset_specs():
        assert "step " in str(spec.description).lower(), spec.key
        assert spec.owners
        assert spec.kinds
        columns = spec.metadata["dagster/column_schema"].columns
        assert columns
        assert all(column.description for column in columns)


WATCHED_IMPORT = """
import sys
started = set()
def note(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "socket.connect"):
        started.add(str(arguments[0]))
sys.addaudithook(note)
from vsvi_assets.orchestration import build
builds, build_defs = [], build.build_defs
build.build_defs = lambda settings: builds.append(settings) or build_defs(settings)
import vsvi_assets.definitions
print(len(builds), sorted(started - {"file"}))  # by which a library looks at Python itself
"""


def test_importing_the_definitions_builds_them_once_and_starts_nothing(project: Project) -> None:
    project.write_city()
    before = sorted(project.folder.rglob("*"))
    environment = os.environ | {"VSVI_POSTGRES_URL": ""}  # where the project has its own server
    printed = subprocess.check_output(
        [sys.executable, "-c", WATCHED_IMPORT], cwd=project.folder, env=environment, text=True
    )
    assert printed.split("\n")[-2] == "1 []"
    assert sorted(project.folder.rglob("*")) == before


def test_no_definition_carries_a_secret(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_city()
    monkeypatch.setenv("MAPILLARY_TOKEN", "MLY|secret")
    monkeypatch.setenv("VSVI_POSTGRES_URL", "postgresql://me:secret@127.0.0.1/x")
    defs = build_defs(Settings.from_environment())
    assert "secret" not in repr(Settings.from_environment())
    repository = defs.get_repository_def()
    assert "secret" not in serialize_value(RepositorySnap.from_def(repository))


@pytest.mark.parametrize(
    "command",
    [["dagster", "definitions", "validate", "-w", "workspace.yaml"], ["dg", "check", "defs"]],
)
def test_dagsters_own_checks_pass(command: list[str], project: Project, postgis_url: str) -> None:
    project.write_city()
    # Dagster lets a `.env` of the folder it runs in win over the environment.
    for name in ("pyproject.toml", "workspace.yaml", "dagster.yaml", "vsvi_assets"):
        (project.folder / name).symlink_to(Path(name).absolute())
    instance = {"DAGSTER_POSTGRES_URL": postgis_url, "DAGSTER_HOME": str(project.folder)}
    checked = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=project.folder,
        env=os.environ | instance,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
