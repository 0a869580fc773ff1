import gzip
import http.server
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import mercantile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsvi_assets.mapillary.client import MAX_ANSWER_BYTES, ImageLink, Mapillary
from vsvi_assets.mapillary.errors import (
    AddressBlockedError,
    MapillaryError,
    RefusedRequestError,
    RefusedTokenError,
    StaleLinkError,
    StoppedError,
    ThrottledError,
    TileNotFoundError,
    TransientError,
    UnavailableError,
)
from vsvi_assets.sandbox import Fault, Faults, Sandbox
from vsvi_assets.sandbox.vector_tiles import encode_tile
from vsvi_assets.settings import Settings
from vsvi_assets_tests.mapillary.parts import (
    FIRST_ID,
    LAT,
    LON,
    Answer,
    client_at,
    client_of,
    service,
    street_images,
    world_of,
)

TILE = mercantile.tile(LON, LAT, 14)

BLOCKS = {Fault.BLOCKED, Fault.HTML_PAGE, Fault.REDIRECT_TO_FILE, Fault.REDIRECT_TO_HOST}
OTHER_OUTCOMES = {
    **dict.fromkeys(BLOCKS, AddressBlockedError),
    Fault.REFUSED_TOKEN: RefusedTokenError,
    Fault.EXPIRED: RefusedTokenError,  # 403
    Fault.NOT_FOUND: TileNotFoundError,
}
CONTENT = {Fault.HOSTILE_IDS, Fault.ODD_COLUMNS, Fault.ODD_TIMES, Fault.BROKEN_FEATURES}
"""What test_tiles.py is about."""


@pytest.mark.parametrize("fault", sorted(set(Fault) - CONTENT - {Fault.STALL}))
def test_each_fault_of_a_tile_is_overcome_or_reported(fault: Fault) -> None:
    faults = Faults(tiles={fault: 1.0}, most=1, retry_after=0, slow=0.05)
    with Sandbox(world_of(street_images(3)), faults=faults) as sandbox:
        client = client_of(sandbox)
        if fault in OTHER_OUTCOMES:
            with pytest.raises(OTHER_OUTCOMES[fault], match=rf"tile 14/{TILE.x}/{TILE.y}"):
                client.tile_images(TILE)
            assert sandbox.stats.requests["tiles"] == 1
        elif fault == Fault.EMPTY:
            assert len(client.tile_images(TILE)) == 0
        else:
            assert len(client.tile_images(TILE)) == 3
        assert sandbox.stats.token_leaks == sandbox.stats.redirects_followed == 0


PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


@pytest.mark.parametrize(
    ("answer", "reported"),
    [
        (
            (302, {"Location": "https://www.mapillary.com/login/?next=x"}, b""),
            "mapillary.com/login",
        ),
        ((301, {}, b""), "301"),
        ((307, {"Content-Length": "1000"}, b"cut off"), "307"),
        ((200, {"Content-Type": "text/html; charset=utf-8"}, PAGE), "200"),
        ((200, {"Content-Type": "text/html"}, b""), "200"),
        ((200, {"Content-Type": "application/x-protobuf"}, b"\n" + PAGE), "200"),
        ((206, {}, PAGE), "206"),
    ],
)
def test_the_first_answer_to_a_blocked_address_is_recognised(answer: Answer, reported: str) -> None:
    requests = []

    def note(request: http.server.BaseHTTPRequestHandler) -> Answer:
        requests.append(request.path)
        return answer

    with service(note) as url, pytest.raises(AddressBlockedError, match=reported):
        client_at(url).tile_images(TILE)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content-Type": "application/x-protobuf"}, b""),
        (204, {}, b""),
        (204, {"Content-Type": "text/html"}, b""),
        (200, {}, encode_tile(tuple(TILE), [])),
    ],
)
def test_a_tile_without_images_is_no_block(answer: Answer) -> None:
    with service(lambda _: answer) as url:
        assert len(client_at(url).tile_images(TILE)) == 0


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_page_is_no_block(status: int) -> None:
    answers = iter([(status, {"Content-Type": "text/html"}, PAGE), (200, {}, b"")])
    with service(lambda _: next(answers)) as url:
        assert len(client_at(url).tile_images(TILE)) == 0


def test_a_graph_that_redirects_is_no_block_and_is_not_followed() -> None:
    paths = []

    def redirect(request: http.server.BaseHTTPRequestHandler) -> Answer:
        paths.append(request.path.partition("?")[0])
        return 302, {"Location": "/moved"}, b""

    with service(redirect) as url, pytest.raises(TransientError, match="Graph API answered 302"):
        client_at(url).image_links([1], "256")
    assert paths == ["/images"] * 3


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


def test_ids_that_are_answered_500_for_ever_take_no_others_of_their_batch_along() -> None:
    bad = {"3", "13", "14", "47"}
    requests = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        ids = request.path.split("image_ids=")[1].split("&")[0].split(",")
        requests.append(len(ids))
        if not bad.isdisjoint(ids):
            return 500, {}, b'{"error": {"message": "No", "code": 2, "is_transient": true}}'
        data = [{"id": id, "thumb_1024_url": "https://example.org/"} for id in ids]
        return 200, {}, json.dumps({"data": data}).encode()

    with service(answer) as url:
        links = client_at(url).image_links(range(1, 51), "1024")
    assert links.failed.keys() == set(map(int, bad))
    assert links.found.keys() == set(range(1, 51)) - links.failed.keys()
    assert not links.absent
    assert len(requests) < 70


@pytest.mark.parametrize("token", ["", "MLY|1 2", "MLY|1\r\nX-Evil: 1", "MLY|é"])
def test_a_token_that_cannot_be_one_is_refused_unsent_and_unsaid(token: str) -> None:
    with service(lambda _: (200, {}, b"")) as url:
        with pytest.raises(RefusedTokenError) as refusal:
            client_at(url, token=token).tile_images(TILE)
        assert not token or token not in str(refusal.value)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/", "//", "http://[", "/again"]
)
def test_redirects_of_images_that_lead_nowhere_good_are_not_followed(location: str) -> None:
    with service(lambda _: (302, {"Location": location}, b"")) as url:
        link = ImageLink(1, f"{url}/image", None)
        with pytest.raises(RefusedRequestError, match="image 1"):
            list(client_at(url).image_chunks(link, threading.Event()))


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
    client = Mapillary(Settings.from_environment({}).services_of("mapillary"))
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
def test_what_a_status_means_is_reported_without_its_body(
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


def test_a_stale_link_is_distinguished_from_other_refusals() -> None:
    with Sandbox(world_of(street_images(1)), link_lifetime=-1) as sandbox:
        client = client_of(sandbox)
        (link,) = client.image_links([FIRST_ID], "original").found.values()
        with pytest.raises(StaleLinkError):
            list(client.image_chunks(link, threading.Event()))


def test_a_heading_is_a_number_or_unknown() -> None:
    """What an answer says of an image in another way than as a number of degrees is unknown."""
    said = {1: "72.5", 2: "361", 3: "-0.5", 4: "null", 5: '"72.5"', 6: "true", 7: "1e999"}
    images = [f'{{"id":"{id_}","computed_compass_angle":{text}}}' for id_, text in said.items()]
    body = f'{{"data":[{",".join(images)},{{"id":"8"}}]}}'.encode()
    with service(lambda request: (200, {}, body)) as url:
        answers = client_at(url).image_headings(range(1, 10))
    headings = {id_: found for id_, found in answers.found.items() if not math.isnan(found)}
    assert headings == {1: 72.5, 2: 361.0, 3: -0.5}
    assert answers.found.keys() == set(range(1, 9))
    assert answers.absent == {9}
