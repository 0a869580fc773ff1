"""Mapillary over HTTP: tiles, links of images, and images.

Source: https://www.mapillary.com/developer/api-documentation
"""

import functools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import Any, Generic, Literal, Self, TypeVar
from urllib.parse import urljoin, urlsplit

import mercantile
import requests
import urllib3
from requests.adapters import HTTPAdapter

from vsvi_assets.mapillary.connections import connection_error, reading_error
from vsvi_assets.mapillary.errors import (
    MalformedTileError,
    MapillaryError,
    RefusedRequestError,
    Service,
    StoppedError,
    ThrottledError,
    TileNotFoundError,
    TransientError,
    UnavailableError,
    UnreachableError,
    answer_error,
    cut_short,
    is_block,
)
from vsvi_assets.mapillary.pacing import Pace, Pacing, TileGate
from vsvi_assets.mapillary.tiles import MAX_TILE_BYTES, TileImages, decode_tile, tile_name
from vsvi_assets.mapillary.token import ClientToken, hide_tokens_in_logs
from vsvi_assets.proxies import proxies_for
from vsvi_assets.settings import ServiceAddresses

IMAGES_PER_REQUEST = 50
"""Image ids in one request for links, as other clients of the service use it."""

REQUESTS_PER_SECOND = {Service.TILES: 1000.0, Service.GRAPH: 75.0, Service.IMAGES: 500.0}
"""Most requests of a process. Of the Graph API half of what is documented (10,000 searches a
minute, https://www.mapillary.com/developer/api-documentation#rate-limits), where the process
keeps no pace together with others. Tiles have a `TileGate`, which is far slower."""

RETRIES_ALONE = 2
"""How often the request for one image is repeated that failed together with others before."""

IMAGES_OF_AN_OUTAGE = 5
"""So many images, each asked for by itself and not answered, are no matter of single images."""

OF_THE_SERVICE = (ThrottledError, UnreachableError)
"""Errors that a request for fewer images gets as well."""

MAX_ANSWER_BYTES = 20_000_000
MAX_ERROR_BYTES = 65_536
MAX_ANSWER_SECONDS = 3600
PATIENCE_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 100
"""A body that comes more slowly than this, the first minute aside, is given up."""

CONNECT_SECONDS = 5.0
"""Within which a server takes a connection."""

MAX_NAME_LENGTH = 200
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 256
MAX_BACKOFF = 60.0
CHUNK_BYTES = 65_536

Authorization = Callable[[requests.PreparedRequest], requests.PreparedRequest]
TileSet = Literal["mly1_public", "mly1_computed_public"]
ImageSize = Literal["original", "2048", "1024", "256"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageLink:
    """Where an image is available for some time, and the name of who made it."""

    id: int
    url: str = field(repr=False)
    creator: str | None


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What came of asking the Graph API about some images: each id is in one of the three.

    Attributes
    ----------
    found
        The answers, by image id.
    absent
        Images that the answers left out. It is no proof that they are gone: the service has
        left out images that exist (https://github.com/mapillary/mapillary-js/issues/460).
    failed
        Images whose request failed though each was asked for by itself, with the reason.
    """

    found: dict[int, T] = field(default_factory=dict)
    absent: frozenset[int] = frozenset()
    failed: dict[int, TransientError] = field(default_factory=dict)

    def __or__(self, other: "Answers[T]") -> "Answers[T]":
        return Answers(
            self.found | other.found, self.absent | other.absent, self.failed | other.failed
        )


Links = Answers[ImageLink]
"""What came of asking for links."""


@dataclass(frozen=True, slots=True)
class _Question(Generic[T]):
    """What is asked about images.

    Attributes
    ----------
    what
        As messages name it: "links".
    fields
        Of the API's entity, besides `id`.
    read
        Reads one image of an answer; None where that has nothing of what was asked for.
    """

    what: str
    fields: str
    read: Callable[[dict[str, Any]], T | None]


class _Session(requests.Session):
    """Leaves redirects to the client, which knows which may be followed."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@functools.cache
def shared_paces(tiles_url: str, graph_url: str) -> dict[Service, Pace]:
    """Return the paces of these services, which all clients of the process share."""
    return {service: Pace(per_second) for service, per_second in REQUESTS_PER_SECOND.items()}


class Mapillary:
    """The client that all threads of a process share; further clients share its pace.

    The token goes to the tile server as a query parameter, to the Graph API in a header, and
    nowhere else: no redirect of these two is followed. It appears in no error and in no log.

    Parameters
    ----------
    services
        Where the services are, and the token, which is read when it is first needed.
    tile_gate
        Gives the turns of the tile requests. None: for images alone.
    graph_pace
        Gives the turns of the requests to the Graph API. None: a pace of this process.
    num_retries
        How often what failed transiently is tried again.
    backoff
        Seconds; before retry n (from 0) a random time up to backoff * 2**n passes.
    timeout
        Seconds without a byte after which a connection counts as dead.
    """

    def __init__(
        self,
        services: ServiceAddresses,
        *,
        tile_gate: TileGate | None = None,
        graph_pace: Pacing | None = None,
        num_retries: int = 8,
        backoff: float = 1.0,
        timeout: float = 30.0,
    ) -> None:
        hide_tokens_in_logs()
        self._services = services
        self.tile_gate = tile_gate
        self.num_retries = num_retries
        self._backoff = backoff
        self._timeout = timeout
        own_urls = (services.tiles_url, services.graph_url)
        self._schemes = {"https", *(urlsplit(url).scheme for url in own_urls)}
        self._paces: dict[Service, Pacing] = {**shared_paces(*own_urls)}
        if graph_pace:
            self._paces[Service.GRAPH] = graph_pace
        self._session = _Session()
        self._session.headers["User-Agent"] = services.user_agent
        adapter = HTTPAdapter(pool_maxsize=MAX_CONNECTIONS)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the connections that are kept open."""
        self._session.close()

    @functools.cached_property
    def _token(self) -> ClientToken:
        return ClientToken(self._services.token())

    def tile_images(
        self,
        tile: mercantile.Tile,
        stop: threading.Event | None = None,
        tile_set: TileSet = "mly1_public",
        *,
        decoder: Executor | None = None,
    ) -> TileImages:
        """Fetch a tile of Mapillary's public coverage and return its images.

        Parameters
        ----------
        tile_set
            `mly1_public`: positions as the cameras say; `mly1_computed_public`: corrected ones.
        decoder
            Decodes the tile; None: this thread does.

        Raises
        ------
        MapillaryError
            `TransientError` when all attempts failed, `TileNotFoundError`, `InvalidTileError`,
            `RefusedRequestError`; and what holds for all tiles: `AddressBlockedError`,
            `TileBudgetError`, `RefusedTokenError`, `ConnectionSettingsError`, `StoppedError`
            when `stop` was set.
        """
        if self.tile_gate is None:
            raise ValueError("a client without a tile gate asks for no tiles")
        gate = self.tile_gate
        path = f"{tile_set}/2/{tile.z}/{tile.x}/{tile.y}"
        url = f"{self._services.tiles_url}/maps/vtp/{path}"
        name = tile_name(tile)
        if tile_set != "mly1_public":
            name += f" of {tile_set}"

        def attempt(stop: threading.Event) -> TileImages:
            gate.wait_turn(stop)
            data = self._body(url, Service.TILES, name, stop, MAX_TILE_BYTES)
            try:
                if decoder is None:
                    return decode_tile(data, tile)
                return decoder.submit(decode_tile, data, tile).result()
            except MalformedTileError as error:
                failure = TransientError(self._token.hidden_in(str(error)))
            raise failure

        return self._retrying(attempt, stop)

    def image_links(
        self, ids: Sequence[int], size: ImageSize, stop: threading.Event | None = None
    ) -> Links:
        """Ask for links to up to 50 images.

        That takes one request, unless one image makes it fail: there are some that are
        answered 500 for ever. A batch that failed in all attempts is therefore halved until
        such images are alone, at about 2 log2(50) requests for each.

        Raises
        ------
        MapillaryError
            As `tile_images` does. `TransientError` where it is not for single images: the
            service throttles or cannot be reached, or does not answer for some single images.
        """
        field_name = f"thumb_{size}_url"
        question = _Question("links", f"{field_name},creator", lambda each: _link(each, field_name))
        return self._ask(question, ids, stop or threading.Event())

    def image_headings(
        self, ids: Sequence[int], stop: threading.Event | None = None
    ) -> Answers[float]:
        """Ask for the headings of up to 50 images that Mapillary corrected, in degrees.

        They are the entity's `computed_compass_angle`, "compass angle after running image
        processing", degrees clockwise from north
        (https://www.mapillary.com/developer/api-documentation#image). An image that is
        answered without one gets NaN. Failing images are found as `image_links` does.

        Raises
        ------
        MapillaryError
            As `image_links` does.
        """
        question = _Question("headings", "computed_compass_angle", _heading)
        return self._ask(question, ids, stop or threading.Event())

    def _ask(self, question: _Question[T], ids: Sequence[int], stop: threading.Event) -> Answers[T]:
        try:
            return self._in_one_request(question, ids, stop, self.num_retries)
        except OF_THE_SERVICE:
            raise
        except UnavailableError as error:
            return self._by_halves(question, ids, stop, error)
        except TransientError as error:
            if not self._answers_for_some(question, ids, stop):
                raise
            return self._by_halves(question, ids, stop, error)

    def _in_one_request(
        self, question: _Question[T], ids: Sequence[int], stop: threading.Event, retries: int
    ) -> Answers[T]:
        url = (
            f"{self._services.graph_url}/images?image_ids={','.join(map(str, ids))}"
            f"&fields=id,{question.fields}"
        )
        name = f"image {ids[0]}"
        if len(ids) > 1:
            name = f"{question.what} of {len(ids)} images from {ids[0]}"

        def attempt(stop: threading.Event) -> dict[int, T]:
            body = self._body(url, Service.GRAPH, name, stop, MAX_ANSWER_BYTES)
            answers = _answers(body, question.read)
            if answers is None:
                text = self._token.hidden_in(body[:MAX_ERROR_BYTES].decode("latin-1"))
                raise TransientError(f"{name}: the answer is no list: {cut_short(text)}")
            return answers

        answers = self._retrying(attempt, stop, retries)
        found = {image_id: answers[image_id] for image_id in ids if image_id in answers}
        return Answers(found, frozenset(ids) - found.keys())

    def _by_halves(
        self,
        question: _Question[T],
        ids: Sequence[int],
        stop: threading.Event,
        error: MapillaryError,
    ) -> Answers[T]:
        """Ask for the halves of a batch that failed, and for the halves of those that fail."""
        if len(ids) == 1:
            if isinstance(error, TransientError):
                return Answers(failed={ids[0]: error})
            return Answers(absent=frozenset(ids))
        answers: Answers[T] = Answers()
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            retries = min(RETRIES_ALONE, self.num_retries) if len(half) == 1 else 0
            try:
                answers |= self._in_one_request(question, half, stop, retries)
            except OF_THE_SERVICE:
                raise
            except (UnavailableError, TransientError) as half_error:
                answers |= self._by_halves(question, half, stop, half_error)
        return answers

    def _answers_for_some(
        self, question: _Question[T], ids: Sequence[int], stop: threading.Event
    ) -> bool:
        """Ask for some images of a batch that failed, one by one, until one is answered."""
        if len(ids) == 1:
            return False
        for image_id in random.sample(ids, min(IMAGES_OF_AN_OUTAGE, len(ids))):
            try:
                self._in_one_request(question, [image_id], stop, 0)
            except OF_THE_SERVICE:
                raise
            except TransientError:
                continue
            except UnavailableError:
                pass
            return True
        return False

    def image_chunks(self, link: ImageLink, stop: threading.Event) -> Iterator[bytes]:
        """Fetch an image once, in pieces; whether they make a whole image is not checked.

        Raises
        ------
        MapillaryError
            As `tile_images` does, and `StaleLinkError`. Nothing is tried again here.
        """
        with self._answer(link.url, Service.IMAGES, f"image {link.id}", stop) as (_, chunks):
            yield from chunks

    def delay(self, attempts: int, error: TransientError) -> float:
        """Return the seconds to wait after so many failed attempts (full jitter)."""
        jitter = random.uniform(0.0, min(self._backoff * 2.0 ** (attempts - 1), MAX_BACKOFF))
        return (error.retry_after or 0.0) + jitter

    def _retrying(
        self,
        attempt: Callable[[threading.Event], T],
        stop: threading.Event | None,
        retries: int | None = None,
    ) -> T:
        stop = stop or threading.Event()
        retries = self.num_retries if retries is None else retries
        for attempts in range(1, retries + 2):
            try:
                return attempt(stop)
            except TransientError as error:
                if attempts > retries:
                    raise type(error)(
                        f"{error}; given up after {attempts} attempts", error.retry_after
                    ) from error
                if stop.wait(self.delay(attempts, error)):
                    raise StoppedError("stopped between two attempts") from error
        raise AssertionError("unreachable")

    def _body(
        self, url: str, service: Service, asked_for: str, stop: threading.Event, limit: int
    ) -> bytes:
        """Return the body of a good answer."""
        body = bytearray()
        with self._answer(url, service, asked_for, stop) as (response, chunks):
            for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise RefusedRequestError(f"{asked_for}: more than {limit:,} bytes")
        self._check(service, response, bytes(body), asked_for)
        return bytes(body)

    @contextmanager
    def _answer(
        self, url: str, service: Service, asked_for: str, stop: threading.Event
    ) -> Iterator[tuple[requests.Response, Iterator[bytes]]]:
        """Make one request, in its turn; give its answer and body when it is good."""
        self._paces[service].wait_turn(stop)
        with self._response(url, service, asked_for) as response:
            self._check_for_block(service, response, b"", asked_for)
            chunks = _chunks(response, asked_for, stop)
            is_good = response.status_code in (HTTPStatus.OK, HTTPStatus.NO_CONTENT)
            try:
                start = next(chunks, b"") if is_good else _start_of(chunks)
            except TransientError:
                with suppress(RefusedRequestError):  # which the body might have shown otherwise
                    self._check(service, response, b"", asked_for)
                raise
            self._check_for_block(service, response, start, asked_for)
            self._check(service, response, start, asked_for)
            if service == Service.TILES and self.tile_gate:
                self.tile_gate.answered()
            yield response, chain([start], chunks)

    def _check_for_block(
        self, service: Service, response: requests.Response, start: bytes, asked_for: str
    ) -> None:
        """Record and raise what an answer of the tile server says about this address."""
        status, headers = response.status_code, response.headers
        if self.tile_gate and service == Service.TILES and is_block(status, headers, start):
            page = headers.get("Location", "").partition("?")[0] or "with a web page"
            reason = f"{asked_for}: {service} answered {status}, {cut_short(page, 100)}"
            raise self.tile_gate.blocked(self._token.hidden_in(reason))

    def _check(
        self, service: Service, response: requests.Response, body: bytes, asked_for: str
    ) -> None:
        """Raise what the answer means, unless it is good."""
        status, headers = response.status_code, response.headers
        error = answer_error(service, status, headers, body, asked_for)
        if error and service != Service.IMAGES:  # which is not shown the token
            # Only what is reported: a good answer has megabytes, through which to look takes long.
            body = self._token.hidden_in(body.decode("latin-1")).encode("latin-1")
            error = answer_error(service, status, headers, body, asked_for)
        if isinstance(error, ThrottledError):
            self._paces[service].pause(error.retry_after or self._backoff)
        if isinstance(error, TileNotFoundError) and self.tile_gate:
            self.tile_gate.answered()
        if error:
            raise error

    def _response(self, url: str, service: Service, asked_for: str) -> requests.Response:
        """Send a request; follow redirects of image servers, which are not shown the token."""
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url, service, asked_for)
            if service != Service.IMAGES or not response.is_redirect:
                return response
            response.close()
            try:
                url = urljoin(url, response.headers["Location"])
            except ValueError:
                raise RefusedRequestError(f"{asked_for}: redirected to what is no URL") from None
        raise RefusedRequestError(f"{asked_for}: more than {MAX_REDIRECTS} redirects")

    def _send(self, url: str, service: Service, asked_for: str) -> requests.Response:
        authorization = self._authorization(service)
        try:
            if urlsplit(url).scheme not in self._schemes:
                raise requests.exceptions.InvalidSchema(url)
            request = self._session.prepare_request(
                requests.Request(
                    "GET",
                    url,
                    headers={"Accept-Encoding": "identity"} if service == Service.IMAGES else None,
                    auth=authorization,
                )
            )
            options = self._session.merge_environment_settings(
                url, proxies_for(url), stream=True, verify=None, cert=None
            )
        except ValueError:  # requests' own errors of URLs are among these
            raise RefusedRequestError(
                f"{asked_for}: {cut_short(url)} is no URL to be followed"
            ) from None
        timeout = (min(CONNECT_SECONDS, self._timeout), self._timeout)
        try:
            return self._session.send(request, timeout=timeout, **options)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            failure = connection_error(error, url, asked_for)
        # Out of reach of the error of requests, which repeats the URL with the token.
        raise failure

    def _authorization(self, service: Service) -> Authorization:
        """Return what puts the token where it belongs, and keeps requests from netrc files."""
        match service:
            case Service.TILES:
                return self._token.in_query
            case Service.GRAPH:
                return self._token.in_header
            case Service.IMAGES:
                return lambda request: request


def _chunks(response: requests.Response, asked_for: str, stop: threading.Event) -> Iterator[bytes]:
    """Read the body as it arrives; one shorter than announced is an error."""
    began, received = time.monotonic(), 0
    try:
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            if stop.is_set():
                raise StoppedError(f"{asked_for}: stopped")
            received += len(chunk)
            seconds = time.monotonic() - began
            due = (seconds - PATIENCE_SECONDS) * SLOWEST_BYTES_PER_SECOND
            if received < due or seconds > MAX_ANSWER_SECONDS:
                raise TransientError(
                    f"{asked_for}: {received:,} bytes after {seconds:.0f} seconds, and no end"
                )
            yield chunk
        return
    except (urllib3.exceptions.HTTPError, OSError) as error:
        failure = reading_error(error, asked_for)
    raise failure


def _start_of(chunks: Iterator[bytes]) -> bytes:
    """Read as much of a body as an error message can fill."""
    body = b""
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return body


def _answers(body: bytes, read: Callable[[dict[str, Any]], T | None]) -> dict[int, T] | None:
    """Read an answer about images, by their ids; None where it is no list of images."""
    answers = {}
    try:
        for image in json.loads(body)["data"]:
            answer = read(image)
            if answer is not None:
                answers[int(image["id"])] = answer
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return answers


def _link(image: dict[str, Any], field_name: str) -> ImageLink | None:
    url = image.get(field_name)
    return ImageLink(int(image["id"]), str(url), _username(image)) if url else None


def _heading(image: dict[str, Any]) -> float:
    match image.get("computed_compass_angle"):
        case bool():
            return math.nan
        case int() | float() as heading if math.isfinite(heading):
            return float(heading)
        case _:
            return math.nan


def _username(image: dict[str, Any]) -> str | None:
    creator = image.get("creator")
    username = creator.get("username") if isinstance(creator, dict) else None
    return str(username)[:MAX_NAME_LENGTH] if username else None
