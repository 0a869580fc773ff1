"""The sandbox over real HTTP: answers as recorded from the real services, and faults."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import mapbox_vector_tile
import mercantile
import osmnx
import pytest
import requests

from vsvi_assets.sandbox import (
    TOKEN,
    Fault,
    Faults,
    Sandbox,
    SandboxError,
    StreetImage,
    World,
    recorded_world,
)
from vsvi_assets.sandbox.faults import TILE_CHANGES
from vsvi_assets.sandbox.vector_tiles import TileMessage, decode_images, encode_tile
from vsvi_assets_tests.sandbox import large_tile

AUTHORIZATION = {"Authorization": f"OAuth {TOKEN}"}
TILE = (14, 8429, 5372)
IDS = [101, 102, 103]


def small_world() -> World:
    """Three images along two streets that cross, whose pictures are their own ids."""
    world = World(picture=lambda image, size: f"{image.id} {size} ".encode() * 1000)
    world.add_images(
        StreetImage(id, 5.2140 + id * 1e-6, 52.5290, "sequence", captured_at=id) for id in IDS
    )
    world.add_street([(5.2130, 52.5290), (5.2140, 52.5290), (5.2150, 52.5290)], highway="primary")
    world.add_street([(5.2140, 52.5280), (5.2140, 52.5290)], highway="footway")
    return world


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(small_world()) as sandbox:
        yield sandbox


def tile_url(sandbox: Sandbox, tile: tuple[int, int, int] = TILE) -> str:
    z, x, y = tile
    return f"{sandbox.url}/maps/vtp/mly1_public/2/{z}/{x}/{y}"


def links(sandbox: Sandbox, ids: list[int] | None = None) -> dict[int, str]:
    answer = requests.get(
        f"{sandbox.url}/images",
        params={"image_ids": ",".join(map(str, ids or IDS)), "fields": "id,thumb_original_url"},
        headers=AUTHORIZATION,
        timeout=10,
    )
    answer.raise_for_status()
    return {int(image["id"]): image["thumb_original_url"] for image in answer.json()["data"]}


def graph_error(answer: requests.Response) -> tuple[int, int, int | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error.get("error_subcode")


def get(url: str, **parameters: Any) -> requests.Response:
    parameters.setdefault("headers", AUTHORIZATION)
    return requests.get(url, timeout=10, **parameters)


def tile(sandbox: Sandbox, tile: tuple[int, int, int] = TILE) -> requests.Response:
    """Fetch a tile as the tile server wants to be asked."""
    return get(
        tile_url(sandbox, tile), headers={}, params={"access_token": TOKEN}, allow_redirects=False
    )


def test_a_tile_lists_the_images(sandbox: Sandbox) -> None:
    layers = mapbox_vector_tile.decode(tile(sandbox).content)
    assert [feature["properties"]["id"] for feature in layers["image"]["features"]] == IDS


def test_a_tile_without_images_comes_in_three_ways(sandbox: Sandbox) -> None:
    empty = [tile(sandbox, (14, 1, y)) for y in range(3)]
    assert sorted(answer.status_code for answer in empty) == [200, 200, 204]
    assert sorted(bool(answer.content) for answer in empty) == [False, False, True]
    assert all("image" not in mapbox_vector_tile.decode(answer.content) for answer in empty)


def test_too_many_tiles_block_the_address_for_a_while(sandbox: Sandbox) -> None:
    sandbox.block.after, sandbox.block.lasts = 3, 0.6
    assert [tile(sandbox).status_code for _ in range(4)] == [200, 200, 200, 302]
    assert sandbox.block.is_blocked()
    sandbox.block.after = None
    time.sleep(0.4)
    assert tile(sandbox, (14, 1, 1)).status_code == 302  # which prolongs the block
    time.sleep(0.4)
    refused = tile(sandbox)
    assert refused.status_code == 302
    assert set(links(sandbox)) == set(IDS)  # the graph goes on working
    time.sleep(0.7)
    assert tile(sandbox).status_code == 200
    sandbox.block.block()
    assert tile(sandbox).status_code == 302
    sandbox.block.lift()
    assert tile(sandbox).status_code == 200
    login = get(refused.headers["Location"], headers={})
    assert (login.status_code, len(login.content)) == (200, 58)
    assert login.headers["Content-Type"].startswith("text/html")
    assert sandbox.stats.redirects_followed == sandbox.stats.token_leaks == 1


def test_the_block_goes_by_pace(sandbox: Sandbox) -> None:
    sandbox.block.after, sandbox.block.within = 2, 0.3
    for _ in range(4):
        assert tile(sandbox).status_code == 200
        time.sleep(0.16)
    assert [tile(sandbox).status_code for _ in range(2)] == [200, 302]


def test_every_request_is_in_the_log(sandbox: Sandbox) -> None:
    began = time.time()
    tile(sandbox)
    get(links(sandbox)[102], headers={"User-Agent": "me"})
    sandbox.faults.images = {Fault.RESET: 1.0}
    with suppress(requests.ConnectionError):
        get(links(sandbox)[102], headers={})
    [fetched, broken] = sandbox.stats.asked("images")
    assert (fetched.status, fetched.fault, fetched.user_agent) == (200, None, "me")
    assert (broken.status, broken.fault) == (0, Fault.RESET)
    [asked] = sandbox.stats.asked("tiles")
    assert asked.what == "/maps/vtp/mly1_public/2/14/8429/5372"
    assert (asked.status, asked.token_in) == (200, {"query"})
    assert began <= asked.at <= fetched.at <= broken.at <= time.time()
    assert TOKEN not in str(sandbox.stats.log)


OVERPASS = {"User-Agent": "test/1 (test@example.org)"}
QUERY = '[out:json];way["highway"](52.527,5.212,52.531,5.216);out;'


def query(sandbox: Sandbox, text: str = QUERY) -> int:
    """Send a query to Overpass and return the status, 0 where the connection is refused."""
    try:
        return get(
            f"{sandbox.overpass_url}/interpreter", headers=OVERPASS, params={"data": text}
        ).status_code
    except requests.ConnectionError:
        return 0


def test_overpass_serves_one_query_of_an_address_at_a_time(sandbox: Sandbox) -> None:
    sandbox.overpass_seconds, sandbox.overpass_limits.pause = 0.5, 0.5
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lambda _: query(sandbox), range(2))) == [200, 429]
    time.sleep(0.6)
    assert query(sandbox) == 200


def test_overpass_bans_who_ignores_its_pauses(sandbox: Sandbox) -> None:
    sandbox.overpass_limits.pause = 0.4
    sandbox.faults = Faults(overpass={Fault.RATE_LIMITED_BARE: 1.0}, most=1)
    assert query(sandbox) == 429
    status = get(f"{sandbox.overpass_url}/status", headers=OVERPASS).text
    assert "Slot available after: " in status
    time.sleep(0.3)
    assert query(sandbox) == 429  # too early, so the pause begins again
    time.sleep(0.3)
    assert query(sandbox) == 429
    time.sleep(0.5)
    assert query(sandbox) == 200
    status = get(f"{sandbox.overpass_url}/status", headers=OVERPASS).text
    assert status.splitlines()[4] == "1 slots available now."
    sandbox.overpass_limits.refuse("127.0.0.1")
    assert [query(sandbox) for _ in range(3)] == [429, 0, 0]


def test_overpass_runs_out_of_memory_and_of_time(sandbox: Sandbox) -> None:
    def remark(text: str) -> str | None:
        url = f"{sandbox.overpass_url}/interpreter"
        answer = get(url, headers=OVERPASS, params={"data": text}).json()
        assert bool(answer["elements"]) == ("remark" not in answer)
        return answer.get("remark")

    sandbox.overpass_memory = 1 << 30
    assert "Query run out of memory using about 512 MB" in (remark(QUERY) or "")
    assert remark(f"[maxsize:{1 << 30}]{QUERY}") is None
    sandbox.faults.overpass = {Fault.TIMED_OUT: 1.0}
    assert 'Query timed out in "query" at line 1 after 25 seconds' in (
        remark(f"[timeout:25]{QUERY}") or ""
    )


def test_ids_can_fail_for_ever_and_take_others_along(sandbox: Sandbox) -> None:
    def status(ids: str) -> tuple[int, int, int | None] | int:
        answer = get(f"{sandbox.url}/images", params={"image_ids": ids})
        return answer.status_code if answer.ok else graph_error(answer)

    sandbox.faults.failing_ids = frozenset({102})
    assert [status("101,102,103"), status("102"), status("101,103")] == [
        (500, 2, None),
        (500, 2, None),
        200,
    ]
    sandbox.faults = Faults(most_ids=2)
    assert [status("101,102,103"), status("101,102")] == [(500, 1, None), 200]


def test_one_tile_can_be_missing(sandbox: Sandbox) -> None:
    sandbox.faults.by_tile = {"14/8429/5372": Fault.NOT_FOUND}
    assert [tile(sandbox).status_code for _ in range(2)] == [404, 404]
    assert tile(sandbox, (14, 1, 1)).ok
    sandbox.faults.by_tile = {}
    assert tile(sandbox).ok


def test_tiles_can_hold_what_no_column_should(sandbox: Sandbox) -> None:
    def values(fault: Fault, name: str) -> list[object]:
        sandbox.faults.tiles = {fault: 1.0}
        layers = mapbox_vector_tile.decode(tile(sandbox).content)
        return [feature["properties"].get(name) for feature in layers["image"]["features"]]

    assert values(Fault.ODD_COLUMNS, "quality_score") == ["high", 0.5, True]
    assert values(Fault.ODD_TIMES, "captured_at") == [0, -1, 10_000_000_000_000_000]
    assert values(Fault.BROKEN_FEATURES, "sequence_id") == [None, "sequence", "sequence"]
    assert values(Fault.BROKEN_FEATURES, "id") == [101, None, "none"]


def test_images_and_streets_can_be_added_while_it_runs(sandbox: Sandbox) -> None:
    sandbox.world.add_images([StreetImage(104, 5.2141, 52.5291, "another")])
    sandbox.world.remove_image(101)
    layers = mapbox_vector_tile.decode(tile(sandbox).content)
    ids = [feature["properties"]["id"] for feature in layers["image"]["features"]]
    assert ids == [102, 103, 104]
    assert set(links(sandbox, [101, 104])) == {104}


def test_the_graph_leaves_out_or_refuses_unknown_ids(sandbox: Sandbox) -> None:
    assert set(links(sandbox, [101, 999])) == {101}
    assert graph_error(get(f"{sandbox.url}/999")) == (400, 100, 33)
    assert get(f"{sandbox.url}/101", params={"fields": "captured_at"}).json() == {
        "id": "101",
        "captured_at": 101,
    }
    too_many = ",".join(map(str, range(201)))
    answer = get(f"{sandbox.url}/images", params={"image_ids": too_many})
    assert graph_error(answer)[:2] == (400, 100)


def test_tokens_are_refused_as_mapillary_refuses_them(sandbox: Sandbox) -> None:
    url = f"{sandbox.url}/101"
    assert graph_error(get(url, headers={}))[:2] == (500, 190)
    assert graph_error(get(url, headers={"Authorization": "OAuth MLY|other"}))[:2] == (401, 190)
    in_query = get(url, headers={}, params={"access_token": "MLY|other"})
    assert graph_error(in_query)[:2] == (400, 190)
    assert get(url, headers={}, params={"access_token": TOKEN}).ok
    assert get(tile_url(sandbox), headers={}).status_code == 403
    assert get(tile_url(sandbox), params={"access_token": "MLY|other"}).status_code == 401


def test_image_links_hold_until_they_expire(sandbox: Sandbox) -> None:
    link = links(sandbox)[102]
    answer = get(link, headers={})
    assert answer.content == b"102 original " * 1000
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert get(link.replace("102_original", "102_256"), headers={}).status_code == 403
    sandbox.link_lifetime = -1
    assert get(links(sandbox)[102], headers={}).status_code == 403
    assert (sandbox.stats.images_served, sandbox.stats.images_asked) == ({102: 1}, {102: 3})
    assert sandbox.stats.image_bytes == len(answer.content)


def test_tokens_shown_to_the_image_server_are_counted(sandbox: Sandbox) -> None:
    link = links(sandbox)[102]
    get(link, headers={})
    assert sandbox.stats.token_leaks == 0
    get(link)
    get(f"{link}&access_token={TOKEN}", headers={})
    assert get(f"{sandbox.url}/stats").json()["token_leaks"] == sandbox.stats.token_leaks == 2


def test_osmnx_gets_the_streets_without_a_pause(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(osmnx.settings, "overpass_url", sandbox.overpass_url)
    monkeypatch.setattr(osmnx.settings, "use_cache", False)
    monkeypatch.setattr(osmnx.settings, "http_user_agent", OVERPASS["User-Agent"])
    box = (5.212, 52.527, 5.216, 52.531)
    began = time.monotonic()
    everything = osmnx.graph_from_bbox(box, network_type="all", simplify=False)
    driveable = osmnx.graph_from_bbox(box, network_type="drive", simplify=False)
    assert time.monotonic() - began < 5
    assert (len(everything), len(driveable)) == (4, 3)
    assert {data["osmid"] for *_, data in everything.edges(data=True)} == set(sandbox.world.streets)


def test_a_bounding_box_will_do_for_overpass(sandbox: Sandbox) -> None:
    def ways(box: str) -> list[int]:
        query = f'[out:json];way["highway"]({box});(._;>;);out;'
        url = f"{sandbox.overpass_url}/interpreter"
        answer = get(url, headers=OVERPASS, params={"data": query}).json()
        return [element["id"] for element in answer["elements"] if element["type"] == "way"]

    assert ways("52.527,5.212,52.531,5.216") == list(sandbox.world.streets)
    assert ways("52.5275,5.212,52.5285,5.216") == list(sandbox.world.streets)[1:]


ANSWERS = {
    Fault.RATE_LIMITED: (429, b'"code":4'),
    Fault.RATE_LIMITED_DATE: (429, b'"code":4'),
    Fault.RATE_LIMITED_BARE: (429, b'"is_transient":true'),
    Fault.RATE_LIMITED_XML: (429, b"<?xml"),
    Fault.APPLICATION_LIMIT: (400, b'"code":4'),
    Fault.UNKNOWN_ERROR: (500, b'"code":1'),
    Fault.SERVER_ERROR: (500, b'"code":2'),
    Fault.TIMEOUT: (400, b'"code":-2'),
    Fault.UNAVAILABLE: (503, b"<html>"),
    Fault.GATEWAY_TIMEOUT: (504, b"<html>"),
    Fault.TOO_BUSY: (504, b"The server is probably too busy"),
    Fault.NO_DATA: (200, b'{"data":[]}'),
    Fault.OUT_OF_MEMORY: (200, b"run out of memory"),
    Fault.TIMED_OUT: (200, b"timed out"),
    Fault.HTML_PAGE: (200, b"<html>"),
    Fault.EMPTY: (200, b""),
    Fault.NOT_FOUND: (404, b""),
    Fault.EXPIRED: (403, b""),
    Fault.REFUSED_TOKEN: (401, b'"code":190'),
    Fault.BLOCKED: (302, b""),
    Fault.REDIRECT_TO_FILE: (302, b""),
    Fault.REDIRECT_TO_HOST: (302, b""),
    Fault.SLOW: (200, b"102 original"),
    Fault.TRUNCATED: (200, b"102 original"),
    Fault.MALFORMED: (200, b""),
}
BROKEN_OFF = {Fault.RESET, Fault.CUT_OFF, Fault.STALL}


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in TILE_CHANGES])
def test_each_fault_is_what_it_is_called(sandbox: Sandbox, fault: Fault) -> None:
    link = links(sandbox)[102]
    sandbox.faults = Faults(images={fault: 1.0}, slow=0.05)
    if fault in BROKEN_OFF:
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            requests.get(link, timeout=0.3)
    else:
        answer = get(link, headers={}, allow_redirects=False)
        status, part = ANSWERS[fault]
        assert (answer.status_code, part in answer.content) == (status, True)
        assert answer.headers["Content-Length"] == str(len(answer.content))
        assert answer.ok or answer.content != b"102 original " * 1000
    assert sandbox.stats.faults["images"] == {fault: 1}
    assert sandbox.stats.faults_by_image == {102: [fault]}
    assert sandbox.stats.images_served == ({102: 1} if fault is Fault.SLOW else {})
    sandbox.faults.images = {}
    assert get(link, headers={}).content == b"102 original " * 1000


def test_hostile_ids_are_in_the_tile(sandbox: Sandbox) -> None:
    sandbox.faults.tiles = {Fault.HOSTILE_IDS: 1.0}
    layers = mapbox_vector_tile.decode(tile(sandbox).content)
    sequences = [feature["properties"]["sequence_id"] for feature in layers["image"]["features"]]
    assert sequences[:2] == ["../../../../tmp/escaped", "/etc/passwd"]


def test_images_that_are_gone_are_in_the_tiles_but_not_in_the_graph(sandbox: Sandbox) -> None:
    link = links(sandbox)[102]
    sandbox.faults.gone_ids = frozenset({102})
    assert b"\x66" in tile(sandbox).content
    assert set(links(sandbox)) == {101, 103}
    assert get(link, headers={}).status_code == 404


def test_faults_do_not_depend_on_the_order_of_the_threads() -> None:
    def faults_of_each_image(threads: int) -> dict[int, list[str]]:
        world = World(picture=lambda image, size: b"picture")
        world.add_images(StreetImage(id, 5.214, 52.529, "sequence") for id in range(60))
        often = {Fault.SERVER_ERROR: 0.3, Fault.RESET: 0.2}
        faults = Faults(seed=3, images=often, by_image={7: Fault.TRUNCATED})
        with Sandbox(world, faults=faults) as sandbox:
            urls = [url for url in links(sandbox, list(range(60))).values() for _ in range(4)]

            def ask(url: str) -> None:
                with suppress(requests.ConnectionError):
                    requests.get(url, timeout=10)

            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(ask, urls))
            return dict(sandbox.stats.faults_by_image)

    one_by_one = faults_of_each_image(1)
    assert one_by_one == faults_of_each_image(8)
    assert one_by_one[7] == [Fault.TRUNCATED] * 4
    assert 60 < sum(map(len, one_by_one.values())) < 180


def test_faults_of_one_question_can_be_limited() -> None:
    faults = Faults(images={Fault.RESET: 1.0}, most=2)
    decisions = [faults.decide("images", "/1", 1) for _ in range(4)]
    assert decisions == [Fault.RESET, Fault.RESET, None, None]


def test_recorded_files_are_served_byte_for_byte(tmp_path: Path) -> None:
    made = small_world()
    encoded = encode_tile(TILE, made.images_in(TILE))
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles/mly1_public_8429_5372_14").write_bytes(encoded)
    (tmp_path / "one.mvt").write_bytes(encoded)
    (tmp_path / "streets.osm").write_text(
        '<osm><node id="1" lon="5.2130" lat="52.5290"/><node id="2" lon="5.2140" lat="52.5290"/>'
        '<way id="9"><nd ref="1"/><nd ref="2"/><nd ref="3"/><tag k="highway" v="path"/></way></osm>'
    )
    sources = [str(tmp_path / "tiles"), f"{tmp_path}/one.mvt@14/8430/5372"]
    world = recorded_world(sources, osm=tmp_path / "streets.osm")
    assert world.recorded_tiles == {TILE: encoded, (14, 8430, 5372): encoded}
    assert {street.nodes for street in world.streets.values()} == {(1, 2, 3)}
    with Sandbox(world) as sandbox:
        assert tile(sandbox).content == encoded
        assert set(links(sandbox)) == set(IDS)


def test_a_recorded_file_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    (tmp_path / "error.mvt").write_text("<html>oops</html>")
    (tmp_path / "half.mvt.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3half")
    (tmp_path / "plain.mvt").write_bytes(encode_tile(TILE, small_world().images_in(TILE)))
    (tmp_path / "nameless.mvt").write_bytes(
        encode_tile(TILE, small_world().images_in(TILE), [{"sequence_id": None}])
    )
    with pytest.raises(SandboxError, match=r"nothing\.mvt: No such file"):
        recorded_world([f"{tmp_path}/nothing.mvt@14/1/1"])
    with pytest.raises(SandboxError, match="named mly1_public_<x>_<y>_14"):
        recorded_world([str(tmp_path)])
    with pytest.raises(SandboxError, match=r"error\.mvt: no vector tile"):
        recorded_world([f"{tmp_path}/error.mvt@14/1/1"])
    with pytest.raises(SandboxError, match=r"half\.mvt\.gz: "):
        recorded_world([f"{tmp_path}/half.mvt.gz@14/1/1"])
    with pytest.raises(SandboxError, match=r"nameless\.mvt: an image without sequence_id"):
        recorded_world([f"{tmp_path}/nameless.mvt@14/1/1"])
    with pytest.raises(SandboxError, match=r"no \.jpg"):
        recorded_world(jpegs=tmp_path)
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(SandboxError, match=r"broken\.jpg: no picture"):
        recorded_world([f"{tmp_path}/plain.mvt@14/8429/5372"], jpegs=tmp_path)


def test_properties_that_nobody_knows_are_left_alone(tmp_path: Path) -> None:
    changes = TILE_CHANGES[Fault.ODD_COLUMNS][:3]
    encoded = encode_tile(TILE, small_world().images_in(TILE), changes)
    (tmp_path / "new.mvt").write_bytes(encoded)
    world = recorded_world([f"{tmp_path}/new.mvt@14/8429/5372"])
    assert sorted(world.images) == IDS
    assert world.recorded_tiles[TILE] == encoded


def test_a_port_in_use_is_named(sandbox: Sandbox) -> None:
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(SandboxError, match=f"Port {port} of 127.0.0.1 is in use"):
        Sandbox(small_world(), port=port).__enter__()


def test_a_large_tile_is_one_as_the_tile_server_sends_it() -> None:
    """Both sides of the number of images from which on their numbers are longer."""
    count = large_tile._WITH_SHORT_NUMBERS + 2
    encoded = large_tile.large_tile(count)
    message = TileMessage()
    message.ParseFromString(encoded)
    is_as_short_as_can_be = message.SerializeToString() == encoded
    assert is_as_short_as_can_be
    [layer] = message.layers
    assert (layer.name, layer.extent, len(layer.features)) == ("image", 4096, count)
    del layer.features[3:-3]
    images = decode_images(TILE, message.SerializeToString())
    numbers = [0, 1, 2, count - 3, count - 2, count - 1]
    assert [image.id for image in images] == [large_tile.FIRST_ID + 1000 * n for n in numbers]
    assert [image.captured_at for image in images] == [
        large_tile.FIRST_TIME + 1000 * n for n in numbers
    ]
    assert images[0].sequence_id == images[2].sequence_id == "sequence_00000"
    assert not images[0].is_pano
    west, south, east, north = mercantile.bounds(*TILE[1:], TILE[0])
    assert all(west < image.lon < east and south < image.lat < north for image in images)
