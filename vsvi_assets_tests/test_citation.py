from importlib.metadata import version
from pathlib import Path

import yaml

from vsvi_assets.settings import PROJECT_PAGE


def test_the_project_is_cited_by_its_own_version_and_page() -> None:
    path = Path(__file__).parents[1] / "CITATION.cff"
    content = yaml.safe_load(path.read_text())
    assert content["version"] == version("vsvi-assets")
    assert content["repository-code"] == PROJECT_PAGE
    assert {"cff-version", "message", "title", "authors"} <= content.keys()
