"""Mapillary over HTTP: tiles, links of images, and images.

Source: https://www.mapillary.com/developer/api-documentation
"""

import functools
import json
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, TypeVar
from urllib.parse import urljoin, urlsplit

import mercantile
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidHeader, InvalidSchema

from vsvi_assets.mapillary.errors import (
    InvalidImageError,
    MalformedTileError,
    MapillaryError,
    OversizedImageError,
    RefusedRequestError,
    RefusedTokenError,
    Service,
    StoppedError,
    ThrottledError,
    TransientError,
    UnavailableError,
    UnreachableError,
    answer_error,
    cut_short,
)
from vsvi_assets.mapillary.pacing import Pacer, TileBudget
from vsvi_assets.mapillary.tiles import MAX_TILE_BYTES, TileImages, decode_tile, tile_name
from vsvi_assets.photographs.jpeg import MAX_BYTES, check_jpeg

USER_AGENT = f"vsvi-assets/{version('vsvi-assets')} (vsvi_assets, street-view images by city)"
IMAGES_PER_REQUEST = 50
"""Image ids in one request for links, as other clients of the service use it."""

LINK_REQUESTS_PER_SECOND = 75.0
TILE_REQUESTS_PER_SECOND = 75.0
IMAGE_REQUESTS_PER_SECOND = 500.0
"""Ceilings at half the documented limits of searches and entities: two runs may ask at a time.
Tiles have a limit a day alone (`TileBudget`), and are asked for no faster than links."""

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
"""Within which a server takes a connection; nothing can interrupt that wait."""

MAX_NAME_LENGTH = 200
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 256
MAX_BACKOFF = 60.0
CHUNK_BYTES = 65_536

ImageSize = Literal["original", "2048", "1024", "256"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageLink:
    """Where an image can be had for some time, and the name of who made it."""

    id: int
    url: str = field(repr=False)
    creator: str | None


@dataclass(frozen=True, slots=True)
class Links:
    """What came of asking for the links of some images: each id is in one of the three.

    Attributes
    ----------
    found
        The links, by image id.
    absent
        Images that the answers left out. It is no proof that they are gone: the service has
        left out images that exist (https://github.com/mapillary/mapillary-js/issues/460).
    failed
        Images whose request failed though each was asked for by itself, with the reason.
    """

    found: dict[int, ImageLink] = field(default_factory=dict)
    absent: frozenset[int] = frozenset()
    failed: dict[int, TransientError] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the service answered, and knew none of the images."""
        return bool(self.absent) and not self.found

    def __or__(self, other: "Links") -> "Links":
        return Links(
            self.found | other.found, self.absent | other.absent, self.failed | other.failed
        )


class _Authorization(requests.auth.AuthBase):
    """Sets the token, or none; either way requests looks for no credentials elsewhere."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"OAuth {self._token}"
        return request


class _Session(requests.Session):
    """Leaves redirects to the client, which knows where the token may go."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _Adapter(HTTPAdapter):
    """Knows the sockets of its connections, so that threads which wait on one can be woken."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.poolmanager.pool_classes_by_scheme = {
            "http": self._known(urllib3.HTTPConnectionPool),
            "https": self._known(urllib3.HTTPSConnectionPool),
        }

    def cut(self) -> None:
        """Shut down all connections; who waits on one gets an error at once."""
        with self._lock:
            sockets = list(self._sockets)
        for open_socket in sockets:
            with suppress(OSError):  # it was closed meanwhile
                open_socket.shutdown(socket.SHUT_RDWR)

    def _known(self, pool: type[Any]) -> type[Any]:
        """Return a kind of pool whose connections enter their sockets here."""

        def connect(connection: Any) -> None:
            pool.ConnectionCls.connect(connection)
            with self._lock:
                self._sockets.add(connection.sock)

        connection_class = type("Connection", (pool.ConnectionCls,), {"connect": connect})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection_class})


@functools.cache
def shared_pacers(tiles_url: str, graph_url: str) -> dict[Service, Pacer]:
    """Return the pacers of these services, which all clients of the process share."""
    return {
        Service.TILES: Pacer(TILE_REQUESTS_PER_SECOND),
        Service.GRAPH: Pacer(LINK_REQUESTS_PER_SECOND),
        Service.IMAGES: Pacer(IMAGE_REQUESTS_PER_SECOND),
    }


class Mapillary:
    """The client that all threads of a process share; further clients share its pace.

    The token goes to the hosts of `tiles_url` and `graph_url` alone, in a header, and appears
    in no URL and no error.

    Parameters
    ----------
    token
        Returns the client token; called when it is first needed.
    tiles_url, graph_url
        Where the two services are.
    num_retries
        How often what failed transiently is tried again.
    backoff
        Seconds; before retry n (from 0) a random time up to backoff * 2**n passes.
    tile_budget
        Counts the tile requests of the day; None: they are not counted.
    timeout
        Seconds without a byte after which a connection counts as dead.
    """

    def __init__(
        self,
        token: Callable[[], str],
        *,
        tiles_url: str = "https://tiles.mapillary.com",
        graph_url: str = "https://graph.mapillary.com",
        num_retries: int = 8,
        backoff: float = 1.0,
        tile_budget: TileBudget | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._token = functools.cache(lambda: _checked_token(token()))
        self._tiles_url = tiles_url.rstrip("/")
        self._graph_url = graph_url.rstrip("/")
        self._token_origins = {_origin(self._tiles_url), _origin(self._graph_url)}
        self._schemes = {"https"} | {scheme for scheme, *_ in self._token_origins}
        self.num_retries = num_retries
        self._backoff = backoff
        self.tile_budget = tile_budget
        self._timeout = timeout
        self._pacers = shared_pacers(self._tiles_url, self._graph_url)
        # In one thread: several would be no faster, and keep the memory of a large tile each.
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._session = _Session()
        self._session.headers["User-Agent"] = USER_AGENT
        self._adapter = _Adapter(pool_maxsize=MAX_CONNECTIONS)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, self._adapter)

    @contextmanager
    def workers(self, count: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
        """Give a pool of threads to make requests in, and an event to hand to each request.

        When the block is left by an exception the event is set and requests under way are cut
        off: no thread outlives the block.
        """
        stop = threading.Event()
        pool = ThreadPoolExecutor(count, thread_name_prefix="mapillary")
        try:
            yield pool, stop
        except BaseException:
            stop.set()
            end = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
            end.start()
            while end.is_alive():
                self._adapter.cut()
                end.join(0.02)
            raise
        pool.shutdown()

    def tile_images(self, tile: mercantile.Tile, stop: threading.Event | None = None) -> TileImages:
        """Fetch a tile of Mapillary's public coverage and return its images.

        Raises
        ------
        MapillaryError
            `TransientError` when it could not be had in all attempts, `InvalidTileError`,
            `UnavailableError`, `RefusedRequestError`, `RefusedTokenError`, `TileBudgetError`,
            `StoppedError` when `stop` was set.
        """
        url = f"{self._tiles_url}/maps/vtp/mly1_public/2/{tile.z}/{tile.x}/{tile.y}"
        name = tile_name(tile)

        def attempt(stop: threading.Event) -> TileImages:
            if self.tile_budget:
                self.tile_budget.spend()
            data = self._body(url, Service.TILES, name, stop, MAX_TILE_BYTES)
            try:
                return self._decoder.submit(decode_tile, data, tile).result()
            except MalformedTileError as error:
                raise TransientError(str(error)) from error

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
        stop = stop or threading.Event()
        try:
            return self._links_in_one_request(ids, size, stop, self.num_retries)
        except OF_THE_SERVICE:
            raise
        except UnavailableError as error:
            return self._links_by_halves(ids, size, stop, error)
        except TransientError as error:
            if not self._answers_for_some(ids, size, stop):
                raise
            return self._links_by_halves(ids, size, stop, error)

    def _links_in_one_request(
        self, ids: Sequence[int], size: ImageSize, stop: threading.Event, retries: int
    ) -> Links:
        field_name = f"thumb_{size}_url"
        url = (
            f"{self._graph_url}/images?image_ids={','.join(map(str, ids))}"
            f"&fields=id,{field_name},creator"
        )
        name = f"links of {len(ids)} images from {ids[0]}" if len(ids) > 1 else f"image {ids[0]}"

        def attempt(stop: threading.Event) -> dict[int, ImageLink]:
            body = self._body(url, Service.GRAPH, name, stop, MAX_ANSWER_BYTES)
            return _links(body, field_name, name)

        links = self._retrying(attempt, stop, retries)
        found = {image_id: links[image_id] for image_id in ids if image_id in links}
        return Links(found, frozenset(ids) - found.keys())

    def _links_by_halves(
        self, ids: Sequence[int], size: ImageSize, stop: threading.Event, error: MapillaryError
    ) -> Links:
        """Ask for the halves of a batch that failed, and for the halves of those that fail."""
        if len(ids) == 1:
            if isinstance(error, TransientError):
                return Links(failed={ids[0]: error})
            return Links(absent=frozenset(ids))
        links = Links()
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            retries = min(RETRIES_ALONE, self.num_retries) if len(half) == 1 else 0
            try:
                links |= self._links_in_one_request(half, size, stop, retries)
            except OF_THE_SERVICE:
                raise
            except (UnavailableError, TransientError) as half_error:
                links |= self._links_by_halves(half, size, stop, half_error)
        return links

    def _answers_for_some(self, ids: Sequence[int], size: ImageSize, stop: threading.Event) -> bool:
        """Ask for some images of a batch that failed, one by one, until one is answered."""
        if len(ids) == 1:
            return False
        for image_id in random.sample(ids, min(IMAGES_OF_AN_OUTAGE, len(ids))):
            try:
                self._links_in_one_request([image_id], size, stop, 0)
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
        with self._answer(link.url, Service.IMAGES, f"image {link.id}", stop) as response:
            yield from _chunks(response, f"image {link.id}", stop)

    def image_size(self, link: ImageLink, stop: threading.Event | None = None) -> int:
        """Fetch an image and return its length in bytes.

        It is fetched whole, since an image server need not tell the length beforehand.

        Raises
        ------
        MapillaryError
            As `tile_images` does, `StaleLinkError`, and `OversizedImageError`.
        """

        def attempt(stop: threading.Event) -> int:
            image = bytearray()
            for chunk in self.image_chunks(link, stop):
                image += chunk
                if len(image) > MAX_BYTES:
                    raise OversizedImageError(f"image {link.id}: more than {MAX_BYTES:,} bytes")
            try:
                check_jpeg(bytes(image))
            except OversizedImageError:
                raise
            except InvalidImageError as error:
                raise TransientError(f"image {link.id}: {error}") from error
            return len(image)

        return self._retrying(attempt, stop)

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
        with self._answer(url, service, asked_for, stop) as response:
            for chunk in _chunks(response, asked_for, stop):
                body += chunk
                if len(body) > limit:
                    raise RefusedRequestError(f"{asked_for}: more than {limit:,} bytes")
        self._check(service, response, bytes(body), asked_for)
        return bytes(body)

    @contextmanager
    def _answer(
        self, url: str, service: Service, asked_for: str, stop: threading.Event
    ) -> Iterator[requests.Response]:
        """Make one request, in its turn; give its answer when the status is good."""
        self._pacers[service].wait_turn(stop)
        with self._response(url, service, asked_for) as response:
            good = response.status_code in (HTTPStatus.OK, HTTPStatus.NO_CONTENT)
            try:
                body = b"" if good else _start_of(response, asked_for, stop)
            except TransientError:
                with suppress(RefusedRequestError):  # which the body might have told otherwise
                    self._check(service, response, b"", asked_for)
                raise
            self._check(service, response, body, asked_for)
            self._pacers[service].succeeded()
            yield response

    def _check(
        self, service: Service, response: requests.Response, body: bytes, asked_for: str
    ) -> None:
        """Raise what the answer means, unless it is good."""
        if service != Service.IMAGES:
            body = body.replace(self._token().encode(), b"<token>")  # were it to be repeated
        error = answer_error(service, response.status_code, response.headers, body, asked_for)
        if isinstance(error, ThrottledError):
            self._pacers[service].refused(error.retry_after)
        if error:
            raise error

    def _response(self, url: str, service: Service, asked_for: str) -> requests.Response:
        """Send the request, along redirects, with the token where it belongs."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                if urlsplit(url).scheme not in self._schemes:
                    raise InvalidSchema(url)
                response = self._session.get(
                    url,
                    headers={"Accept-Encoding": "identity"} if service == Service.IMAGES else None,
                    auth=_Authorization(self._token_for(url, service)),
                    stream=True,
                    timeout=(min(CONNECT_SECONDS, self._timeout), self._timeout),
                )
                if not response.is_redirect:
                    return response
                response.close()
                url = urljoin(url, response.headers["Location"])
            except (ValueError, requests.RequestException) as error:
                if isinstance(error, ValueError) and not isinstance(error, InvalidHeader):
                    raise RefusedRequestError(  # requests' own errors of URLs are among these
                        f"{asked_for}: {cut_short(url)} is no URL to be followed"
                    ) from error
                kind = UnreachableError if _is_unconnected(error) else TransientError
                raise kind(f"{asked_for}: {_reason(error)}") from error
        raise RefusedRequestError(f"{asked_for}: more than {MAX_REDIRECTS} redirects")

    def _token_for(self, url: str, service: Service) -> str | None:
        """Return the token, where it may go."""
        if service != Service.IMAGES and _origin(url) in self._token_origins:
            return self._token()
        return None


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
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError(f"{asked_for}: {_reason(error)}") from error


def _start_of(response: requests.Response, asked_for: str, stop: threading.Event) -> bytes:
    """Read as much of a body as an error message can fill."""
    body = b""
    for chunk in _chunks(response, asked_for, stop):
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return body


def _checked_token(token: str) -> str:
    if not re.fullmatch(r"[!-~]+", token):
        raise RefusedTokenError(
            "The token has spaces, line breaks or other characters that no token has. Set "
            "MAPILLARY_TOKEN, or the token file, to the client token by itself."
        )
    return token


def _links(body: bytes, field_name: str, asked_for: str) -> dict[int, ImageLink]:
    """Read the links from the answer to a request for them."""
    links = {}
    try:
        for image in json.loads(body)["data"]:
            if url := image.get(field_name):
                link = ImageLink(int(image["id"]), str(url), _username(image))
                links[link.id] = link
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise TransientError(f"{asked_for}: the answer is no list: {cut_short(body)}") from error
    return links


def _username(image: dict[str, Any]) -> str | None:
    creator = image.get("creator")
    username = creator.get("username") if isinstance(creator, dict) else None
    return str(username)[:MAX_NAME_LENGTH] if username else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _is_unconnected(error: BaseException | None) -> bool:
    """Return whether an error of requests is that there was no connection at all."""
    while error:
        if isinstance(
            error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
        ):
            return True
        error = error.__context__
    return False


def _reason(error: BaseException) -> str:
    """Return what lies at the bottom of an error of requests, which quotes whole URLs."""
    while error.__context__:
        error = error.__context__
    return f"{type(error).__name__}: {cut_short(str(error), 120)}"
