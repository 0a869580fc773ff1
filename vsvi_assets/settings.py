"""Settings that come from environment variables: folders, services and their limits."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from vsvi_assets.files import DataPath, TextFileError, machine_folder, read_text
from vsvi_assets.store import StoreSettingsError

ServicesName = Literal["mapillary", "sandbox"]
"""The key `services` of a city file."""

PROJECT_PAGE = "https://github.com/Spatial-Data-Science-and-GEO-AI-Lab"
"""Where those who run a service find the makers of this program."""

NAMES = (
    "VSVI_BLOCK_HOURS",
    "VSVI_BROKER_PASSWORD_FILE",
    "VSVI_BROKER_URL",
    "VSVI_CITIES_DIR",
    "VSVI_CONTACT",
    "VSVI_DAGSTER_DIR",
    "VSVI_DATA_DIR",
    "VSVI_LOGS_BUCKET",
    "VSVI_NOTIFY_EMAIL",
    "VSVI_NOTIFY_WEBHOOK",
    "VSVI_OVERPASS_AREA",
    "VSVI_OVERPASS_MEMORY",
    "VSVI_PAGES_URL",
    "VSVI_POSTGRES_URL",
    "VSVI_RETRY_DELAY",
    "VSVI_SANDBOX_URL",
    "VSVI_SEQUENCES_PER_RUN",
    "VSVI_SMTP_URL",
    "VSVI_TILES_PER_DAY",
    "VSVI_TILES_PER_MINUTE",
)
"""The variables named after this project, in whichever module they are read."""

SANDBOX_TOKEN = "MLY|sandbox|0123456789abcdef"
SANDBOX_TILES_PER_MINUTE = 60_000


class SettingError(ValueError):
    """An environment variable that holds what it should not."""


class TokenMissingError(Exception):
    """No Mapillary token is set."""


class SandboxMissingError(Exception):
    """A city uses the sandbox, and no sandbox is set."""


@dataclass(frozen=True)
class ServiceAddresses:
    """Where the services of a city are, and how fast its tiles may be requested.

    Attributes
    ----------
    tiles_url, graph_url, overpass_url, nominatim_url
        Base addresses, without a slash at the end.
    tiles_per_minute
        Most tile requests per minute, of all processes together.
    user_agent
        The User-Agent of every request to these services.
    token
        Returns the token of the tile server and the Graph API, as `Settings.token` does.
    """

    name: ServicesName
    tiles_url: str
    graph_url: str
    overpass_url: str
    nominatim_url: str
    tiles_per_minute: int
    user_agent: str
    token: Callable[[], str] = field(repr=False, compare=False)


@dataclass(frozen=True)
class NotificationSettings:
    """Whom to notify of failed runs, blocks and finished backfills; nobody by default.

    Attributes
    ----------
    webhook_url
        Gets a POST of `{"text": …}`.
    email
        Address that gets an e-mail, through the server of `smtp_url`
        (`smtps://user:password@host:port`).
    """

    webhook_url: str | None = field(default=None, repr=False)
    email: str | None = None
    smtp_url: str | None = field(default=None, repr=False)

    @property
    def is_on(self) -> bool:
        """Whether there is anybody to send to."""
        return bool(self.webhook_url or self.email)


@dataclass(frozen=True)
class Settings:
    """Folders, services, limits and databases, as `.env.example` lists them.

    The token is no field: it is read when it is needed, so that no repr or log can show it.

    Attributes
    ----------
    data_dir
        A folder, or a path in an object store.
    tiles_url, graph_url, overpass_url, nominatim_url
        Of the services `mapillary`; `services_of` returns those of a city.
    sandbox_url
        Base address of the sandbox; None where no city uses it.
    tiles_per_minute, tiles_per_day
        Most tile requests to Mapillary, of all processes together.
    block_hours
        For how long no tile is requested after Mapillary has blocked this address.
    contact
        How those who run the services reach the user: a page or an e-mail address.
    overpass_memory
        Most megabytes that a query may take on the Overpass server; None: the server's default.
    overpass_area
        Largest area of one query to Overpass, in square kilometres.
    sequences_per_run
        Most sequences in one run of a backfill.
    retry_delay
        Seconds after which a step that failed because of a service is tried again.
    pages_url
        Where the coverage reports are served; None where nothing serves them.
    postgres_url
        None where the project's own PostGIS server is to be used.
    notifications
        Whom to notify of what goes wrong.
    """

    cities_dir: Path
    data_dir: DataPath
    token_file: Path
    tiles_url: str
    graph_url: str
    overpass_url: str
    nominatim_url: str
    sandbox_url: str | None
    tiles_per_minute: int
    tiles_per_day: int
    block_hours: int
    contact: str
    overpass_memory: int | None
    overpass_area: int
    sequences_per_run: int
    retry_delay: int
    pages_url: str | None
    postgres_url: str | None = field(repr=False)
    notifications: NotificationSettings
    _environment: Mapping[str, str] = field(repr=False, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; an unset or empty variable means its default.

        Raises
        ------
        SettingError
            When a variable holds what it should not, or its name looks like that of another one;
            the message names it.
        """
        environ = os.environ if environment is None else environment
        _check_names(environ)
        return cls(
            cities_dir=_path(environ, "VSVI_CITIES_DIR", "cities"),
            data_dir=_data_path(environ),
            token_file=_path(environ, "MAPILLARY_TOKEN_FILE", "token.txt"),
            tiles_url=_url(environ, "MAPILLARY_TILES_URL", "https://tiles.mapillary.com"),
            graph_url=_url(environ, "MAPILLARY_GRAPH_URL", "https://graph.mapillary.com"),
            overpass_url=_url(environ, "OVERPASS_URL", "https://overpass-api.de/api"),
            nominatim_url=_url(environ, "NOMINATIM_URL", "https://nominatim.openstreetmap.org"),
            sandbox_url=_url(environ, "VSVI_SANDBOX_URL", "") or None,
            tiles_per_minute=_positive_number(environ, "VSVI_TILES_PER_MINUTE", 40),
            tiles_per_day=_positive_number(environ, "VSVI_TILES_PER_DAY", 50_000),
            block_hours=_positive_number(environ, "VSVI_BLOCK_HOURS", 24),
            contact=_contact(environ),
            overpass_memory=(
                _positive_number(environ, "VSVI_OVERPASS_MEMORY", 0)
                if environ.get("VSVI_OVERPASS_MEMORY")
                else None
            ),
            overpass_area=_positive_number(environ, "VSVI_OVERPASS_AREA", 2500),
            sequences_per_run=_positive_number(environ, "VSVI_SEQUENCES_PER_RUN", 200),
            retry_delay=_positive_number(environ, "VSVI_RETRY_DELAY", 30),
            pages_url=_url(environ, "VSVI_PAGES_URL", "") or None,
            postgres_url=environ.get("VSVI_POSTGRES_URL") or None,
            notifications=_notifications(environ),
            _environment=environ,
        )

    @property
    def machine_dir(self) -> Path:
        """The folder for what belongs to this machine; see `files.machine_folder`."""
        return machine_folder(self.data_dir)

    @property
    def user_agent(self) -> str:
        """The User-Agent of every request: program, version, and whom to contact.

        Overpass answers 406 to those that libraries send by default (drolbr/Overpass-API#791).
        """
        return f"vsvi-assets/{version('vsvi-assets')} (+{self.contact})"

    def services_of(self, name: ServicesName) -> ServiceAddresses:
        """Return the services that a city file names by its key `services`.

        Raises
        ------
        SandboxMissingError
            When it is the sandbox, and VSVI_SANDBOX_URL is not set.
        """
        if name == "mapillary":
            return ServiceAddresses(
                name,
                tiles_url=self.tiles_url,
                graph_url=self.graph_url,
                overpass_url=self.overpass_url,
                nominatim_url=self.nominatim_url,
                tiles_per_minute=self.tiles_per_minute,
                user_agent=self.user_agent,
                token=self.token,
            )
        if self.sandbox_url is None:
            raise SandboxMissingError(
                "No sandbox runs: `vsvi up` starts it where a city file says "
                '"services": "sandbox", and sets VSVI_SANDBOX_URL.'
            )
        return ServiceAddresses(
            name,
            tiles_url=self.sandbox_url,
            graph_url=self.sandbox_url,
            overpass_url=f"{self.sandbox_url}/api",
            nominatim_url=f"{self.sandbox_url}/nominatim",
            tiles_per_minute=SANDBOX_TILES_PER_MINUTE,
            user_agent=self.user_agent,
            token=lambda: SANDBOX_TOKEN,
        )

    def token(self) -> str:
        """Return the Mapillary token from MAPILLARY_TOKEN or the token file.

        Raises
        ------
        TokenMissingError
            When neither holds one.
        SettingError
            When the token file cannot be read.
        """
        token = self._environment.get("MAPILLARY_TOKEN", "").strip()
        if not token and self.token_file.exists():
            try:
                token = read_text(self.token_file).strip()
            except TextFileError as error:
                raise SettingError(str(error)) from error
        if not token:
            raise TokenMissingError(
                "No Mapillary token. Put the client token of your application "
                "(mapillary.com/dashboard/developers) by itself into "
                f"{self.token_file}, or set MAPILLARY_TOKEN."
            )
        return token


def _notifications(environ: Mapping[str, str]) -> NotificationSettings:
    email = environ.get("VSVI_NOTIFY_EMAIL") or None
    smtp_url = environ.get("VSVI_SMTP_URL") or None
    if email and not smtp_url:
        raise SettingError(
            "VSVI_NOTIFY_EMAIL is set, but not VSVI_SMTP_URL: name the server that sends the "
            "e-mails, as in smtps://user:password@smtp.example.org"
        )
    if smtp_url:
        parts = urlsplit(smtp_url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise SettingError(
                "VSVI_SMTP_URL: must be an address as smtps://user:password@smtp.example.org"
            )
    webhook_url = _url(environ, "VSVI_NOTIFY_WEBHOOK", "") or None
    return NotificationSettings(webhook_url, email, smtp_url)


def _check_names(environ: Mapping[str, str]) -> None:
    """Refuse names that are nearly those of settings, whose values would go unnoticed."""
    for name in environ:
        if not name.startswith("VSVI_") or name in NAMES:
            continue
        for close in get_close_matches(name, NAMES, n=1, cutoff=0.85):
            raise SettingError(f"{name} is no setting: did you mean {close}?")


def _path(environ: Mapping[str, str], name: str, default: str) -> Path:
    text = environ.get(name) or default
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise SettingError(f"{name} = {text!r}: no such user's home folder") from error


def _data_path(environ: Mapping[str, str]) -> DataPath:
    name = "VSVI_DATA_DIR"
    if "://" not in environ.get(name, ""):
        return _path(environ, name, "data")
    # What an object store needs takes a while to load.
    from vsvi_assets.bucket import store_path

    try:
        return store_path(environ[name], environ)
    except StoreSettingsError as error:
        raise SettingError(f"{name} = {error}") from error


def _url(environ: Mapping[str, str], name: str, default: str) -> str:
    text = (environ.get(name) or default).rstrip("/")
    parts = urlsplit(text)
    if text and not (parts.scheme in ("http", "https") and parts.hostname):
        raise SettingError(f"{name} = {text!r}: must begin with https:// or http://")
    return text


def _positive_number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise SettingError(f"{name} = {text!r}: must be a whole number above 0")
    return int(text)


def _contact(environ: Mapping[str, str]) -> str:
    contact = environ.get("VSVI_CONTACT") or PROJECT_PAGE
    if not (contact.isascii() and contact.isprintable() and ("@" in contact or "://" in contact)):
        raise SettingError(
            f"VSVI_CONTACT = {contact!r}: must be an e-mail address or the address of a page"
        )
    return contact
