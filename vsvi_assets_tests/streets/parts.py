"""Parts shared by the tests of streets: small networks, and servers that stand in for Overpass."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs

import networkx as nx
import shapely

from vsvi_assets.sandbox import Sandbox, World
from vsvi_assets.streets.overpass import Overpass

BOX = (4.90, 52.36, 4.91, 52.37)

Line = list[tuple[float, float]]


def line_network(*lines: Line, **data: object) -> nx.MultiDiGraph:
    """Make one two-way street of each line, numbered from 1."""
    network = nx.MultiDiGraph(crs="EPSG:4326")
    for osmid, line in enumerate(lines, 1):
        ends = [(osmid, end) for end in (0, -1)]
        for node in ends:
            network.add_node(node, x=line[node[1]][0], y=line[node[1]][1])
        geometry = shapely.LineString(line)
        network.add_edge(*ends, osmid=osmid, geometry=geometry, **data)
        network.add_edge(*ends[::-1], osmid=osmid, geometry=geometry.reverse(), **data)
    return network


def overpass_at(
    url: str,
    *,
    user_agent: str = "vsvi-assets/0 (+https://example.org)",
    memory: int | None = None,
    area: int = 2500,
    pause: float = 0.01,
) -> Overpass:
    """Return a server that nobody else asks, with pauses of an instant."""
    return Overpass(
        url, user_agent=user_agent, turn=nullcontext, memory=memory, area=area, pause=pause
    )


def no_picture(*_: object) -> bytes:
    raise AssertionError("no image was to be asked for")


@contextmanager
def overpass_with(*lines: Line, **tags: str) -> Iterator[Sandbox]:
    """Serve an Overpass that knows these streets."""
    world = World(picture=no_picture)
    for line in lines:
        world.add_street(line, **{"highway": "residential", **tags})
    with Sandbox(world) as sandbox:
        yield sandbox


@dataclass
class Request:
    """A request that `Recorder` got."""

    path: str
    headers: dict[str, str]
    query: str
    time: float


class Recorder(BaseHTTPRequestHandler):
    """Answers every query with one and the same answer."""

    requests: list[Request]
    status: int
    body: bytes

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.requests.append(
            Request(
                self.path,
                {key.lower(): value for key, value in self.headers.items()},
                parse_qs(body)["data"][0],
                time.monotonic(),
            )
        )
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


@contextmanager
def recorder(status: int = 200, body: bytes = b'{"elements": []}') -> Iterator[int]:
    """Serve `Recorder` on loopback; give its port."""
    Recorder.requests = []
    Recorder.status, Recorder.body = status, body
    with HTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
