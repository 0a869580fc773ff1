"""The token goes where it belongs, and into no message, log or chained error."""

import http.server
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import mercantile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets.mapillary.client import ImageLink, Mapillary
from vsvi_assets.mapillary.errors import MapillaryError, RefusedTokenError
from vsvi_assets.mapillary.token import ClientToken
from vsvi_assets.sandbox import Fault, Faults, Sandbox
from vsvi_assets_tests.dagster_internals import serializable_error_info_from_exc_info
from vsvi_assets_tests.mapillary.parts import (
    LAT,
    LON,
    Answer,
    client_at,
    client_of,
    service,
    services_at,
    street_images,
    world_of,
)

TILE = mercantile.tile(LON, LAT, 14)
TOKEN = "MLY|sandbox|0123/+%&=secret"
TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8)


def spellings(token: str) -> set[str]:
    """Return a token as it may stand in a text."""
    lower = "".join(f"%{ord(c):02x}" if quote(c, safe="") != c else c for c in token)
    twice = quote(quote(token, safe=""), safe="")
    escaped = "".join(f"\\u{ord(c):04x}" for c in token)
    html = "".join(f"&#{ord(c)};" for c in token)
    return {token, quote(token), quote_plus(token), lower, twice, escaped, html}


@given(TOKENS, st.text(), st.text())
def test_a_token_is_hidden_however_it_is_written(token: str, before: str, after: str) -> None:
    for spelling in spellings(token):
        hidden = ClientToken(token).hidden_in(f"{before}{spelling}{after}")
        assert spelling not in hidden.replace(before, "").replace(after, "") or (
            spelling in before + after
        )
    assert token not in repr(ClientToken(token))


@given(TOKENS, st.integers(1))
def test_a_token_that_was_cut_off_is_hidden_after_its_name(token: str, length: int) -> None:
    part = quote(token, safe="")[:length]
    hidden = ClientToken(token).hidden_in(f"GET /maps?x=1&access_token={part}…")
    assert hidden.rstrip("…") == "GET /maps?x=1&access_token=<token>"
    hidden = ClientToken(token).hidden_in(f"next=%2Fmaps%3Faccess_token%3D{part}")
    assert hidden == "next=%2Fmaps%3Faccess_token%3D<token>"


@pytest.mark.parametrize("token", ["", "MLY|1 2", "MLY|1\r\nX-Evil: 1", "MLY|é"])
def test_a_token_that_cannot_be_one_is_refused_unsent_and_unsaid(token: str) -> None:
    with service(lambda _: (200, {}, b"")) as url:
        with pytest.raises(RefusedTokenError) as refusal:
            client_at(url, token=token).tile_images(TILE)
        assert not token or token not in str(refusal.value)


def test_each_service_gets_the_token_as_it_wants_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tile server in the query, the graph in a header, and nobody else."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[tuple[str, str | None, str]] = []

    def note(request: http.server.BaseHTTPRequestHandler) -> Answer:
        headers = request.headers
        seen.append((request.path, headers["Authorization"], headers["User-Agent"]))
        if request.path == "/image":
            return 302, {"Location": "/image/elsewhere"}, b""
        return 200, {}, b"" if "/maps/" in request.path else b'{"data": []}'

    with service(note) as url:
        client = client_at(url, token=TOKEN)
        client.tile_images(TILE)
        client.image_links([1], "original")
        list(client.image_chunks(ImageLink(1, f"{url}/image", None), threading.Event()))

    tile = f"/maps/vtp/mly1_public/2/14/{TILE.x}/{TILE.y}"
    assert [(path, authorization) for path, authorization, _ in seen] == [
        (f"{tile}?access_token={quote(TOKEN, safe='')}", None),
        ("/images?image_ids=1&fields=id,thumb_original_url,creator", f"OAuth {TOKEN}"),
        ("/image", None),
        ("/image/elsewhere", None),
    ]
    agents = {agent for *_, agent in seen}
    assert agents == {services_at(url).user_agent}
    assert agents.pop().startswith("vsvi-assets/")


def written_about(error: BaseException) -> str:
    """Return all that may be shown of an error: by Python, by Dagster, and what lies behind it."""
    try:
        raise error
    except BaseException:  # noqa: BLE001 - any error is looked at
        shown = serializable_error_info_from_exc_info(sys.exc_info()).to_string()
    behind: list[BaseException] = [error]
    for each in behind:
        behind += [other for other in (each.__cause__, each.__context__) if other]
    return shown + " ".join(f"{each} {each!r} {vars(each)}" for each in behind)


def ask_for_all(client: Mapillary) -> Iterator[BaseException]:
    """Ask for a tile and for links; yield the errors."""
    for ask in (
        lambda: client.tile_images(TILE),
        lambda: client.image_links([1, 2], "original"),
    ):
        try:
            ask()
        except MapillaryError as error:
            yield error


def check_that_nothing_is_told(client: Mapillary, log: pytest.LogCaptureFixture) -> None:
    """Check that the token stands in no error, no log and no part of the client."""
    log.set_level(logging.DEBUG)
    errors = list(ask_for_all(client))
    assert errors
    written = f"{log.text} {client!r} {vars(client)}" + "".join(map(written_about, errors))
    for record in log.records:
        written += f"{record.msg} {record.args} {record.exc_text}"
    for spelling in spellings(TOKEN):
        assert spelling not in written
    assert "0123" not in written


@pytest.mark.parametrize("fault", sorted(set(Fault) - {Fault.STALL, Fault.SLOW}))
def test_no_fault_of_a_service_brings_the_token_to_light(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults(tiles={fault: 1.0}, graph={Fault.RESET: 1.0, fault: 1.0}, retry_after=0)
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        client = client_of(sandbox, token=TOKEN, num_retries=1)
        check_that_nothing_is_told(client, caplog)


def echo(request: http.server.BaseHTTPRequestHandler) -> str:
    return f"{request.path} {request.headers['Authorization']} {quote(quote(request.path))}"


def in_json(request: http.server.BaseHTTPRequestHandler) -> Answer:
    message = {"message": f"You asked for {echo(request)}", "code": 10}
    text = json.dumps({"error": message}).replace("M", "\\u004d").replace("|", "\\u007c")
    return 400, {}, text.encode()


def in_text(request: http.server.BaseHTTPRequestHandler) -> Answer:
    return 200, {"Content-Type": "text/plain"}, f"Cannot GET {echo(request)}".encode()


def in_html(request: http.server.BaseHTTPRequestHandler) -> Answer:
    return 503, {"Content-Type": "text/html"}, f"<p>No {echo(request)}</p>".encode()


def in_location(request: http.server.BaseHTTPRequestHandler) -> Answer:
    return 302, {"Location": f"https://example.org{request.path}#{quote(request.path)}"}, b""


def in_broken_headers(request: http.server.BaseHTTPRequestHandler) -> Answer:
    request.wfile.write(f"HTTP/1.1 500 No\r\n{echo(request)}\r\n\r\n".encode())
    request.close_connection = True
    raise ConnectionAbortedError


def in_no_status(request: http.server.BaseHTTPRequestHandler) -> Answer:
    request.wfile.write(f"{echo(request)}\r\n\r\n".encode())
    raise ConnectionAbortedError


@pytest.mark.parametrize(
    "answer", [in_json, in_text, in_html, in_location, in_broken_headers, in_no_status]
)
def test_a_service_that_repeats_the_token_does_not_bring_it_to_light(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    def quietly(request: http.server.BaseHTTPRequestHandler) -> Answer:
        with suppress(ConnectionAbortedError):
            return answer(request)  # type: ignore[operator]
        request.wfile.close()
        return 200, {}, b""

    with service(quietly) as url:
        check_that_nothing_is_told(client_at(url, token=TOKEN, num_retries=1), caplog)


def test_a_service_that_is_away_does_not_bring_the_token_to_light(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        check_that_nothing_is_told(client_at(url, token=TOKEN, num_retries=1), caplog)
