"""Requests without an answer: what no retry helps is reported at once, in one sentence."""

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import mercantile
import pytest

from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.errors import (
    ConnectionSettingsError,
    TransientError,
    UnreachableError,
)
from vsvi_assets.proxies import is_loopback, proxies_for
from vsvi_assets.sandbox import Sandbox
from vsvi_assets_tests.mapillary.parts import (
    LAT,
    LON,
    Answer,
    OpenGate,
    client_at,
    client_of,
    service,
    services_at,
    street_images,
    world_of,
)

TILE = mercantile.tile(LON, LAT, 14)
CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""Self-signed, so that nobody trusts it, and its key; holds until 2126."""


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def tls_service(
    context: ssl.SSLContext | None, answers: bytes = b""
) -> Iterator[tuple[str, list[None]]]:
    """Take TLS connections, or break them off without a context; give URL and connections."""
    taken: list[None] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # closed at the end
                taken.append(None)
                with connection:
                    if answers:
                        connection.sendall(answers)
                    if context:
                        try:
                            context.wrap_socket(connection, server_side=True).close()
                        except OSError:
                            continue

        thread = threading.Thread(target=take)
        thread.start()
        yield f"https://localhost:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_certificate_that_is_not_trusted_is_reported_at_once() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with tls_service(context) as (url, taken):
        client = client_at(url, num_retries=8)
        with pytest.raises(ConnectionSettingsError) as error:
            client.tile_images(TILE)
        with pytest.raises(ConnectionSettingsError):
            client.image_links(range(1, 51), "256")
    assert len(taken) == 2
    assert not error.value.may_pass
    for reported in ("localhost", "self-signed", "REQUESTS_CA_BUNDLE", "clock", "does not help"):
        assert reported in str(error.value)


def test_a_server_that_speaks_no_tls_is_reported_at_once() -> None:
    with tls_service(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as (url, taken):
        with pytest.raises(ConnectionSettingsError, match="localhost"):
            client_at(url, num_retries=8).tile_images(TILE)
        assert len(taken) == 1


def test_a_handshake_that_is_broken_off_may_pass() -> None:
    with tls_service(None) as (url, taken):
        with pytest.raises(TransientError):
            client_at(url, num_retries=2).tile_images(TILE)
        assert len(taken) == 3


def test_a_bundle_of_certificates_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(ConnectionSettingsError, match=r"/no/such/bundle.pem.*REQUESTS_CA_BUNDLE"):
        client_at("https://localhost:9").tile_images(TILE)


@pytest.mark.parametrize(
    ("proxy", "reported"),
    [
        pytest.param(
            "socks5h://127.0.0.1:1080",
            "Missing dependencies for SOCKS support",
            marks=pytest.mark.skipif(find_spec("socks") is not None, reason="PySocks is there"),
        ),
        ("http://u:p#w@127.0.0.1:3128", "proxy"),
        ("http://:secret@:3128", "proxy"),
        ("http://user:secret@127.0.0.1:port", "proxy"),
        ("gopher://127.0.0.1:70", "proxy"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_used_is_reported_at_once(
    proxy: str, reported: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    client = client_at(f"{scheme}://maps.invalid", num_retries=8)
    began = time.monotonic()
    for ask in (lambda: client.tile_images(TILE), lambda: client.image_links([1, 2], "256")):
        with pytest.raises(ConnectionSettingsError) as error:
            ask()
        assert reported in str(error.value)
        assert "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY" in str(error.value)
        assert "secret" not in str(error.value)
        assert "p#w" not in str(error.value)
    assert time.monotonic() - began < 2


def test_a_proxy_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"maps.invalid.*after 3 attempts"):
        client_at("http://maps.invalid").tile_images(TILE)


def test_addresses_of_this_machine_go_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def proxy(request: http.server.BaseHTTPRequestHandler) -> Answer:
        asked.append(request.path)
        return 503, {}, b"<html>ERR_CONNECT_FAIL</html>"

    with service(proxy) as url, Sandbox(world_of(street_images(3))) as sandbox:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, url)
        client = client_of(sandbox)
        assert len(client.tile_images(TILE)) == 3
        [link, *_] = client.image_links([i.id for i in street_images(3)], "256").found.values()
        assert b"".join(client.image_chunks(link, threading.Event()))
        assert asked == []
        elsewhere = Mapillary(
            services_at("http://maps.invalid"), tile_gate=OpenGate(), num_retries=0
        )
        with pytest.raises(TransientError, match="503"):
            elsewhere.tile_images(TILE)
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000/x", True),
        ("http://127.8.9.1", True),
        ("http://localhost/api", True),
        ("http://sandbox.localhost:1", True),
        ("http://[::1]:80/", True),
        ("https://tiles.mapillary.com", False),
        ("http://localhost.example.org", False),
        ("http://10.0.0.1", False),
        ("", False),
    ],
)
def test_which_addresses_are_of_this_machine(url: str, expected: bool) -> None:
    assert is_loopback(url) == expected
    assert bool(proxies_for(url)) == expected
