import gzip
import http.server
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mercantile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsvi_assets.mapillary.client import MAX_ANSWER_BYTES, USER_AGENT, ImageLink, Links, Mapillary
from vsvi_assets.mapillary.coverage import TilesFailedError, fetch_tiles
from vsvi_assets.mapillary.errors import (
    MapillaryError,
    RefusedRequestError,
    RefusedTokenError,
    StaleLinkError,
    StoppedError,
    ThrottledError,
    TileBudgetError,
    TransientError,
    UnavailableError,
    UnreachableError,
)
from vsvi_assets.mapillary.pacing import TileBudget
from vsvi_assets.sandbox import TOKEN, Fault, Faults, Sandbox
from vsvi_assets_tests.mapillary.parts import FIRST_ID, LAT, LON, client_of, street_images, world_of

TILE = mercantile.tile(LON, LAT, 14)
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def service(
    answer: Callable[[http.server.BaseHTTPRequestHandler], Answer],
) -> Iterator[str]:
    """Serve what `answer` says; give the service's URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_at(url: str, *, token: str = TOKEN, num_retries: int = 2) -> Mapillary:
    return Mapillary(
        lambda: token, tiles_url=url, graph_url=url, num_retries=num_retries, backoff=0.01
    )


UNTRIED = ("STALL", "BLOCKED", "ODD_COLUMNS", "ODD_TIMES", "BROKEN_FEATURES")


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault.name not in UNTRIED])
def test_each_fault_of_a_tile_is_got_over_or_told(fault: Fault) -> None:
    faults = Faults(tiles={fault: 1.0}, most=1, retry_after=0, slow=0.05)
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        client = client_of(sandbox)
        if fault in (
            Fault.REFUSED_TOKEN,
            Fault.NOT_FOUND,
            Fault.EXPIRED,
            Fault.REDIRECT_TO_FILE,
            Fault.HOSTILE_IDS,
        ):
            with pytest.raises(MapillaryError) as error:
                client.tile_images(TILE)
            assert not isinstance(error.value, TransientError)
            assert sandbox.stats.requests["tiles"] == 1
        elif fault == Fault.EMPTY:
            assert len(client.tile_images(TILE)) == 0
        else:
            assert len(client.tile_images(TILE)) == 3
        assert sandbox.stats.token_leaks == 0


def test_a_service_that_stays_silent_counts_as_down() -> None:
    faults = Faults(tiles={Fault.STALL: 1.0}, most=1)
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        assert len(client_of(sandbox, timeout=0.2).tile_images(TILE)) == 3
        assert sandbox.stats.requests["tiles"] == 2


def test_retries_end_and_say_what_was_wrong() -> None:
    faults = Faults(tiles={Fault.UNAVAILABLE: 1.0})
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        with pytest.raises(TransientError, match=r"tile 14/.* 503.* after 4 attempts"):
            client_of(sandbox, num_retries=3).tile_images(TILE)
        assert sandbox.stats.requests["tiles"] == 4


def test_retries_can_be_stopped() -> None:
    faults = Faults(tiles={Fault.RATE_LIMITED: 1.0}, retry_after=60)
    stop = threading.Event()
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(StoppedError):
            client_of(sandbox).tile_images(TILE, stop)


@pytest.mark.parametrize("fault", [Fault.RATE_LIMITED, Fault.RATE_LIMITED_DATE])
def test_the_pause_that_a_service_asks_for_is_made(fault: Fault) -> None:
    faults = Faults(tiles={fault: 1.0}, most=1, retry_after=2)
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        began = time.monotonic()
        client_of(sandbox).tile_images(TILE)
        # An HTTP date has whole seconds.
        assert 0.9 < time.monotonic() - began < 4


def test_the_pause_that_a_failing_service_asks_for_is_made_too() -> None:
    answers: Iterator[Answer] = iter([(503, {"Retry-After": "1"}, b""), (200, {}, b"")])
    with service(lambda _: next(answers)) as url:
        began = time.monotonic()
        client_at(url).tile_images(TILE)
        assert time.monotonic() - began > 0.9


def test_unknown_images_are_left_out_at_the_cost_of_no_request() -> None:
    images = street_images(50)
    gone = frozenset({FIRST_ID + 7, FIRST_ID + 8})
    with Sandbox(world_of(images), faults=Faults(gone_ids=gone)) as sandbox:
        links = client_of(sandbox).image_links([image.id for image in images], "2048")
        assert links.found.keys() == {image.id for image in images} - gone
        assert links.absent == gone
        assert links.found[FIRST_ID].creator == "walker0"
        assert sandbox.stats.requests["graph"] == 1


def test_a_batch_refused_for_one_image_is_halved_until_that_is_found() -> None:
    requests = []

    def refuse_the_batch(request: http.server.BaseHTTPRequestHandler) -> Answer:
        ids = request.path.split("image_ids=")[1].split("&")[0].split(",")
        requests.append(len(ids))
        if "13" in ids:
            return 400, {}, b'{"error": {"message": "No", "code": 100, "error_subcode": 33}}'
        data = [{"id": id, "thumb_1024_url": "https://example.org/"} for id in ids]
        return 200, {}, json.dumps({"data": data}).encode()

    with service(refuse_the_batch) as url:
        links = client_at(url).image_links(range(1, 51), "1024")
    assert links.found.keys() == set(range(1, 51)) - {13}
    assert links.absent == {13}
    assert len(requests) < 15


def test_the_token_goes_to_the_two_services_in_a_header_and_nowhere_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither along a redirect, nor to the image server, nor into a URL or a message."""
    caplog.set_level(logging.DEBUG)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    token = "MLY|1234|secret"
    seen: list[tuple[str, str | None, str]] = []

    def note(request: http.server.BaseHTTPRequestHandler) -> None:
        headers = request.headers
        seen.append((request.path, headers["Authorization"], headers["User-Agent"]))

    def elsewhere(request: http.server.BaseHTTPRequestHandler) -> Answer:
        note(request)
        return 200, {}, b""

    def redirect(request: http.server.BaseHTTPRequestHandler) -> Answer:
        note(request)
        if request.path.startswith("/maps"):
            return 302, {"Location": f"{other}/elsewhere"}, b""
        if request.path.startswith("/images"):
            return 302, {"Location": "/moved"}, b""
        body = {"error": {"message": f"{request.headers['Authorization']}?", "code": 10}}
        return 400, {}, json.dumps(body).encode()

    with service(elsewhere) as other, service(redirect) as url:
        client = client_at(url, token=token)
        assert len(client.tile_images(TILE)) == 0
        with pytest.raises(RefusedRequestError) as refusal:
            client.image_links([1], "original")
        list(client.image_chunks(ImageLink(1, f"{other}/image", None), threading.Event()))

    authorizations = {path.split("?")[0]: authorization for path, authorization, _ in seen}
    assert authorizations == {
        f"/maps/vtp/mly1_public/2/14/{TILE.x}/{TILE.y}": f"OAuth {token}",
        "/elsewhere": None,
        "/images": f"OAuth {token}",
        "/moved": f"OAuth {token}",
        "/image": None,
    }
    assert all(agent == USER_AGENT for *_, agent in seen)
    assert "vsvi-assets/" in USER_AGENT
    written = f"{refusal.value} {caplog.text} {client!r} {vars(client)} {[s[0] for s in seen]}"
    assert token not in written


BAD_ID = b'{"error": {"message": "Sorry", "code": 2, "is_transient": true}}'
TOO_MUCH = (
    b'{"error": {"message": "Please reduce the amount of data you\'re asking for", "code": 1}}'
)


@contextmanager
def graph_with_bad_ids(bad: set[int], body: bytes = BAD_ID) -> Iterator[tuple[str, list[int]]]:
    """Serve a Graph API that fails whatever holds a bad id; give its URL and requests' sizes."""
    requests: list[int] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        ids = request.path.split("image_ids=")[1].split("&")[0].split(",")
        requests.append(len(ids))
        if bad.intersection(map(int, ids)):
            return 500, {}, body
        data = [{"id": id, "thumb_1024_url": "https://example.org/"} for id in ids]
        return 200, {}, json.dumps({"data": data}).encode()

    with service(answer) as url:
        yield url, requests


@pytest.mark.parametrize("body", [BAD_ID, TOO_MUCH, b"<html>Sorry</html>"])
def test_an_id_that_always_fails_does_not_take_its_batch_along(body: bytes) -> None:
    with graph_with_bad_ids({13}, body) as (url, requests):
        links = client_at(url, num_retries=8).image_links(range(1, 51), "1024")
    assert links.found.keys() == set(range(1, 51)) - {13}
    assert not links.absent
    assert links.failed.keys() == {13}
    assert "image 13: Graph API answered 500" in str(links.failed[13])
    assert len(requests) <= 9 + 5 + 2 * 6 + 2


def test_eight_ids_that_always_fail_among_364_cost_a_bounded_number_of_requests() -> None:
    ids = range(1, 365)
    bad = set(random.Random(0).sample(ids, 8))
    with graph_with_bad_ids(bad) as (url, requests):
        client = client_at(url, num_retries=8)
        links = Links()
        for start in range(0, len(ids), 50):
            links |= client.image_links(ids[start : start + 50], "1024")
    assert links.found.keys() == set(ids) - bad
    assert links.failed.keys() == bad
    assert len(requests) < 200


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(1, 50), max_size=25), st.integers(1, 50))
def test_all_other_images_of_a_batch_arrive(bad: set[int], count: int) -> None:
    ids = range(1, count + 1)
    bad &= set(ids)
    with graph_with_bad_ids(bad) as (url, _):
        client = client_at(url, num_retries=0)
        try:
            links = client.image_links(ids, "1024")
        except TransientError:
            assert len(bad) >= min(5, count)  # as likely as no answer is a service that is down
        else:
            assert links.found.keys() == set(ids) - bad
            assert links.failed.keys() == bad


def test_a_service_that_is_down_is_not_asked_for_each_image() -> None:
    with (
        graph_with_bad_ids(set(range(1, 51))) as (url, requests),
        pytest.raises(TransientError, match="links of 50 images"),
    ):
        client_at(url).image_links(range(1, 51), "1024")
    assert len(requests) == 3 + 5


@pytest.mark.parametrize(("status", "body"), [(429, b""), (400, b'{"error": {"code": 4}}')])
def test_a_throttled_batch_is_not_halved(status: int, body: bytes) -> None:
    requests = []

    def throttle(request: http.server.BaseHTTPRequestHandler) -> Answer:
        requests.append(request.path)
        return status, {"Retry-After": "0"}, body

    with service(throttle) as url, pytest.raises(ThrottledError):
        client_at(url).image_links(range(1, 51), "1024")
    assert len(requests) == 3


def test_a_batch_is_not_halved_for_a_service_that_is_away() -> None:
    with pytest.raises(UnreachableError):
        client_at("http://127.0.0.1:9").image_links(range(1, 51), "1024")


def test_an_answer_without_images_is_told_from_images_that_are_gone() -> None:
    with service(lambda _: (200, {}, b'{"data": []}')) as url:
        links = client_at(url).image_links(range(1, 51), "1024")
    assert links.is_empty
    assert links.absent == set(range(1, 51))


@pytest.mark.parametrize("token", ["", "MLY|1 2", "MLY|1\r\nX-Evil: 1", "MLY|é"])
def test_a_token_that_cannot_be_one_is_refused_unsent_and_unsaid(token: str) -> None:
    with service(lambda _: (200, {}, b"")) as url:
        with pytest.raises(RefusedTokenError) as refusal:
            client_at(url, token=token).tile_images(TILE)
        assert not token or token not in str(refusal.value)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/", "//", "http://[", "/again"]
)
def test_redirects_that_lead_nowhere_good_are_not_followed(location: str) -> None:
    with service(lambda _: (302, {"Location": location}, b"")) as url:
        client = client_at(url)
        with pytest.raises(RefusedRequestError, match=f"tile 14/{TILE.x}"):
            client.tile_images(TILE)


@pytest.mark.parametrize(
    "link",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://127.0.0.1/unencrypted",
        "x.jpg",
        "https://[",
    ],
)
def test_links_to_anything_but_a_web_server_are_refused(link: str) -> None:
    client = Mapillary(lambda: TOKEN)
    with pytest.raises(RefusedRequestError, match="image 1"):
        list(client.image_chunks(ImageLink(1, link, None), threading.Event()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"data": 5}',
        b'{"data": [5]}',
        b'{"data": [{"thumb_256_url": "https://example.org"}]}',
        b'{"data": [{"id": "../1", "thumb_256_url": "https://example.org"}]}',
        b'{"data": [{"id": 1e999, "thumb_256_url": "https://example.org"}]}',
        b"[" * 100_000,
        b"<html>Sorry</html>",
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_no_list_of_images_is_asked_for_again(body: bytes) -> None:
    with service(lambda _: (200, {}, body)) as url:
        client = client_at(url)
        with pytest.raises(TransientError, match="after 3 attempts") as error:
            client.image_links([1], "256")
        assert len(str(error.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
IMAGE = st.fixed_dictionaries(
    {
        "id": st.sampled_from([1, 1.5, math.inf, math.nan, "1_0", "9" * 5000]) | JSON,
        "thumb_256_url": st.just("https://example.org") | JSON,
    },
    optional={"creator": JSON},
)
ERROR = st.dictionaries(
    st.sampled_from(["code", "error_subcode", "message", "is_transient"]), JSON, min_size=1
)
ANSWERS = (
    st.fixed_dictionaries({"data": st.lists(IMAGE, min_size=1)})
    | st.fixed_dictionaries({"error": ERROR})
    | JSON
)


def test_malformed_answers_raise_nothing_else() -> None:
    body = b""
    with service(lambda _: (200, {}, body)) as url:
        client = client_at(url, num_retries=0)

        @given(ANSWERS.map(lambda answer: json.dumps(answer).encode()) | st.binary())
        @settings(max_examples=100, deadline=None)
        def ask(answer: bytes) -> None:
            nonlocal body
            body = answer
            with suppress(MapillaryError):
                assert client.image_links([1], "256").found.keys() <= {1}

        ask()


@pytest.mark.parametrize(
    "headers",
    [{"Content-Length": "5, 9"}, {"Content-Length": "1000"}, {"Content-Encoding": "gzip"}],
)
def test_an_answer_that_contradicts_its_headers_is_asked_for_again(headers: dict[str, str]) -> None:
    answers: Iterator[Answer] = iter([(200, headers, b"half"), (200, {}, b"")])
    with service(lambda _: next(answers)) as url:
        assert len(client_at(url).tile_images(TILE)) == 0


@pytest.mark.parametrize(
    ("status", "expected"),
    [(429, ThrottledError), (404, UnavailableError), (403, StaleLinkError), (400, TransientError)],
)
def test_what_a_status_tells_is_told_without_its_body(
    status: int, expected: type[MapillaryError]
) -> None:
    with service(lambda _: (status, {"Content-Length": "1000"}, b'{"error": {')) as url:
        link = ImageLink(1, f"{url}/image", None)
        with pytest.raises(MapillaryError) as error:
            list(client_at(url).image_chunks(link, threading.Event()))
    assert type(error.value) is expected


def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsvi_assets.mapillary.client.PATIENCE_SECONDS", 0.3)

    def trickle(request: http.server.BaseHTTPRequestHandler) -> Answer:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):
            for _ in range(100):
                request.wfile.write(b".")
                time.sleep(0.05)
        return 200, {}, b""

    with service(trickle) as url:
        link = ImageLink(1, f"{url}/image", None)
        with pytest.raises(TransientError, match="bytes after 0 seconds, and no end"):
            list(client_at(url).image_chunks(link, threading.Event()))


def test_all_clients_of_a_process_slow_down_together() -> None:
    faults = Faults(tiles={Fault.RATE_LIMITED: 1.0}, most=1, retry_after=1)
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        with pytest.raises(TransientError):
            client_of(sandbox, num_retries=0).tile_images(TILE)
        began = time.monotonic()
        client_of(sandbox).tile_images(TILE)
        assert time.monotonic() - began > 0.9


def test_a_batch_refused_for_another_reason_is_not_asked_for_piece_by_piece() -> None:
    requests = []

    def refuse(request: http.server.BaseHTTPRequestHandler) -> Answer:
        requests.append(request.path)
        return 400, {}, b'{"error": {"message": "Unknown field", "code": 100}}'

    with service(refuse) as url:
        client = client_at(url)
        with pytest.raises(RefusedRequestError, match="Unknown field"):
            client.image_links(range(1, 51), "1024")
    assert len(requests) == 1


def test_compressed_answers_are_read_and_endless_ones_are_not() -> None:
    answers = iter(
        [
            gzip.compress(b'{"data": [{"id": "1", "thumb_256_url": "https://example.org"}]}'),
            gzip.compress(bytes(MAX_ANSWER_BYTES + 1)),
        ]
    )
    with service(lambda _: (200, {"Content-Encoding": "gzip"}, next(answers))) as url:
        client = client_at(url)
        assert client.image_links([1], "256").found.keys() == {1}
        with pytest.raises(RefusedRequestError, match="more than"):
            client.image_links([1], "256")


def test_a_stale_link_is_told_from_other_refusals() -> None:
    with Sandbox(world_of(street_images(1)), link_lifetime=-1) as sandbox:
        client = client_of(sandbox)
        (link,) = client.image_links([FIRST_ID], "original").found.values()
        with pytest.raises(StaleLinkError):
            list(client.image_chunks(link, threading.Event()))


def test_tiles_come_in_parallel_and_one_that_fails_does_not_keep_the_others_back() -> None:
    tiles = [mercantile.Tile(TILE.x + x, TILE.y + y, 14) for x in range(5) for y in range(4)]
    broken = tiles[3]

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        time.sleep(0.1)
        if request.path.endswith(f"/{broken.x}/{broken.y}"):
            return 503, {}, b"<html>Sorry</html>"
        return 200, {}, b""

    arrived: list[mercantile.Tile] = []
    began = time.monotonic()
    with service(answer) as url, pytest.raises(TilesFailedError, match=r"1 tiles .*\n.* 503"):
        arrived.extend(tile for tile, _ in fetch_tiles(client_at(url), iter(tiles)))
    assert set(arrived) == set(tiles) - {broken}
    assert time.monotonic() - began < 1.5


def test_a_used_up_budget_ends_the_fetching_of_tiles(tmp_path: Path) -> None:
    tiles = [mercantile.Tile(TILE.x + x, TILE.y, 14) for x in range(30)]
    with Sandbox(world_of([])) as sandbox:
        client = client_of(sandbox)
        client.tile_budget = TileBudget(tmp_path / "budget.json", per_day=12)
        with pytest.raises(TileBudgetError):
            list(fetch_tiles(client, tiles))
        assert sandbox.stats.requests["tiles"] <= 12
