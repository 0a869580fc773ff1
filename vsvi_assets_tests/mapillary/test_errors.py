import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets.mapillary.errors import (
    MapillaryError,
    RefusedRequestError,
    RefusedTokenError,
    Service,
    StaleLinkError,
    ThrottledError,
    TileNotFoundError,
    TransientError,
    UnavailableError,
    answer_error,
    retry_after,
)


def graph(code: int, **more: object) -> bytes:
    return json.dumps({"error": {"message": "So it is", "code": code, **more}}).encode()


HTML = b"<!DOCTYPE html><html><body>Sorry, something went wrong</body></html>"
XML = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code></Error>'


@pytest.mark.parametrize(
    ("service", "status", "body", "expected"),
    [
        (Service.GRAPH, 500, graph(190), RefusedTokenError),
        (Service.GRAPH, 401, graph(190, type="OAuthException"), RefusedTokenError),
        (Service.GRAPH, 400, graph(190, type="OAuthException"), RefusedTokenError),
        (Service.GRAPH, 400, b'{"error": {"code": "190"}}', RefusedTokenError),
        (Service.TILES, 401, b"", RefusedTokenError),
        (Service.IMAGES, 401, b"", RefusedRequestError),
        (Service.IMAGES, 400, graph(190), RefusedRequestError),
        (Service.GRAPH, 400, graph(100, error_subcode=33), UnavailableError),
        (Service.GRAPH, 400, graph(100, error_subcode="33"), UnavailableError),
        (Service.GRAPH, 404, b"", UnavailableError),
        (Service.IMAGES, 404, b"Not Found", UnavailableError),
        (Service.GRAPH, 400, graph(100), RefusedRequestError),
        (Service.GRAPH, 403, graph(10), RefusedRequestError),
        (Service.GRAPH, 200, graph(4, is_transient=True), ThrottledError),
        (Service.GRAPH, 400, graph(4), ThrottledError),
        (Service.TILES, 429, XML, ThrottledError),
        (Service.IMAGES, 429, HTML, ThrottledError),
        (Service.GRAPH, 500, graph(1), TransientError),
        (Service.GRAPH, 500, graph(2), TransientError),
        (Service.GRAPH, 400, graph(-2, is_transient=False), TransientError),
        (Service.GRAPH, 400, b'{"message":"Timeout","code":-2}', TransientError),
        (Service.GRAPH, 400, graph(777, is_transient=True), TransientError),
        (Service.TILES, 503, HTML, TransientError),
        (Service.TILES, 408, b"", TransientError),
        (Service.TILES, 304, b"", TransientError),
        (Service.IMAGES, 403, b"URL signature expired", StaleLinkError),
        (Service.IMAGES, 410, b"", StaleLinkError),
        (Service.TILES, 403, HTML, RefusedTokenError),
        (Service.TILES, 404, b"", TileNotFoundError),
    ],
)
def test_each_answer_belongs_to_one_class(
    service: Service, status: int, body: bytes, expected: type[MapillaryError]
) -> None:
    error = answer_error(service, status, {}, body, "tile 14/1/2")
    assert type(error) is expected
    assert "tile 14/1/2" in str(error)


def test_good_answers_are_no_errors() -> None:
    assert answer_error(Service.GRAPH, 200, {}, b'{"data": []}', "") is None
    assert answer_error(Service.TILES, 200, {}, b"", "") is None
    assert answer_error(Service.TILES, 204, {}, b"", "") is None
    assert answer_error(Service.IMAGES, 200, {}, b"\xff\xd8\xff", "") is None


def test_retry_after_is_read_in_both_its_forms_and_bounded() -> None:
    def at(seconds: float) -> str:
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        return format_datetime(moment, usegmt=True)

    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": at(30)}) == pytest.approx(30, abs=2)
    assert retry_after({"Retry-After": at(-30)}) == 0
    assert retry_after({"Retry-After": "9" * 400}) == 600
    assert retry_after({"Retry-After": at(86400)}) == 600
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({"Retry-After": f"1 Jan 2030 00:00:00 +{'9' * 30}"}) is None
    assert retry_after({}) is None


@given(
    st.sampled_from(Service),
    st.integers(100, 599),
    st.text(),
    st.binary() | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["error", "code", "error_subcode", "message", "is_transient"]), inner
        ),
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
def test_any_answer_is_classified(service: Service, status: int, wait: str, body: bytes) -> None:
    error = answer_error(service, status, {"Retry-After": wait}, body, "tile 14/1/2")
    assert error is None or len(str(error)) < 700
    if status not in (200, 204):
        assert error is not None
