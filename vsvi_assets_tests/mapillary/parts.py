"""Small worlds to download, and clients that lose no time over faults."""

import http.server
import io
import random
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from vsvi_assets.files import DiskGuard
from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.errors import AddressBlockedError
from vsvi_assets.mapillary.pacing import TileGate, TileState
from vsvi_assets.photographs.downloads import SequenceJob, SequenceResult, download_sequences
from vsvi_assets.photographs.sidecar import SIDECAR_NAME
from vsvi_assets.sandbox import TOKEN, Sandbox, StreetImage, World
from vsvi_assets.sandbox.vector_tiles import TileMessage
from vsvi_assets.settings import ServiceAddresses

LON, LAT = 4.8952, 52.3702
FIRST_ID = 1_000_000_000_000_001
NO_GUARD_BYTES = 1
Answer = tuple[int, dict[str, str], bytes]


@cache
def jpeg(seed: int, width: int = 24, height: int = 16) -> bytes:
    """Return a small picture, another one for each seed."""
    colours = random.Random(seed).randbytes(width * height * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), colours).save(file, "JPEG")
    return file.getvalue()


def street_images(count: int, per_sequence: int = 20) -> list[StreetImage]:
    """Return images along one place, in sequences of `per_sequence`."""
    return [
        StreetImage(
            id=FIRST_ID + number,
            lon=LON,
            lat=LAT,
            sequence_id=f"-sequence_{number // per_sequence:04d}",
            creator_username=f"walker{number % 3}",
        )
        for number in range(count)
    ]


def world_of(images: Collection[StreetImage]) -> World:
    """Return a world of these images, each with the picture of its id."""
    world = World(picture=lambda image, size: jpeg(image.id))
    world.add_images(images)
    return world


def jobs_of(images: Collection[StreetImage]) -> list[SequenceJob]:
    """Return the jobs to download all of these images."""
    by_sequence: dict[str, list[StreetImage]] = {}
    for image in images:
        by_sequence.setdefault(image.sequence_id, []).append(image)
    return [SequenceJob(sequence_id, wanted) for sequence_id, wanted in by_sequence.items()]


class OpenGate:
    """A gate that lets every tile request through, until the first answer that shows a block."""

    def __init__(self) -> None:
        self.turns = 0
        self.block: AddressBlockedError | None = None

    def wait_turn(self, stop: threading.Event) -> None:
        if self.block:
            raise self.block
        self.turns += 1

    def blocked(self, reason: str) -> AddressBlockedError:
        now = datetime.now(UTC)
        self.block = AddressBlockedError(now, now + timedelta(hours=24), reason)
        return self.block

    def answered(self) -> None:
        pass

    def state(self) -> TileState:
        return TileState(per_minute=60_000, per_day=50_000, left_today=50_000 - self.turns)


def services_at(url: str, token: str = TOKEN) -> ServiceAddresses:
    """Return the addresses of services that are all at one URL."""
    return ServiceAddresses(
        "sandbox",
        tiles_url=url,
        graph_url=url,
        overpass_url=f"{url}/api",
        nominatim_url=f"{url}/nominatim",
        tiles_per_minute=60_000,
        user_agent="vsvi-assets/0 (+mailto:someone@example.org)",
        token=lambda: token,
    )


def client_of(
    sandbox: Sandbox,
    *,
    token: str = TOKEN,
    tile_gate: TileGate | None = None,
    num_retries: int = 8,
    backoff: float = 0.01,
    timeout: float = 30.0,
) -> Mapillary:
    """Return a client of the sandbox that waits hundredths of seconds between attempts."""
    return Mapillary(
        services_at(sandbox.url, token),
        tile_gate=tile_gate or OpenGate(),
        num_retries=num_retries,
        backoff=backoff,
        timeout=timeout,
    )


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
    """Return a client of services that are all at one URL."""
    return Mapillary(
        services_at(url, token), tile_gate=OpenGate(), num_retries=num_retries, backoff=0.01
    )


def download(
    client: Mapillary,
    images: Collection[StreetImage],
    seqdir: Path,
    **options: Any,
) -> dict[str, SequenceResult]:
    """Download all of these images; return the results by sequence."""
    results = download_sequences(
        client,
        jobs_of(images),
        seqdir,
        **{"size": "original", "services": "mapillary"} | options,
        guard=DiskGuard(seqdir, NO_GUARD_BYTES),
    )
    return {result.sequence_id: result for result in results}


def path_of(seqdir: Path, image: StreetImage) -> Path:
    """Return where an image belongs."""
    return seqdir / image.sequence_id / f"{image.id}.jpg"


def not_whole(seqdir: Path, images: Sequence[StreetImage]) -> list[int]:
    """Return the ids of the images that are not on disk, byte by byte as served."""
    paths = {image.id: path_of(seqdir, image) for image in images}
    return [id for id, path in paths.items() if not path.exists() or path.read_bytes() != jpeg(id)]


def leftovers(seqdir: Path) -> list[Path]:
    """Return the files that are neither images nor sidecars."""
    return [
        path
        for path in seqdir.rglob("*")
        if path.is_file() and path.suffix != ".jpg" and path.name != SIDECAR_NAME
    ]


FIELD_OF_VALUE = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}


def tile_of(images: list[dict[str, Any]], *, layer: str = "image", at: Any = None) -> bytes:
    """Encode images of these properties, at cells (x, y) of a grid of 4096, y downwards."""
    message = TileMessage()
    points = message.layers.add(name=layer, version=2, extent=4096)
    keys: dict[str, int] = {}
    cells = at or [(number % 4096, number // 4096) for number in range(len(images))]
    for (x, y), properties in zip(cells, images, strict=True):
        # MoveTo one point, whose coordinates are zigzag encoded.
        geometry = [9, *(2 * axis if axis >= 0 else -2 * axis - 1 for axis in (x, y))]
        feature = points.features.add(type=TileMessage.Point, geometry=geometry)
        for name, value in properties.items():
            feature.tags.extend([keys.setdefault(name, len(keys)), len(points.values)])
            points.values.add(**{FIELD_OF_VALUE[type(value)]: value})
    points.keys.extend(keys)
    return message.SerializeToString()
