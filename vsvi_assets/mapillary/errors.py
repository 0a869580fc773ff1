"""What can go wrong with Mapillary, and the one place that decides which of it an answer is.

Sources of the codes: https://developers.facebook.com/docs/graph-api/guides/error-handling,
https://www.mapillary.com/developer/api-documentation, and answers seen of the services, which
do not always pair a code with the HTTP status that one would expect.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus

TOKEN_REFUSED = 190
TRANSIENT_CODES = frozenset({-2, 1, 2, 4})
THROTTLED_CODE = 4
UNKNOWN_OBJECT = (100, 33)
MAX_RETRY_AFTER = 600.0
"""Seconds that an answer can make us wait; what asks for more is asked again after that."""


class Service(StrEnum):
    """One of the three services that answer."""

    TILES = "tile server"
    GRAPH = "Graph API"
    IMAGES = "image server"


class MapillaryError(Exception):
    """A request to Mapillary failed, or what it answered cannot be used.

    `may_pass` says whether the same work may succeed minutes later, with nothing changed.
    """

    may_pass = False


class TransientError(MapillaryError):
    """No answer, or one that may be better the next time.

    `retry_after` is how many seconds the service asked to wait, None where it did not say.
    """

    may_pass = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ThrottledError(TransientError):
    """Too many requests: everything has to slow down."""


class UnreachableError(TransientError):
    """No connection to the service, or to the proxy before it."""


class UnavailableError(MapillaryError):
    """Mapillary does not have it, or has it no longer."""


class TileNotFoundError(MapillaryError):
    """The tile server answered 404, as it sometimes does for tiles that exist.

    It passes within minutes or a day, so that no 404 proves that there is no such tile.
    """


class StaleLinkError(MapillaryError):
    """The link of an image has expired; a fresh one is needed."""

    may_pass = True


class RefusedRequestError(MapillaryError):
    """The request will be refused however often it is made."""


class RefusedTokenError(MapillaryError):
    """Mapillary does not accept the token, so that no request can succeed."""


class ConnectionSettingsError(MapillaryError):
    """No request can succeed until this machine's proxy, certificates or clock are set right."""


class TileBudgetError(MapillaryError):
    """The day's tile requests are used up."""


class AddressBlockedError(MapillaryError):
    """Mapillary answers no tile request from this network address for about a day.

    Attributes
    ----------
    since, until
        When the block was first seen, and before when no tile is requested (UTC).
    reason
        What was asked for, and what the answer was.
    """

    def __init__(self, since: datetime, until: datetime, reason: str) -> None:
        super().__init__(
            "Mapillary has blocked this network address for tile requests since "
            f"{since.astimezone(UTC):%Y-%m-%d %H:%M} UTC ({reason}). No tile is requested until "
            f"{until.astimezone(UTC):%Y-%m-%d %H:%M} UTC, because requests seem to prolong a "
            "block. Tiles on disk are kept, and photographs whose tiles are on disk can still be "
            "downloaded. Run again after that time."
        )
        self.since, self.until, self.reason = since, until, reason


class StoppedError(MapillaryError):
    """The work was given up on purpose before it was done."""


class InvalidTileError(MapillaryError):
    """The bytes are no vector tile or tile file of Mapillary images."""


class MalformedTileError(InvalidTileError):
    """The bytes are no whole vector tile, whatever they are."""


class OtherServicesError(MapillaryError):
    """Data on disk comes from other services than the city uses."""


class InvalidSequenceIdError(MapillaryError):
    """A sequence id that cannot be one, nor the name of a folder."""


def is_block(status: int, headers: Mapping[str, str], start: bytes) -> bool:
    """Return whether an answer of the tile server means that this address is blocked.

    A blocked address gets a redirect to the login page, or that page itself, instead of a
    vector tile (https://github.com/jonfroehlich/streetscape-tracker, docs/provider-access.md).

    Parameters
    ----------
    start
        The first bytes of the body.
    """
    if 300 <= status < 400:
        return True
    is_html = headers.get("Content-Type", "").lower().startswith("text/html")
    has_content = 200 <= status < 300 and status != HTTPStatus.NO_CONTENT
    return has_content and (is_html or start.lstrip().startswith(b"<"))


def answer_error(
    service: Service, status: int, headers: Mapping[str, str], body: bytes, asked_for: str
) -> MapillaryError | None:
    """Return the error that an answer means, or None where it is good.

    Whether the tile server blocks this address is decided by `is_block`.

    Parameters
    ----------
    service
        Which service answered.
    status, headers, body
        The answer; of a good image or tile the first bytes of the body suffice.
    asked_for
        What the request was for, as it is to appear in the message: "tile 14/8574/5735".
    """
    code, subcode, is_transient, message = _graph_error(body)
    said = f"{service} answered {status}{f', code {code}' if code is not None else ''}"
    said = f"{asked_for}: {said}{f': {message}' if message else ''}"
    wait = retry_after(headers)

    # The image server is not given the token, so that it cannot refuse it.
    if (
        service != Service.IMAGES and (code == TOKEN_REFUSED or status == HTTPStatus.UNAUTHORIZED)
    ) or (service == Service.TILES and status == HTTPStatus.FORBIDDEN):
        return RefusedTokenError(
            f"Mapillary refuses the token ({said}). Make a client token at "
            "https://www.mapillary.com/dashboard/developers and set it as MAPILLARY_TOKEN or "
            "put it into the token file."
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS or code == THROTTLED_CODE:
        return ThrottledError(said, wait)
    if service == Service.TILES and status == HTTPStatus.NOT_FOUND:
        return TileNotFoundError(said)
    if (code, subcode) == UNKNOWN_OBJECT or status == HTTPStatus.NOT_FOUND:
        return UnavailableError(said)
    if service == Service.IMAGES and status in (HTTPStatus.FORBIDDEN, HTTPStatus.GONE):
        return StaleLinkError(said)
    if code in TRANSIENT_CODES or is_transient:
        return TransientError(said, wait)
    if status in (HTTPStatus.OK, HTTPStatus.NO_CONTENT) and code is None:
        return None
    if status < 400 or status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        return TransientError(said, wait)
    return RefusedRequestError(said)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After asks for, given in seconds or as a date.

    At least 0 and at most `MAX_RETRY_AFTER`; None where the header is absent or unreadable.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), MAX_RETRY_AFTER))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def cut_short(value: object, length: int = 60) -> str:
    """Return a value from outside as it may stand in a message: one line, and short."""
    text = repr(value[: length + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= length else f"{text[:length]}…"


def _graph_error(body: bytes) -> tuple[int | None, int | None, bool, str]:
    """Return code, subcode, is_transient and message of a Graph API error body."""
    if body.lstrip()[:1] != b"{":
        return None, None, False, ""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None, None, False, ""
    error = answer.get("error", answer)
    code = _number(error.get("code")) if isinstance(error, dict) else None
    if code is None:
        return None, None, False, ""
    message = error.get("message")
    return (
        code,
        _number(error.get("error_subcode")),
        error.get("is_transient") is True,
        cut_short(message, 200) if isinstance(message, str) else "",
    )


def _number(value: object) -> int | None:
    """Return a whole number, which may be given as text."""
    text = str(value)
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None
