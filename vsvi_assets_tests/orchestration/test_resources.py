"""What the resources hold, and for how long."""

from pathlib import Path

import pytest

from vsvi_assets.database.server import LocalPostgisError
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets_tests.project import Project


def test_open_files_do_not_grow_with_the_number_of_runs(project: Project) -> None:
    city = project.write_city()
    project.materialize_metadata(city)
    open_files = []
    for sequence_id in project.sequences(city):
        project.materialize(city, "image_files", partitions=[sequence_id])
        open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    runs = len(open_files) - 2
    assert runs > 3
    # The connections of the sandbox, which answers in this process too, come and go.
    assert open_files[-1] - open_files[1] < runs


def test_no_resource_starts_a_server(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VSVI_POSTGRES_URL")
    postgis = PostgisResource(data_dir=str(project.folder / "nowhere"))
    with pytest.raises(LocalPostgisError, match="vsvi up"):
        postgis.database()
    assert not (project.folder / "nowhere").exists()
