"""The sandbox over real HTTP: answers as recorded from the real services, and faults."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import mapbox_vector_tile
import osmnx
import pytest
import requests

from vsvi_assets.sandbox import (
    TOKEN,
    Fault,
    Faults,
    RecordingError,
    Sandbox,
    StreetImage,
    World,
    recorded_world,
)
from vsvi_assets.sandbox.vector_tiles import encode_tile

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
    return f"{sandbox.tiles_url}/maps/vtp/mly1_public/2/{z}/{x}/{y}"


def links(sandbox: Sandbox, ids: list[int] | None = None) -> dict[int, str]:
    answer = requests.get(
        f"{sandbox.graph_url}/images",
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


def test_a_tile_lists_the_images_and_one_without_images_is_empty(sandbox: Sandbox) -> None:
    layers = mapbox_vector_tile.decode(get(tile_url(sandbox)).content)
    assert [feature["properties"]["id"] for feature in layers["image"]["features"]] == IDS
    empty = get(tile_url(sandbox, (14, 1, 1)))
    assert (empty.status_code, empty.content) == (200, b"")


def test_images_and_streets_can_be_added_while_it_runs(sandbox: Sandbox) -> None:
    sandbox.world.add_images([StreetImage(104, 5.2141, 52.5291, "another")])
    sandbox.world.remove_image(101)
    layers = mapbox_vector_tile.decode(get(tile_url(sandbox)).content)
    ids = [feature["properties"]["id"] for feature in layers["image"]["features"]]
    assert ids == [102, 103, 104]
    assert set(links(sandbox, [101, 104])) == {104}


def test_the_graph_leaves_out_or_refuses_unknown_ids(sandbox: Sandbox) -> None:
    assert set(links(sandbox, [101, 999])) == {101}
    both = get(f"{sandbox.graph_url}/", params={"ids": "101,102", "fields": "sequence"})
    assert both.json() == {
        "101": {"id": "101", "sequence": "sequence"},
        "102": {"id": "102", "sequence": "sequence"},
    }
    unknown = get(f"{sandbox.graph_url}/", params={"ids": "101,999", "fields": "sequence"})
    assert graph_error(unknown) == (400, 100, 33)
    assert graph_error(get(f"{sandbox.graph_url}/999")) == (400, 100, 33)
    assert get(f"{sandbox.graph_url}/101", params={"fields": "captured_at"}).json() == {
        "id": "101",
        "captured_at": 101,
    }
    too_many = ",".join(map(str, range(101)))
    answer = get(f"{sandbox.graph_url}/images", params={"image_ids": too_many})
    assert graph_error(answer)[:2] == (400, 100)


def test_tokens_are_refused_as_mapillary_refuses_them(sandbox: Sandbox) -> None:
    url = f"{sandbox.graph_url}/101"
    assert graph_error(get(url, headers={}))[:2] == (500, 190)
    assert graph_error(get(url, headers={"Authorization": "OAuth MLY|other"}))[:2] == (401, 190)
    in_query = get(url, headers={}, params={"access_token": "MLY|other"})
    assert graph_error(in_query)[:2] == (400, 190)
    assert get(url, headers={}, params={"access_token": TOKEN}).ok
    assert graph_error(get(tile_url(sandbox), headers={}))[:2] == (500, 190)


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
        answer = get(f"{sandbox.overpass_url}/interpreter", params={"data": query}).json()
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
    Fault.HTML_PAGE: (200, b"<html>"),
    Fault.EMPTY: (200, b""),
    Fault.NOT_FOUND: (404, b""),
    Fault.EXPIRED: (403, b""),
    Fault.REFUSED_TOKEN: (401, b'"code":190'),
    Fault.REDIRECT_TO_FILE: (302, b""),
    Fault.REDIRECT_TO_HOST: (302, b""),
    Fault.SLOW: (200, b"102 original"),
    Fault.TRUNCATED: (200, b"102 original"),
    Fault.MALFORMED: (200, b""),
}
BROKEN_OFF = {Fault.RESET, Fault.CUT_OFF, Fault.STALL}


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.HOSTILE_IDS])
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
    layers = mapbox_vector_tile.decode(get(tile_url(sandbox)).content)
    sequences = [feature["properties"]["sequence_id"] for feature in layers["image"]["features"]]
    assert sequences[:2] == ["../../../../tmp/escaped", "/etc/passwd"]


def test_images_that_are_gone_are_in_the_tiles_but_not_in_the_graph(sandbox: Sandbox) -> None:
    link = links(sandbox)[102]
    sandbox.faults.gone_ids = frozenset({102})
    assert b"\x66" in get(tile_url(sandbox)).content
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
    tile = encode_tile(TILE, made.images_in(TILE))
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles/mly1_public_8429_5372_14").write_bytes(tile)
    (tmp_path / "one.mvt").write_bytes(tile)
    (tmp_path / "streets.osm").write_text(
        '<osm><node id="1" lon="5.2130" lat="52.5290"/><node id="2" lon="5.2140" lat="52.5290"/>'
        '<way id="9"><nd ref="1"/><nd ref="2"/><nd ref="3"/><tag k="highway" v="path"/></way></osm>'
    )
    sources = [str(tmp_path / "tiles"), f"{tmp_path}/one.mvt@14/8430/5372"]
    world = recorded_world(sources, osm=tmp_path / "streets.osm")
    assert world.recorded_tiles == {TILE: tile, (14, 8430, 5372): tile}
    assert {street.nodes for street in world.streets.values()} == {(1, 2, 3)}
    with Sandbox(world) as sandbox:
        assert get(tile_url(sandbox)).content == tile
        assert set(links(sandbox)) == set(IDS)


def test_a_recorded_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nothing\.mvt: No such file"):
        recorded_world([f"{tmp_path}/nothing.mvt@14/1/1"])
    with pytest.raises(RecordingError, match="named mly1_public_<x>_<y>_14"):
        recorded_world([str(tmp_path)])
    with pytest.raises(RecordingError, match=r"no \.jpg"):
        recorded_world(jpegs=tmp_path)
