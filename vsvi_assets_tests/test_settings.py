"""Settings from the environment, as users write them."""

import re
from pathlib import Path

import pytest

from vsvi_assets.settings import (
    NAMES,
    SandboxMissingError,
    SettingError,
    Settings,
    TokenMissingError,
)

TOKEN = "MLY|1|secret"


def settings(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_the_services_are_mapillarys_unless_a_city_says_sandbox() -> None:
    both = settings(VSVI_SANDBOX_URL="http://127.0.0.1:8000/", MAPILLARY_TOKEN=TOKEN)
    real = both.services_of("mapillary")
    assert real.tiles_url == "https://tiles.mapillary.com"
    assert real.graph_url == "https://graph.mapillary.com"
    assert real.overpass_url == "https://overpass-api.de/api"
    assert (real.tiles_per_minute, real.token()) == (40, TOKEN)
    sandbox = both.services_of("sandbox")
    assert sandbox.tiles_url == sandbox.graph_url == "http://127.0.0.1:8000"
    assert sandbox.overpass_url == "http://127.0.0.1:8000/api"
    assert sandbox.tiles_per_minute > 1000
    assert sandbox.token() != TOKEN


def test_without_a_token_only_the_real_services_are_refused(tmp_path: Path) -> None:
    token_file = tmp_path / "token.txt"
    without = settings(
        VSVI_SANDBOX_URL="http://127.0.0.1:8000", MAPILLARY_TOKEN_FILE=str(token_file)
    )
    assert without.services_of("sandbox").token()
    with pytest.raises(TokenMissingError, match=r"mapillary\.com/dashboard/developers") as error:
        without.services_of("mapillary").token()
    assert str(token_file) in str(error.value)


def test_a_sandbox_that_does_not_run_is_reported() -> None:
    with pytest.raises(SandboxMissingError, match="`vsvi up` starts it"):
        settings().services_of("sandbox")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_token_file_of_any_editor_is_read(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path = tmp_path / "token.txt"
    path.write_bytes(f"{mark}{TOKEN}\r\n".encode(encoding))
    assert settings(MAPILLARY_TOKEN_FILE=str(path)).token() == TOKEN


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    path.write_bytes("MLY|1|secrét".encode("latin-1"))
    with pytest.raises(
        SettingError, match=r"token\.txt is not in UTF-8.*Save it as UTF-8"
    ) as error:
        settings(MAPILLARY_TOKEN_FILE=str(path)).token()
    assert "MLY" not in str(error.value)
    with pytest.raises(SettingError, match="cannot be read: Is a directory"):
        settings(MAPILLARY_TOKEN_FILE=str(tmp_path)).token()


def test_the_token_is_in_no_repr() -> None:
    secret = settings(MAPILLARY_TOKEN=TOKEN)
    assert TOKEN not in f"{secret} {secret.services_of('mapillary')}"


def test_a_tilde_is_the_home_folder() -> None:
    assert settings(VSVI_DATA_DIR="~/streets").data_dir == Path.home() / "streets"
    with pytest.raises(SettingError, match="VSVI_CITIES_DIR = '~nobody-of-this-name/cities'"):
        settings(VSVI_CITIES_DIR="~nobody-of-this-name/cities")


def test_every_request_says_whom_to_contact() -> None:
    assert settings().user_agent.startswith("vsvi-assets/")
    assert "https://" in settings().user_agent
    assert "(+me@example.org)" in settings(VSVI_CONTACT="me@example.org").user_agent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VSVI_TILES_PER_MINUTE", "0"),
        ("VSVI_TILES_PER_DAY", "many"),
        ("VSVI_BLOCK_HOURS", "-1"),
        ("VSVI_CONTACT", "me"),
        ("VSVI_CONTACT", "me@example.org\r\nX: y"),
        ("MAPILLARY_TILES_URL", "tiles.mapillary.com"),
        ("VSVI_SANDBOX_URL", "file:///etc"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"{name} = "):
        settings(**{name: value})


def test_a_name_that_is_nearly_a_settings_is_refused() -> None:
    with pytest.raises(SettingError, match=r"VSVI_DATADIR is no setting.*VSVI_DATA_DIR\?"):
        settings(VSVI_DATADIR="/mnt/large")
    assert settings(VSVI_USER="1000:1000").data_dir == Path("data").absolute()


def test_the_names_are_those_of_the_example() -> None:
    example = Path(__file__).parents[1] / ".env.example"
    named = re.findall(r"^#(VSVI_[A-Z_]+)=", example.read_text(), re.MULTILINE)
    assert sorted(named) == list(NAMES)
