"""What it means when a request gets no answer: decided by what lies behind requests' errors.

None of the errors made here is chained to those of requests, which repeat whole URLs, and so
the token.
"""

import http.client
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import requests
import urllib3

from vsvi_assets.mapillary.errors import (
    ConnectionSettingsError,
    MapillaryError,
    TransientError,
    UnreachableError,
    cut_short,
)

_PASSING_TLS_ERRORS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_NO_CONNECTION = (
    requests.exceptions.ProxyError,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
)
_PROXY_SETTINGS = "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"


def connection_error(error: Exception, url: str, asked_for: str) -> MapillaryError:
    """Return what an error of requests means, for a request whose URL was good.

    Parameters
    ----------
    url
        Without the token.
    asked_for
        What the request was for, as it is to appear in the message.
    """
    causes = list(_chain(error))
    host = urlsplit(url).hostname
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _PASSING_TLS_ERRORS):
            return ConnectionSettingsError(
                f"{asked_for}: no trusted connection to {host}: {_reason(cause)}. Trying again "
                "does not help. Check the clock of this machine, which shows "
                f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Where a company's proxy or a virus "
                "scanner opens encrypted connections, set REQUESTS_CA_BUNDLE to the file with "
                "its certificate."
            )
    if any(isinstance(cause, _NO_CONNECTION) for cause in causes):
        return UnreachableError(f"{asked_for}: no connection to {host}: {_reason(causes[-1])}")
    if not isinstance(error, requests.RequestException) and isinstance(error, OSError):
        return ConnectionSettingsError(
            f"{asked_for}: {error}. Check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE."
        )
    is_of_the_answer = isinstance(error, requests.exceptions.InvalidHeader)
    if isinstance(error, ValueError) and not is_of_the_answer:
        # The request's own URL was good, so that it is about the proxy's.
        # Not in the words of urllib3, which repeat its password.
        is_explained = isinstance(
            error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidProxyURL
        )
        reason = str(error).strip(" .") if is_explained else "its address is no URL"
        return ConnectionSettingsError(
            f"{asked_for}: the proxy of this machine cannot be used: {reason}. Check "
            f"{_PROXY_SETTINGS}; in a name or password write @ : / # as %40 %3A %2F %23, and for "
            'socks proxies run: pip install "requests[socks]"'
        )
    return TransientError(f"{asked_for}: {_reason(causes[-1])}")


def reading_error(error: Exception, asked_for: str) -> TransientError:
    """Return what an error means that ended an answer."""
    return TransientError(f"{asked_for}: {_reason(list(_chain(error))[-1])}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what lies behind it."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    if isinstance(error, http.client.HTTPException):  # which quotes what the server sent
        return type(error).__name__
    return f"{type(error).__name__}: {cut_short(str(error), 120)}"
