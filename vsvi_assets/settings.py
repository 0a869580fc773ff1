"""Where things are: the settings that come from environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class SettingError(ValueError):
    """An environment variable that holds what it should not."""


class TokenMissingError(Exception):
    """No Mapillary token is set."""


@dataclass(frozen=True)
class Settings:
    """Folders, services and databases, as `.env.example` lists them.

    `sequences_per_run` is how many sequences a run of a backfill takes at most,
    `retry_delay` the seconds after which a step that failed for a service is tried again.
    `pages_url` is where the coverage reports are served, None where nothing serves them.
    `postgres_url` is None where the project's own PostGIS cluster is to be used. The token
    is no field: it is read when it is needed, so that no repr or log can show it.
    """

    cities_dir: Path
    data_dir: Path
    token_file: Path
    tiles_url: str
    graph_url: str
    overpass_url: str
    sequences_per_run: int
    retry_delay: int
    pages_url: str | None
    postgres_url: str | None = field(repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; an unset or empty variable means its default."""
        environ = os.environ if environment is None else environment

        def value(name: str, default: str) -> str:
            return environ.get(name) or default

        return cls(
            cities_dir=Path(value("VSVI_CITIES_DIR", "cities")).absolute(),
            data_dir=Path(value("VSVI_DATA_DIR", "data")).absolute(),
            token_file=Path(value("MAPILLARY_TOKEN_FILE", "token.txt")).absolute(),
            tiles_url=value("MAPILLARY_TILES_URL", "https://tiles.mapillary.com").rstrip("/"),
            graph_url=value("MAPILLARY_GRAPH_URL", "https://graph.mapillary.com").rstrip("/"),
            overpass_url=value("OVERPASS_URL", "https://overpass-api.de/api").rstrip("/"),
            sequences_per_run=_positive_number(environ, "VSVI_SEQUENCES_PER_RUN", 200),
            retry_delay=_positive_number(environ, "VSVI_RETRY_DELAY", 30),
            pages_url=environ.get("VSVI_PAGES_URL") or None,
            postgres_url=environ.get("VSVI_POSTGRES_URL") or None,
        )

    def token(self) -> str:
        """Return the Mapillary token from MAPILLARY_TOKEN or the token file.

        Raises
        ------
        TokenMissingError
            When neither holds one.
        """
        token = os.environ.get("MAPILLARY_TOKEN", "").strip()
        if not token and self.token_file.is_file():
            token = self.token_file.read_text().strip()
        if not token:
            raise TokenMissingError(
                "No Mapillary token. Put the client token of your application "
                "(mapillary.com/dashboard/developers) by itself into "
                f"{self.token_file}, or set MAPILLARY_TOKEN."
            )
        return token


def _positive_number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise SettingError(f"{name} = {text!r}: must be a whole number above 0")
    return int(text)
