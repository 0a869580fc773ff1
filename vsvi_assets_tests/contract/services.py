"""The services of a contract test: each question is asked once, within a budget, and kept.

Plain requests, and nothing of the project's own client: what both sides of a test share, no
test can find wrong.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import mapbox_vector_tile
import mercantile
import pytest
import requests
from google.protobuf.message import DecodeError

BUDGET = {"tiles": 6, "graph": 12, "images": 3, "overpass": 2, "nominatim": 2}
"""Requests of a whole session, which no live run exceeds."""

OTHER_TOKEN = "MLY|1234567890123456|0123456789abcdef0123456789abcdef"
UNKNOWN_ID = 1
RELATION = 324431
"""Delft, the Netherlands, in OpenStreetMap."""

IMAGE_FIELDS = "id,captured_at,sequence,creator,thumb_256_url,thumb_original_url"


@dataclass(frozen=True)
class Answer:
    """What came back; `status` is 0 and `body` says why where nothing did."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def is_html(self) -> bool:
        content_type = self.headers.get("Content-Type", "")
        return content_type.startswith("text/html") or self.body.lstrip()[:1] == b"<"

    def json(self) -> Any:
        return json.loads(self.body)

    def error_code(self) -> int | None:
        """Return the Graph API's error code; None where the answer has none."""
        try:
            return int(self.json()["error"]["code"])
        except (ValueError, TypeError, KeyError):
            return None

    def data(self) -> list[dict[str, Any]]:
        """Return the list in an answer of `/images`; none where it has none."""
        try:
            return list(self.json()["data"])
        except (ValueError, TypeError, KeyError):
            return []

    def layers(self) -> dict[str, Any]:
        """Return the layers of a vector tile; none where it is no tile."""
        try:
            return dict(mapbox_vector_tile.decode(self.body)) if self.status == 200 else {}
        except DecodeError:
            return {}


@dataclass
class Services:
    """Mapillary's servers, Overpass and Nominatim, wherever they are.

    Attributes
    ----------
    tile, empty_tile
        One with images, and one in which there are hardly any.
    gap
        Seconds between two requests.
    made
        Requests so far, by service.
    is_blocked
        Whether the tile server has blocked this address; it is then not asked any further.
    """

    tiles_url: str
    graph_url: str
    overpass_url: str
    nominatim_url: str
    token: str = field(repr=False)
    user_agent: str
    tile: mercantile.Tile
    empty_tile: mercantile.Tile
    is_live: bool
    gap: float = 0.0
    made: Counter[str] = field(default_factory=Counter)
    is_blocked: bool = False

    # Tiles

    @cached_property
    def tile_by_query(self) -> Answer:
        return self._tile(self.tile, in_query=self.token)

    @cached_property
    def tile_by_header(self) -> Answer:
        return self._tile(self.tile, in_header=self.token)

    @cached_property
    def tile_without_token(self) -> Answer:
        return self._tile(self.tile)

    @cached_property
    def tile_by_other_token(self) -> Answer:
        return self._tile(self.tile, in_query=OTHER_TOKEN)

    @cached_property
    def tile_without_images(self) -> Answer:
        return self._tile(self.empty_tile, in_query=self.token)

    @cached_property
    def tile_corrected(self) -> Answer:
        return self._tile(self.tile, in_query=self.token, tile_set="mly1_computed_public")

    @cached_property
    def images(self) -> dict[int, dict[str, Any]]:
        """The images of the tile: their properties by id."""
        layers = self.tile_by_query.layers()
        if "image" not in layers:
            pytest.skip("no tile came by which images could be asked for")
        features = layers["image"]["features"]
        return {each["properties"]["id"]: each["properties"] for each in features}

    # The graph

    @cached_property
    def fifty_images(self) -> Answer:
        return self._graph_images(self._some_ids(50), IMAGE_FIELDS)

    @cached_property
    def headings_of_fifty_images(self) -> Answer:
        return self._graph_images(self._some_ids(50), "id,computed_compass_angle")

    @cached_property
    def two_hundred_images(self) -> Answer:
        return self._graph_images(self._some_ids(200), "id")

    @cached_property
    def images_and_an_unknown_one(self) -> Answer:
        return self._graph_images([*self._some_ids(2), UNKNOWN_ID], "id")

    @cached_property
    def images_without_token(self) -> Answer:
        return self._graph_images(self._some_ids(1), "id", token=None)

    @cached_property
    def images_by_other_token(self) -> Answer:
        return self._graph_images(self._some_ids(1), "id", token=OTHER_TOKEN)

    @cached_property
    def one_image(self) -> Answer:
        [image_id] = self._some_ids(1)
        url = f"{self.graph_url}/{image_id}?fields=id,captured_at"
        return self._ask("graph", url, headers=_authorization(self.token))

    @cached_property
    def unknown_image(self) -> Answer:
        url = f"{self.graph_url}/{UNKNOWN_ID}?fields=id"
        return self._ask("graph", url, headers=_authorization(self.token))

    # Image files

    @cached_property
    def link(self) -> str:
        """A link to an image, 256 pixels wide."""
        links = [image.get("thumb_256_url") for image in self.fifty_images.data()]
        if not links or not links[0]:
            pytest.skip("no link came that could be tried")
        return str(links[0])

    @cached_property
    def image_file(self) -> Answer:
        return self._ask("images", self.link)

    @cached_property
    def image_file_too_late(self) -> Answer:
        """What the same link gives as if it had expired yesterday."""
        yesterday = f"{int(time.time()) - 86_400:X}"
        return self._ask("images", re.sub(r"\boe=[0-9A-Fa-f]+", f"oe={yesterday}", self.link))

    def link_expires_in(self) -> float | None:
        """Return the seconds until the link expires; None where it does not say."""
        [expires] = parse_qs(urlsplit(self.link).query).get("oe", [""])
        return int(expires, 16) - time.time() if re.fullmatch(r"[0-9A-Fa-f]+", expires) else None

    # Overpass

    @cached_property
    def streets(self) -> Answer:
        return self._overpass(self.user_agent)

    @cached_property
    def streets_by_stock_agent(self) -> Answer:
        _ = self.streets  # first, since a refusal asks for a pause
        return self._overpass(requests.utils.default_user_agent())

    # Nominatim: stock User-Agents are tried on the sandbox alone, since they may block an address

    @cached_property
    def place_by_name(self) -> Answer:
        query = "format=json&polygon_geojson=1&dedupe=0&limit=50&q=Delft%2C+Netherlands"
        return self._nominatim(f"search?{query}")

    @cached_property
    def place_by_id(self) -> Answer:
        time.sleep(1)  # at most one request per second
        query = f"format=json&polygon_geojson=1&osm_ids=R{RELATION},R1"
        return self._nominatim(f"lookup?{query}")

    # Requests

    def ask_all(self) -> None:
        """Ask every question that was not asked yet."""
        for name, question in vars(Services).items():
            if isinstance(question, cached_property):
                getattr(self, name)

    def seen(self, answer: Answer) -> str:
        """Describe an answer in a line, without the token."""
        start = answer.body[:100].decode("utf-8", "replace")
        target = f" to {answer.headers['Location']}" if "Location" in answer.headers else ""
        kind = answer.headers.get("Content-Type", "no content type")
        text = f"{answer.status}{target}, {kind}, {len(answer.body):,} bytes: {start!r}"
        return self.redacted(text)

    def redacted(self, text: str) -> str:
        """Return a text without the token, raw or percent-encoded (once or twice)."""
        for secret in (self.token, *_encodings(self.token)):
            text = text.replace(secret, "<token>")
        return text

    def _some_ids(self, count: int) -> list[int]:
        return sorted(self.images)[:count]

    def _tile(
        self,
        tile: mercantile.Tile,
        *,
        in_query: str | None = None,
        in_header: str | None = None,
        tile_set: str = "mly1_public",
    ) -> Answer:
        url = f"{self.tiles_url}/maps/vtp/{tile_set}/2/{tile.z}/{tile.x}/{tile.y}"
        query = f"?access_token={quote(in_query, safe='')}" if in_query else ""
        if not self.is_blocked:
            answer = self._ask("tiles", url + query, headers=_authorization(in_header))
            is_page = answer.status == 200 and answer.is_html
            self.is_blocked = 300 <= answer.status < 400 or is_page
        if self.is_blocked:
            pytest.skip("the tile server has blocked this address: try again after a day")
        return answer

    def _graph_images(self, ids: list[int], fields: str, token: str | None = "") -> Answer:
        url = f"{self.graph_url}/images?image_ids={','.join(map(str, ids))}&fields={fields}"
        headers = _authorization(self.token if token == "" else token)
        return self._ask("graph", url, headers=headers)

    def _overpass(self, user_agent: str) -> Answer:
        bounds = mercantile.bounds(mercantile.tile(*self._middle(), 17))
        box = f"{bounds.south},{bounds.west},{bounds.north},{bounds.east}"
        query = f'[out:json][timeout:25];way["highway"]({box});(._;>;);out;'
        url = f"{self.overpass_url}/interpreter?data={quote(query)}"
        return self._ask("overpass", url, headers={"User-Agent": user_agent}, timeout=60)

    def _nominatim(self, question: str) -> Answer:
        return self._ask("nominatim", f"{self.nominatim_url}/{question}")

    def _middle(self) -> tuple[float, float]:
        bounds = mercantile.bounds(self.tile)
        return (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2

    def _ask(
        self, service: str, url: str, headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> Answer:
        assert self.made[service] < BUDGET[service], f"the budget for {service} is used up"
        if self.made.total():
            time.sleep(self.gap)
        self.made[service] += 1
        try:
            answer = requests.get(
                url,
                headers={"User-Agent": self.user_agent, **(headers or {})},
                auth=lambda request: request,  # or requests would look into ~/.netrc
                allow_redirects=False,
                timeout=timeout,
            )
        except requests.RequestException as error:
            return Answer(0, {}, type(error).__name__.encode())
        return Answer(answer.status_code, answer.headers, answer.content)


def _authorization(token: str | None) -> dict[str, str]:
    return {"Authorization": f"OAuth {token}"} if token else {}


def _encodings(token: str) -> list[str]:
    once = quote(token, safe="")
    return [once, once.lower(), quote(once, safe="")]
