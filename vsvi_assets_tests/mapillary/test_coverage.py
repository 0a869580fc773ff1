"""Many tiles: what one of them gets does not keep the others from coming."""

import http.server
import threading
import time
from collections import Counter

import mercantile
import pytest

import vsvi_assets.mapillary.client
from vsvi_assets.mapillary.coverage import TilesFailedError, fetch_tiles
from vsvi_assets.mapillary.errors import AddressBlockedError, TileBudgetError
from vsvi_assets.mapillary.tiles import TileImages, decode_tile
from vsvi_assets.sandbox import Fault, Faults, Sandbox
from vsvi_assets_tests.mapillary.parts import (
    LAT,
    LON,
    Answer,
    OpenGate,
    client_at,
    client_of,
    service,
    street_images,
    world_of,
)

TILE = mercantile.tile(LON, LAT, 14)


def tiles_beside(count: int) -> list[mercantile.Tile]:
    return [mercantile.Tile(TILE.x + number, TILE.y, 14) for number in range(count)]


def key(tile: mercantile.Tile) -> str:
    return f"14/{tile.x}/{tile.y}"


def test_tiles_come_in_parallel_and_one_that_fails_does_not_keep_the_others_back() -> None:
    tiles = tiles_beside(20)
    broken = tiles[3]

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        time.sleep(0.1)
        if f"/{broken.x}/{broken.y}?" in request.path:
            return 503, {}, b"<html>Sorry</html>"
        return 200, {}, b""

    arrived: list[mercantile.Tile] = []
    began = time.monotonic()
    with (
        service(answer) as url,
        pytest.raises(TilesFailedError, match=r"1 tiles .*\n.* 503") as error,
    ):
        arrived.extend(tile for tile, _ in fetch_tiles(client_at(url), iter(tiles)))
    assert set(arrived) == set(tiles) - {broken}
    assert error.value.may_pass
    assert time.monotonic() - began < 1.5


def test_others_are_decoded_while_a_tile_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = tiles_beside(4)
    decoded = threading.Semaphore(0)

    def decode(data: bytes, tile: mercantile.Tile) -> TileImages:
        decoded.release()
        return decode_tile(data, tile)

    monkeypatch.setattr(vsvi_assets.mapillary.client, "decode_tile", decode)
    with service(lambda request: (200, {}, b"")) as url:
        fetched = fetch_tiles(client_at(url), tiles)
        first, _ = next(fetched)
        assert all(decoded.acquire(timeout=5) for _ in tiles)
        assert {first, *(tile for tile, _ in fetched)} == set(tiles)


def test_a_tile_that_is_not_found_is_asked_for_again_while_others_come() -> None:
    tiles = tiles_beside(30)
    passing, lasting = tiles[0], tiles[1]
    times: dict[str, list[float]] = {key(passing): [], key(lasting): []}

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        asked = "/".join(request.path.partition("?")[0].split("/")[-3:])
        seen = times.setdefault(asked, [])
        seen.append(time.monotonic())
        time.sleep(0.02)
        if asked == key(lasting) or (asked == key(passing) and len(seen) < 3):
            return 404, {}, b"Not Found"
        return 200, {}, b""

    arrived: list[mercantile.Tile] = []
    with service(answer) as url, pytest.raises(TilesFailedError) as error:
        arrived.extend(tile for tile, _ in fetch_tiles(client_at(url), tiles, not_found_pause=0.5))
    assert set(arrived) == set(tiles) - {lasting}
    assert arrived[-1] == passing, "the others came meanwhile"
    assert "1 tiles could not be fetched" in str(error.value)
    assert f"tile {key(lasting)}: tile server answered 404, in 3 attempts" in str(error.value)
    assert not error.value.may_pass, "it is left to the next run"
    for asked in (times[key(passing)], times[key(lasting)]):
        assert len(asked) == 3
        assert min(asked[1] - asked[0], asked[2] - asked[1]) > 0.45


def test_a_block_ends_the_fetching_after_what_was_asked_for_already() -> None:
    tiles = tiles_beside(30)
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        with lock:
            counts["asked"] += 1
            number = counts["asked"]
        if number == 10:
            return 302, {"Location": "https://www.mapillary.com/login/"}, b""
        time.sleep(0.2)
        counts["good"] += 1
        return 200, {}, b""

    arrived: list[mercantile.Tile] = []
    with service(answer) as url, pytest.raises(AddressBlockedError):
        arrived.extend(tile for tile, _ in fetch_tiles(client_at(url), iter(tiles)))
    assert counts["asked"] <= 17, "no more than were under way"
    assert len(arrived) == counts["good"]


def test_a_used_up_budget_ends_the_fetching_of_tiles() -> None:
    class Budget(OpenGate):
        def wait_turn(self, stop: threading.Event) -> None:
            super().wait_turn(stop)
            if self.turns > 12:
                raise TileBudgetError("no more")

    arrived: list[mercantile.Tile] = []
    with Sandbox(world_of([])) as sandbox:
        client = client_of(sandbox, tile_gate=Budget())
        with pytest.raises(TileBudgetError):
            arrived.extend(tile for tile, _ in fetch_tiles(client, tiles_beside(30)))
        assert sandbox.stats.requests["tiles"] == len(arrived) == 12


def test_each_tile_is_asked_for_once_where_nothing_goes_wrong() -> None:
    with Sandbox(world_of(street_images(3)), faults=Faults(tiles={Fault.SLOW: 0.2})) as sandbox:
        tables = dict(fetch_tiles(client_of(sandbox), tiles_beside(40)))
        assert len(tables[TILE]) == 3
        assert set(sandbox.stats.tiles_asked.values()) == {1}
