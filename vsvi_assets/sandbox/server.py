"""The sandbox's server: real HTTP on loopback, on one base URL for all services.

It is the strictest reading of what is known of the real services, by the answers that other
clients recorded. What is stricter than the evidence says so.
"""

import asyncio
import errno
import hashlib
import hmac
import signal
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote

from aiohttp import web

from vsvi_assets.sandbox import nominatim, overpass
from vsvi_assets.sandbox.answers import fault_answer, graph_error, html, json, overpass_error
from vsvi_assets.sandbox.faults import TILE_CHANGES, Fault, Faults
from vsvi_assets.sandbox.limits import (
    AddressBlock,
    BannedError,
    NominatimLimits,
    OverpassLimits,
    TooManyQueriesError,
    names_its_maker,
)
from vsvi_assets.sandbox.stats import Asked, Stats
from vsvi_assets.sandbox.vector_tiles import encode_tile
from vsvi_assets.sandbox.world import ZOOM, SandboxError, StreetImage, Tile, World

TOKEN = "MLY|sandbox|0123456789abcdef"
IMAGE_SIZES = ("original", "2048", "1024", "256")
MOST_IDS = 200
"""Image ids in one request of the graph; mapillary-js sends as many, others 25 to 50."""

LOGIN_PAGE = "<!DOCTYPE html><html><body>Please log in.</body></html>\n\n\n"
"""58 bytes, as the page was measured to which a blocked address is sent."""

_SECRET = b"sandbox"
_PICTURES_KEPT = 256

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(eq=False)
class Sandbox:
    """Mapillary's tile, graph and image servers, Overpass and Nominatim, for one world.

    As a context manager it serves in a thread of its own; `run` does so until a signal.

    Parameters
    ----------
    world
        What to serve; it may be added to meanwhile.
    faults
        What to do wrong; may be changed meanwhile. Default: nothing.
    latency
        Seconds by which every answer is held back; may be changed meanwhile.
    port
        0: any free one.
    tokens
        The tokens to accept. Default: every one that begins with `MLY|sandbox`.
    link_lifetime
        Seconds for which the graph's image links hold; may be changed meanwhile.
        Mapillary's hold for about 30 days.
    block
        The tile server's limit per address. Default: it blocks only by `block.block()`.
    overpass_limits
        Overpass's pauses. Default: 30 seconds after each 429.
    overpass_memory
        Bytes that each query needs; one that allows less runs out of memory.
    overpass_seconds
        Seconds that each query runs; may be changed meanwhile.
    nominatim_limits
        Nominatim's pace. Default: one request per second.
    stats
        What it was asked.
    """

    world: World
    _: KW_ONLY
    faults: Faults = field(default_factory=Faults)
    latency: float = 0.0
    host: str = "127.0.0.1"
    port: int = 0
    tokens: Collection[str] | None = None
    link_lifetime: float = 30 * 86400
    block: AddressBlock = field(default_factory=AddressBlock)
    overpass_limits: OverpassLimits = field(default_factory=OverpassLimits)
    overpass_memory: int = 0
    overpass_seconds: float = 0.0
    nominatim_limits: NominatimLimits = field(default_factory=NominatimLimits)
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self._at_once: Counter[str] = Counter()
        self._pictures: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._drawing = ThreadPoolExecutor(2, thread_name_prefix="sandbox-pictures")
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL of all services: of tiles and graph as it is."""
        return f"http://{self.host}:{self.port}"

    @property
    def overpass_url(self) -> str:
        """What OVERPASS_URL, and `osmnx.settings.overpass_url`, is to be."""
        return f"{self.url}/api"

    @property
    def nominatim_url(self) -> str:
        """What NOMINATIM_URL, and `osmnx.settings.nominatim_url`, is to be."""
        return f"{self.url}/nominatim"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point the pipeline at this sandbox."""
        return {
            "MAPILLARY_TILES_URL": self.url,
            "MAPILLARY_GRAPH_URL": self.url,
            "OVERPASS_URL": self.overpass_url,
            "NOMINATIM_URL": self.nominatim_url,
            "MAPILLARY_TOKEN": next(iter(self.tokens)) if self.tokens else TOKEN,
            "VSVI_TILES_PER_MINUTE": "60000",
        }

    def __enter__(self) -> Self:
        listener = self._listen()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(listener),), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
        self._drawing.shutdown(cancel_futures=True)

    def run(self, ready: Callable[["Sandbox"], None]) -> None:
        """Serve until SIGINT or SIGTERM; `ready` is called once it listens."""
        is_over = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: is_over.set())
        with self:
            ready(self)
            is_over.wait()

    def _listen(self) -> socket.socket:
        """Bind the socket; connections are taken from now on, and answered once it serves."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise SandboxError(
                    f"{self.host} is no IPv4 address of this machine, nor a name of one: "
                    f"{error.strerror}."
                ) from error
            raise SandboxError(
                f"Port {self.port} of {self.host} is in use or reserved: name another one, or "
                "none, for any that is free."
            ) from error
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        return listener

    async def _serve(self, listener: socket.socket) -> None:
        app = web.Application()
        app.add_routes(
            [
                self._route(
                    "tiles",
                    "/maps/vtp/mly1{computed:(_computed)?}_public/2/{z:\\d+}/{x:\\d+}/{y:\\d+}",
                    self._tile,
                ),
                self._route("images", "/images/files/{id:\\d+}_{size}.jpg", self._image_file),
                self._route("overpass", "/api/interpreter", self._overpass),
                self._route("overpass status", "/api/status", self._overpass_status),
                self._route("nominatim", "/nominatim/{kind:search|lookup}", self._nominatim),
                web.get("/stats", self._stats),
                self._route("elsewhere", "/elsewhere", self._elsewhere),
                self._route("elsewhere", "/login/", self._elsewhere),
                self._route("graph", "/images", self._graph_images),
                self._route("graph", "/{id}", self._graph_image),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        await self._stop.wait()
        await runner.cleanup()

    # Faults, latency and counts, before a service is asked

    def _route(self, service: str, path: str, handler: Handler) -> web.RouteDef:
        async def answer(request: web.Request) -> web.StreamResponse:
            arrived = time.time()
            self.stats.requests[service] += 1
            self._at_once[service] += 1
            self.stats.most_at_once[service] = max(
                self.stats.most_at_once[service], self._at_once[service]
            )
            status, fault = 0, self._fault(service, request)
            try:
                response = await self._answer(service, request, handler, fault)
                if request.transport is not None and not request.transport.is_closing():
                    status = response.status
                return response
            finally:
                self._at_once[service] -= 1
                query = "&".join(f"{key}={value}" for key, value in _without_token(request))
                self.stats.log.append(
                    Asked(
                        at=arrived,
                        service=service,
                        what=f"{request.path}?{query}" if query else request.path,
                        status=status,
                        fault=fault,
                        address=request.remote or "",
                        user_agent=request.headers.get("User-Agent", ""),
                        token_in=frozenset(_token_places(request)),
                    )
                )

        return web.route("*", path, answer)

    def _fault(self, service: str, request: web.Request) -> Fault | None:
        """Return the fault to commit on a request; none where its address is blocked."""
        image_id = tile = None
        if service == "images":
            image_id = int(request.match_info["id"])
            self.stats.images_asked[image_id] += 1
            if _token_places(request):
                self.stats.token_leaks += 1
        if service == "tiles":
            if self.block.refuses(request.remote or ""):
                return Fault.BLOCKED
            tile = "{z}/{x}/{y}".format(**request.match_info)
        asked = "&".join(
            f"{key}={value}"
            for key, value in sorted(_without_token(request))
            if key in ("image_ids", "ids", "fields")
        )
        fault = self.faults.decide(service, f"{request.path}?{asked}", image_id, tile)
        if fault is not None:
            self.stats.faults[service][fault] += 1
            if image_id is not None:
                self.stats.faults_by_image[image_id].append(fault)
        return fault

    async def _answer(
        self, service: str, request: web.Request, handler: Handler, fault: Fault | None
    ) -> web.StreamResponse:
        await asyncio.sleep(self.latency)
        if fault is Fault.SLOW:
            await asyncio.sleep(self.faults.slow)
        elif fault is not None:
            return await self._commit(fault, request, handler)
        response = await handler(request)
        if service == "images" and response.status == 200:
            self.stats.images_served[int(request.match_info["id"])] += 1
            self.stats.image_bytes += len(_body(response))
        return response

    async def _commit(
        self, fault: Fault, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        match fault:
            case Fault.RESET:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case Fault.CUT_OFF | Fault.STALL:
                return await self._send_half(fault, request, await handler(request))
            case Fault.TRUNCATED:
                body = _body(await handler(request))
                return web.Response(body=body[: len(body) // 2])
            case Fault.MALFORMED:
                body = _body(await handler(request))
                return web.Response(body=bytes(255 - byte for byte in body[:4096]) + body[4096:])
            case _ if fault in TILE_CHANGES:
                tile = _tile_of(request)
                images = self.world.images_in(tile)
                return web.Response(body=encode_tile(tile, images, TILE_CHANGES[fault]))
            case Fault.OUT_OF_MEMORY | Fault.TIMED_OUT:
                query = await _query(request)
                is_full = fault is Fault.OUT_OF_MEMORY
                body = overpass.out_of_memory(query) if is_full else overpass.timed_out(query)
                return web.Response(body=body, content_type="application/json")
            case Fault.BLOCKED:
                # Like the real one on another host, and with the whole URL in it
                target = f"http://localhost:{self.port}/login/?next={quote(str(request.url), '')}"
                return web.Response(status=302, headers={"Location": target})
            case Fault.REDIRECT_TO_FILE:
                return web.Response(status=302, headers={"Location": "file:///etc/hostname"})
            case Fault.REDIRECT_TO_HOST:
                elsewhere = f"http://localhost:{self.port}/elsewhere"
                return web.Response(status=302, headers={"Location": elsewhere})
            case _:
                response = fault_answer(fault, self.faults.retry_after)
                if response.status == 429 and request.path.startswith("/api/"):
                    self.overpass_limits.refuse(request.remote or "")
                return response

    async def _send_half(
        self, fault: Fault, request: web.Request, whole: web.StreamResponse
    ) -> web.StreamResponse:
        """Announce the whole body, send half of it, and then hang up or fall silent."""
        body = _body(whole)
        half = web.StreamResponse(status=whole.status, headers={"Content-Type": whole.content_type})
        half.content_length = max(len(body), 2)
        await half.prepare(request)
        await half.write(body[: len(body) // 2])
        if fault is Fault.STALL:
            await asyncio.sleep(self.faults.stall)
        if request.transport is not None:
            request.transport.close()
        return half

    # Tiles

    async def _tile(self, request: web.Request) -> web.Response:
        """A tile; the token counts in the query alone (mapillary/mapillary-python-sdk#124)."""
        token = request.query.get("access_token", "")
        if not token:
            return web.Response(status=403, text="Forbidden")
        if not self._accepts(token):
            return web.Response(status=401, text="Unauthorized")
        z, x, y = tile = _tile_of(request)
        self.stats.tiles_asked[f"{z}/{x}/{y}"] += 1
        if z != ZOOM:
            return web.Response(status=404, text=f"The sandbox has tiles of zoom {ZOOM} only.")
        is_computed = request.match_info["computed"]
        images_in = self.world.corrected_images_in if is_computed else self.world.images_in
        body = self.world.recorded_tiles.get(tile)
        if body is None and (images := images_in(tile)):
            body = encode_tile(tile, images)
        if body is not None:
            return web.Response(body=body, content_type="application/x-protobuf")
        # All ways in which a tile without images was seen, by its place
        match (x + y) % 3:
            case 0:
                return web.Response(content_type="application/x-protobuf")
            case 1:
                return web.Response(
                    body=encode_tile(tile, []), content_type="application/x-protobuf"
                )
            case _:
                return web.Response(status=204)

    # The graph

    async def _graph_images(self, request: web.Request) -> web.Response:
        """`/images?image_ids=…`: a list, unknown ids left out."""
        if refusal := self._refusal(request):
            return refusal
        ids = request.query.get("image_ids", "").split(",")
        if len(ids) > MOST_IDS:
            return graph_error(400, 100, f"Too many image ids: {len(ids)}, limit {MOST_IDS}")
        found = [image for id in ids if (image := self._known(id))]
        if error := self._batch_error(ids):
            return error
        # In any order, so in another one than that of the question
        return json({"data": [self._entity(image, request) for image in reversed(found)]})

    async def _graph_image(self, request: web.Request) -> web.Response:
        """`/<image id>`"""
        if refusal := self._refusal(request):
            return refusal
        id = request.match_info["id"]
        if error := self._batch_error([id]):
            return error
        if image := self._known(id):
            return json(self._entity(image, request))
        message = (
            f"Unsupported get request. Object with ID '{id}' does not exist, cannot be loaded due "
            "to missing permissions, or does not support this operation"
        )
        return graph_error(400, 100, message, error_subcode=33)

    def _batch_error(self, ids: Collection[str]) -> web.Response | None:
        """Return the error of a whole batch that some of its ids cause, always."""
        if self.faults.failing_ids.intersection(int(id) for id in ids if id.isdecimal()):
            return fault_answer(Fault.SERVER_ERROR)
        if self.faults.most_ids is not None and len(ids) > self.faults.most_ids:
            return fault_answer(Fault.UNKNOWN_ERROR)
        return None

    def _known(self, id: str) -> StreetImage | None:
        if not id.isdecimal():
            return None
        self.stats.graph_ids_asked[int(id)] += 1
        image = self.world.images.get(int(id))
        return None if image is None or self.faults.is_gone(image.id) else image

    def _entity(self, image: StreetImage, request: web.Request) -> dict[str, Any]:
        """Return the fields asked for; like the graph, `id` is always among them."""
        fields = {
            "captured_at": image.captured_at,
            "compass_angle": image.compass_angle,
            "geometry": _point(image),
            "is_pano": image.is_pano,
            "sequence": image.sequence_id,
            "creator": {"username": image.creator_username, "id": str(image.creator_id)},
            "width": image.width,
            "height": image.height,
        }
        if image.is_reconstructed:
            corrected = image.corrected()
            fields["computed_compass_angle"] = corrected.compass_angle
            fields["computed_geometry"] = _point(corrected)
        fields |= {f"thumb_{size}_url": self._link(image, size) for size in IMAGE_SIZES}
        asked = request.query.get("fields", "id").split(",")
        return {name: fields[name] for name in asked if name in fields} | {"id": str(image.id)}

    def _link(self, image: StreetImage, size: str) -> str:
        expires = f"{int(time.time() + self.link_lifetime):X}"
        signature = _signature(image.id, size, expires)
        return f"{self.url}/images/files/{image.id}_{size}.jpg?oe={expires}&oh={signature}"

    def _accepts(self, token: str) -> bool:
        return token in self.tokens if self.tokens else token.startswith("MLY|sandbox")

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Return the graph's answer to a token that is absent or unknown, as observed."""
        header = request.headers.get("Authorization", "")
        in_query = "access_token" in request.query
        token = request.query.get("access_token") or header.removeprefix("OAuth ")
        if not token:
            return graph_error(500, 190, "Invalid OAuth 2.0 Access Token")
        if self._accepts(token):
            return None
        message = "Error validating application" if "|" in token else "Failed to decode"
        return graph_error(400 if in_query else 401, 190, message, type="OAuthException")

    # Image files

    async def _image_file(self, request: web.Request) -> web.StreamResponse:
        image_id, size = int(request.match_info["id"]), request.match_info["size"]
        expires, signature = request.query.get("oe", ""), request.query.get("oh", "")
        if signature != _signature(image_id, size, expires):
            return web.Response(status=403, text="Bad URL hash")
        if int(expires, 16) < time.time():
            return web.Response(status=403, text="URL signature expired")
        image = self.world.images.get(image_id)
        if image is None or self.faults.is_gone(image_id):
            return web.Response(status=404, text="Not Found")
        return web.Response(body=await self._picture(image, size), content_type="image/jpeg")

    async def _picture(self, image: StreetImage, size: str) -> bytes:
        key = (image.id, size)
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return self._pictures[key]
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._drawing, self.world.picture, image, size)
        self._pictures[key] = body
        if len(self._pictures) > _PICTURES_KEPT:
            self._pictures.popitem(last=False)
        return body

    # Overpass

    async def _overpass(self, request: web.Request) -> web.Response:
        if not names_its_maker(request.headers.get("User-Agent", "")):
            return html(406, "Not Acceptable")
        address = request.remote or ""
        try:
            with self.overpass_limits.query(address):
                query = await _query(request)
                await asyncio.sleep(self.overpass_seconds)
                if overpass.memory_of(query) < self.overpass_memory:
                    body = overpass.out_of_memory(query)
                else:
                    body = overpass.answer(query, self.world)
        except BannedError:
            # Those who were banned saw their connections refused.
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        except TooManyQueriesError:
            reason = "rate_limited. Please check /api/status for the quota of your IP address."
            return overpass_error(429, reason)
        except overpass.QueryError as error:
            return web.Response(status=400, text=f"Error: {error}")
        return web.Response(body=body, content_type="application/json")

    async def _overpass_status(self, request: web.Request) -> web.Response:
        if not names_its_maker(request.headers.get("User-Agent", "")):
            return html(406, "Not Acceptable")
        left = self.overpass_limits.seconds_left(request.remote or "")
        return web.Response(text=overpass.status(datetime.now(UTC), left))

    # Nominatim

    async def _nominatim(self, request: web.Request) -> web.Response:
        if not names_its_maker(request.headers.get("User-Agent", "")):
            return web.Response(status=403, text=nominatim.BLOCKED, content_type="text/html")
        if not self.nominatim_limits.serves(request.remote or ""):
            return web.Response(
                status=429, text=nominatim.TOO_MANY_REQUESTS, content_type="text/html"
            )
        try:
            found = nominatim.answer(request.match_info["kind"], request.query, self.world)
        except nominatim.ParameterError as error:
            return json({"error": {"code": 400, "message": str(error)}}, 400)
        return json(found)

    # The sandbox itself

    async def _stats(self, _: web.Request) -> web.Response:
        return json({name: value for name, value in vars(self.stats).items() if name != "log"})

    async def _elsewhere(self, request: web.Request) -> web.Response:
        """Where redirects lead that nobody is to follow."""
        self.stats.redirects_followed += 1
        if _token_places(request) or "MLY" in request.query_string:
            self.stats.token_leaks += 1
        return web.Response(text=LOGIN_PAGE, content_type="text/html")


def _point(image: StreetImage) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [image.lon, image.lat]}


def _body(response: web.StreamResponse) -> bytes:
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response.body


def _tile_of(request: web.Request) -> Tile:
    z, x, y = (int(request.match_info[name]) for name in "zxy")
    return z, x, y


async def _query(request: web.Request) -> str:
    """Return the text of an Overpass query."""
    parameters = await request.post() if request.method == "POST" else request.query
    return str(parameters.get("data", ""))


def _without_token(request: web.Request) -> list[tuple[str, str]]:
    return [(key, value) for key, value in request.query.items() if key != "access_token"]


def _token_places(request: web.Request) -> list[str]:
    """Return where a request carries a token."""
    return ["header"] * ("Authorization" in request.headers) + ["query"] * (
        "access_token" in request.query
    )


def _signature(image_id: int, size: str, expires: str) -> str:
    text = f"{image_id}/{size}/{expires}".encode()
    return hmac.new(_SECRET, text, hashlib.sha256).hexdigest()[:32]
