"""The client token: where it goes in a request, and that it stands in no text.

The tile server accepts it as a query parameter alone, whatever the documentation says
(https://github.com/mapillary/mapillary-python-sdk/pull/134), so that it stands in URLs, which
libraries like to repeat.
"""

import logging
import re

import requests

from vsvi_assets.mapillary.errors import RefusedTokenError

HIDDEN = "<token>"

_WHAT_FOLLOWS_ITS_NAME = re.compile(
    r"(access_token(?:=|%(?:25)*3D)|\bOAuth(?:\s|\+|%(?:25)*20)+)"
    rf"(?:{HIDDEN}[^\s&\"'<>]*|[^\s&\"'<>]+)",
    re.IGNORECASE,
)
_LOGGERS_OF_URLS = ("urllib3.connection", "urllib3.connectionpool", "urllib3.util.retry")


class ClientToken:
    """The token of a Mapillary application.

    Raises
    ------
    RefusedTokenError
        When it cannot be one; the message does not repeat it.
    """

    def __init__(self, value: str) -> None:
        if not re.fullmatch(r"[!-~]+", value):
            raise RefusedTokenError(
                "The token has spaces, line breaks or other characters that no token has. Set "
                "MAPILLARY_TOKEN, or the token file, to the client token by itself."
            )
        self._value = value
        self._written = re.compile("".join(map(_any_spelling, value)))

    def __repr__(self) -> str:
        return f"ClientToken({HIDDEN})"

    def in_query(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token into a request as the tile server wants it (an `auth` of requests)."""
        request.prepare_url(request.url, {"access_token": self._value})
        return request

    def in_header(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token into a request as the Graph API wants it (an `auth` of requests)."""
        request.headers["Authorization"] = f"OAuth {self._value}"
        return request

    def hidden_in(self, text: str) -> str:
        """Return a text without the token, however it is written there, whole or cut off."""
        return hide_what_follows_its_name(self._written.sub(HIDDEN, text))


def hide_what_follows_its_name(text: str) -> str:
    """Return a text without whatever stands where a token does."""
    return _WHAT_FOLLOWS_ITS_NAME.sub(rf"\1{HIDDEN}", text)


def hide_tokens_in_logs() -> None:
    """Keep urllib3, which logs the URLs of its requests, from logging tokens."""
    for name in _LOGGERS_OF_URLS:
        logging.getLogger(name).addFilter(_without_token)  # once, however often it is added


def _without_token(record: logging.LogRecord) -> bool:
    record.msg, record.args = hide_what_follows_its_name(record.getMessage()), None
    record.exc_info = None  # which quotes headers that cannot be read
    return True


def _any_spelling(character: str) -> str:
    """Return the pattern of a character as it is, percent-encoded, or escaped in JSON or HTML."""
    code = ord(character)
    return (
        rf"(?:{re.escape(character)}|%(?:25)*(?i:{code:02x})|\\u00(?i:{code:02x})"
        rf"|&\#{code};|&\#x(?i:{code:x});)"
    )
