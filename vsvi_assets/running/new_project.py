"""The files that a folder needs to be a project: Dagster's configuration and the demo city."""

from importlib.resources import files
from pathlib import Path

from vsvi_assets.files import atomic_write

TEMPLATE = ("dagster.yaml", "workspace.yaml", ".env.example", "cities/demo.json")


def write_new_project(folder: Path) -> list[Path]:
    """Write the files of a project that the folder lacks, and return their paths.

    Files that are there are kept as they are.
    """
    written = []
    for name in TEMPLATE:
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(files("vsvi_assets").joinpath("template", name).read_bytes())
        written.append(path)
    return written
