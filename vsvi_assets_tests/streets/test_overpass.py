"""Overpass: what is asked, how patiently, what is kept, and what is said when it fails."""

import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import osmnx
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from vsvi_assets.city.area import Polygons
from vsvi_assets.sandbox.faults import Fault, Faults
from vsvi_assets.streets import overpass as overpass_module
from vsvi_assets.streets.errors import (
    Box,
    NoStreetsError,
    OverpassBusyError,
    OverpassError,
    OverpassRefusedError,
    OverpassUnreachableError,
)
from vsvi_assets.streets.overpass import DownloadedStreets, Overpass, download_streets
from vsvi_assets.streets.points import street_points
from vsvi_assets_tests.streets.parts import BOX, Recorder, overpass_at, overpass_with, recorder

STREET = [(4.901, 52.365), (4.909, 52.365)]


def download(
    server: Overpass,
    folder: Path,
    box: Box = BOX,
    network_type: str = "all",
    *,
    within: Polygons | None = None,
    not_before: datetime | None = None,
    reports: list[str] | None = None,
) -> DownloadedStreets:
    return download_streets(
        box,
        network_type,
        overpass=server,
        cache_folder=folder / "osmnx",
        within=within,
        not_before=not_before,
        report=(reports if reports is not None else []).append,
    )


# What is asked


def test_a_segment_that_crosses_the_box_between_nodes_outside_is_kept(tmp_path: Path) -> None:
    crossing = [(4.8, 52.3), (5.0, 52.43)]
    with overpass_with([(4.7, 52.2), *crossing, (5.2, 52.5)], name="Rijksweg") as sandbox:
        streets = download(overpass_at(sandbox.overpass_url), tmp_path, BOX, "drive").streets
    points = street_points(streets, BOX, 32631, 50)
    assert set(points["street"]) == {"Rijksweg"}
    assert shapely.distance(points.geometry.to_numpy(), shapely.LineString(crossing)).max() < 1e-6
    ends = np.sort(points.geometry.y)[[0, -1]]
    assert ends == pytest.approx([52.365, 52.37], abs=5e-4)


def test_a_large_box_is_asked_for_in_parts_that_miss_nothing(tmp_path: Path) -> None:
    box = (4.0, 51.5, 5.6, 52.5)
    inside = [box[0] + 0.0001, box[1] + 0.0001, box[2] - 0.0001, box[3] - 0.0001]
    rim = list(shapely.box(*inside).segmentize(0.01).exterior.coords)
    pieces = [rim[start : start + 2] for start in range(len(rim) - 1)]
    with overpass_with(*pieces) as sandbox:
        streets = download(overpass_at(sandbox.overpass_url), tmp_path, box).streets
        asked = sandbox.stats.requests["overpass"]
        download(overpass_at(sandbox.overpass_url, area=1000), tmp_path / "other", box)
        assert sandbox.stats.requests["overpass"] > 2 * asked > 8
    assert len(streets) == len(pieces)


@pytest.mark.parametrize(
    ("box", "street"),
    [
        ((179.98, -16.81, 180, -16.79), [(179.99995, -16.8), (179.9997, -16.8)]),
        ((-180, 65.0, -179.9, 66.0), [(-179.9999, 65.02), (-179.9995, 65.021)]),
        ((179.9995, 0.0, 180, 0.0005), [(179.9996, 0.0001), (179.99999, 0.0004)]),
    ],
)
def test_a_box_at_the_antimeridian_is_asked_for_on_its_own_side(
    box: Box, street: list[tuple[float, float]], tmp_path: Path
) -> None:
    with recorder() as port, pytest.raises(NoStreetsError):
        download(overpass_at(f"http://127.0.0.1:{port}/api"), tmp_path, box)
    numbers = np.array(Recorder.requests[0].query.split("'")[1].split(), dtype=float)
    assert np.ptp(numbers[1::2]) < 0.5
    assert np.ptp(numbers[::2]) < box[3] - box[1] + 0.1
    with overpass_with(street) as sandbox:
        assert len(download(overpass_at(sandbox.overpass_url), tmp_path, box).streets) == 1


@pytest.mark.parametrize("area", [2500, 20])
@pytest.mark.parametrize("seed", range(3))
def test_for_polygons_their_convex_hull_is_asked_and_misses_nothing(
    seed: int, area: int, tmp_path: Path
) -> None:
    numbers = np.random.default_rng(seed)
    west, south, east, north = box = (4.8, 52.3, 5.1, 52.5)
    middles = np.linspace((west, south), (east, north), 6) + numbers.uniform(-0.01, 0.01, (6, 2))
    shapes = shapely.buffer(shapely.points(middles), numbers.uniform(0.005, 0.03, 6))
    region = shapely.intersection(shapely.union_all(shapes), shapely.box(*box))
    starts = numbers.uniform((west, south), (east, north), (300, 2))
    ends = starts + numbers.uniform(-0.01, 0.01, (300, 2))
    with overpass_with(*np.stack([starts, ends], axis=1).tolist()) as sandbox:
        server = overpass_at(sandbox.overpass_url, area=area)
        of_region = download(server, tmp_path, region.bounds, within=region).streets
        requests = sandbox.stats.requests["overpass"]
        again = download(server, tmp_path, region.bounds, within=region)
        assert again.from_cache
        assert sandbox.stats.requests["overpass"] == requests
        of_box = download(server, tmp_path, region.bounds).streets
        assert sandbox.stats.requests["overpass"] >= 2 * requests
    expected, found = (
        street_points(streets, region.bounds, 32631, 50, within=region)
        for streets in (of_box, of_region)
    )
    assert_geodataframe_equal(found, expected)
    assert len(of_region) < 0.8 * len(of_box)


def test_polygons_without_a_street_are_no_answer_to_keep(tmp_path: Path) -> None:
    west, south, east, north = BOX
    triangle = shapely.Polygon([(west, south), (west, north), (east, north)])
    beside = shapely.difference(triangle, shapely.LineString(STREET).buffer(1e-4))
    with overpass_with(STREET) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        with pytest.raises(NoStreetsError):
            download(server, tmp_path, BOX, within=beside)
    assert not list((tmp_path / "osmnx").iterdir())


def test_the_answer_for_a_box_is_found_that_an_earlier_version_kept(tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        folder = download(overpass_at(sandbox.overpass_url), tmp_path).folder
    question = json.dumps([sandbox.overpass_url, "all", *BOX])
    assert folder.name == hashlib.sha256(question.encode()).hexdigest()[:16]


def test_the_query_says_what_the_server_may_spend(tmp_path: Path) -> None:
    with recorder() as port:
        url = f"http://127.0.0.1:{port}/api"
        for memory in (None, 1024):
            with pytest.raises(NoStreetsError):
                download(overpass_at(url, memory=memory), tmp_path)
    by_default, allowed = (request.query for request in Recorder.requests)
    assert by_default.startswith("[out:json][timeout:180];")
    assert allowed.startswith("[out:json][timeout:180][maxsize:1024000000];")


def test_every_request_names_the_program_and_its_maker(tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        url = sandbox.overpass_url
        with pytest.raises(OverpassRefusedError, match=r"406.*python-requests.*VSVI_CONTACT"):
            download(overpass_at(url, user_agent="python-requests/2.32"), tmp_path)
        assert len(download(overpass_at(url), tmp_path).streets) == 1


def test_nobody_else_is_asked_and_osmnx_keeps_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise socket.gaierror(f"{name} has no address")

    connections = []
    connect = socket.socket.connect

    def recorded_connect(self: socket.socket, address: tuple[str, int]) -> None:
        connections.append(address)
        connect(self, address)

    # osmnx asks a public server by HTTPS for the address of a host that has none.
    monkeypatch.setattr(socket, "gethostbyname", unknown)
    monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)  # osmnx replaces it
    monkeypatch.setattr(socket.socket, "connect", recorded_connect)
    # A proxy cannot reach this machine.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    before = {name: getattr(osmnx.settings, name) for name in osmnx.settings.__annotations__}

    with recorder() as port, pytest.raises(NoStreetsError):
        download(overpass_at(f"http://localhost:{port}/api"), tmp_path)

    assert {address[1] for address in connections} == {port}
    [request] = Recorder.requests
    assert request.path == "/api/interpreter"
    assert request.headers["user-agent"] == "vsvi-assets/0 (+https://example.org)"
    assert request.headers["referer"] == "vsvi-assets/0 (+https://example.org)"
    assert before == {name: getattr(osmnx.settings, name) for name in before}


# How patiently


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, b"<html>rate_limited</html>"),
        (502, b"<html></html>"),
        (503, b"<html></html>"),
        (504, b"<html>The server is probably too busy to handle your request.</html>"),
        (200, b"<?xml version='1.0'?><html>Server load too high</html>"),
    ],
)
@pytest.mark.timeout(60)
def test_a_busy_server_is_asked_again_after_growing_pauses(
    status: int, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert overpass_module.RETRIES == 5
    monkeypatch.setattr(overpass_module, "RETRIES", 3)
    reports: list[str] = []
    with recorder(status, body) as port:
        server = overpass_at(f"http://127.0.0.1:{port}/api", pause=0.05)
        with pytest.raises(OverpassBusyError, match=rf"{status}.*4 times.*OVERPASS_URL"):
            download(server, tmp_path, reports=reports)
    times = [request.time for request in Recorder.requests]
    assert len(times) == 4
    for retry, pause in enumerate(np.diff(times)):
        assert pause >= 0.05 * 2**retry
    assert [report.partition("retry ")[2][:6] for report in reports] == [
        f"{retry} of 3" for retry in range(1, 4)
    ]


def test_pauses_begin_with_thirty_seconds() -> None:
    assert Overpass("https://overpass-api.de/api", user_agent="vsvi", turn=nullcontext).pause == 30


@pytest.mark.timeout(60)
def test_no_query_falls_into_a_pause_that_the_server_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overpass_module, "RETRIES", 2)
    with overpass_with(STREET) as sandbox:
        sandbox.overpass_limits.pause = 0.2
        server = overpass_at(sandbox.overpass_url, pause=0.2)
        sandbox.faults = Faults(overpass={Fault.RATE_LIMITED: 1.0}, most=2)
        assert len(download(server, tmp_path).streets) == 1
        assert sandbox.stats.requests["overpass"] == 3

        sandbox.faults = Faults(overpass={Fault.RATE_LIMITED: 1.0})
        sandbox.overpass_limits.pause = server.pause
        for folder in ("first", "second"):  # as others do who wait for their turn
            with pytest.raises(OverpassBusyError):
                download(server, tmp_path / folder)
        assert not sandbox.overpass_limits.ignored


def test_all_queries_and_pauses_are_made_within_a_turn(tmp_path: Path) -> None:
    turns: list[int] = []

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append(sandbox.stats.requests["overpass"])
        yield
        assert not sandbox.overpass_limits.seconds_left("127.0.0.1")
        turns.append(sandbox.stats.requests["overpass"])

    with overpass_with(STREET) as sandbox:
        sandbox.overpass_limits.pause = 0.05
        sandbox.faults = Faults(overpass={Fault.RATE_LIMITED: 1.0}, most=2)
        server = replace(overpass_at(sandbox.overpass_url, pause=0.05), turn=turn)
        download(server, tmp_path)
        assert turns == [0, 3]
        download(server, tmp_path)
        assert turns == [0, 3], "what is kept needs no turn"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", ["in a pause", "in a query"])
def test_ctrl_c_ends_a_pause_and_a_query(moment: str, tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        if moment == "in a pause":
            sandbox.faults = Faults(overpass={Fault.TOO_BUSY: 1.0})
        else:
            sandbox.overpass_seconds = 30.0
        here = threading.get_ident()
        interrupt = threading.Timer(1.0, signal.pthread_kill, [here, signal.SIGINT])
        began = time.monotonic()
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            download(overpass_at(sandbox.overpass_url, pause=30.0), tmp_path)
        assert time.monotonic() - began < 5
        assert sandbox.stats.requests["overpass"] == 1


def test_an_answer_that_another_process_got_meanwhile_is_taken(tmp_path: Path) -> None:
    @contextmanager
    def turn() -> Iterator[None]:
        download(overpass_at(sandbox.overpass_url), tmp_path)
        yield

    with overpass_with(STREET) as sandbox:
        server = replace(overpass_at(sandbox.overpass_url), turn=turn)
        assert download(server, tmp_path).from_cache
        assert sandbox.stats.requests["overpass"] == 1


def test_the_client_is_more_patient_than_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert overpass_module.READ_SECONDS > overpass_module.QUERY_SECONDS
    monkeypatch.setattr(overpass_module, "QUERY_SECONDS", 1)
    monkeypatch.setattr(overpass_module, "READ_SECONDS", 2)
    with overpass_with(STREET) as sandbox:
        sandbox.overpass_seconds = 1.2
        assert len(download(overpass_at(sandbox.overpass_url), tmp_path).streets) == 1
        monkeypatch.setattr(overpass_module, "READ_SECONDS", 0.3)
        monkeypatch.setattr(overpass_module, "RETRIES", 0)
        with pytest.raises(OverpassBusyError, match="did not answer within"):
            download(overpass_at(sandbox.overpass_url), tmp_path / "other")


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        (Fault.NOT_FOUND, OverpassRefusedError, "HTTP 404 Not Found.*OVERPASS_URL"),
        (Fault.REDIRECT_TO_HOST, OverpassRefusedError, "HTTP 302 Found.*OVERPASS_URL"),
        (Fault.OUT_OF_MEMORY, OverpassRefusedError, "out of memory.*VSVI_OVERPASS_MEMORY"),
        (Fault.TIMED_OUT, OverpassRefusedError, "timed out.*VSVI_OVERPASS_AREA.*streets_file"),
        (Fault.SERVER_ERROR, OverpassUnreachableError, "HTTP 500"),
        (Fault.RESET, OverpassUnreachableError, "Connection aborted"),
        (Fault.CUT_OFF, OverpassUnreachableError, "Connection broken"),
        (Fault.TRUNCATED, OverpassUnreachableError, "not whole"),
        (Fault.EMPTY, OverpassUnreachableError, "not whole"),
    ],
)
@pytest.mark.timeout(60)
def test_other_failures_are_errors_at_once(
    fault: Fault, error: type[OverpassError], reason: str, tmp_path: Path
) -> None:
    with overpass_with(STREET) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        sandbox.faults = Faults(overpass={fault: 1.0})
        with pytest.raises(error, match=reason) as raised:
            download(server, tmp_path)
        assert raised.value.may_pass == (error is OverpassUnreachableError)
        assert sandbox.stats.requests["overpass"] == 1
        assert sandbox.stats.redirects_followed == 0

        sandbox.faults = Faults()
        assert len(download(server, tmp_path).streets) == 1


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
    with pytest.raises(OverpassUnreachableError, match=r"west 4\.9, south 52\.36.*OVERPASS_URL"):
        download(overpass_at(f"http://{address}/api"), tmp_path)


def test_parts_that_arrived_are_not_asked_for_again(tmp_path: Path) -> None:
    box = (4.0, 51.5, 5.6, 52.5)
    with overpass_with([(4.5, 52.0), (4.51, 52.0)]) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        sandbox.faults = Faults(seed=4, overpass={Fault.RESET: 0.5})
        failures = 0
        while True:
            try:
                assert len(download(server, tmp_path, box).streets) == 1
                break
            except OverpassUnreachableError:
                failures += 1
        assert failures > 2
        parts = sandbox.stats.requests["overpass"] - failures
        sandbox.faults = Faults()
        download(server, tmp_path / "other", box)
        assert sandbox.stats.requests["overpass"] == failures + 2 * parts


# What is kept


def test_the_same_box_is_asked_for_once(tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        began = datetime.now(UTC)
        first = download(server, tmp_path)
        again = download(server, tmp_path)
        assert sandbox.stats.requests == {"overpass": 1}
        assert (first.from_cache, again.from_cache) == (False, True)
        assert began <= first.asked_at == again.asked_at <= datetime.now(UTC)
        assert_geodataframe_equal(first.streets, again.streets)

        download(server, tmp_path, network_type="drive")
        download(server, tmp_path, (*BOX[:3], 52.371))
        assert sandbox.stats.requests == {"overpass": 3}


def test_the_answer_of_one_server_does_not_serve_another(tmp_path: Path) -> None:
    with overpass_with(STREET) as one, overpass_with(STREET, STREET[::-1]) as other:
        for sandbox in (one, other):
            downloaded = download(overpass_at(sandbox.overpass_url), tmp_path)
            assert not downloaded.from_cache


def test_an_answer_without_streets_is_not_kept(tmp_path: Path) -> None:
    with overpass_with() as sandbox:
        server = overpass_at(sandbox.overpass_url)
        with pytest.raises(NoStreetsError):
            download(server, tmp_path)
        sandbox.world.add_street([(4.905, 52.3705), (4.906, 52.3705)], highway="residential")
        with pytest.raises(NoStreetsError):  # beside the box
            download(server, tmp_path)
        sandbox.world.add_street(STREET, highway="residential")
        assert len(download(server, tmp_path).streets) == 2
        assert sandbox.stats.requests["overpass"] == 3


def test_earlier_answers_can_be_left_out(tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        first = download(server, tmp_path)
        assert download(server, tmp_path, not_before=first.asked_at).from_cache
        now = datetime.now(UTC)

        sandbox.faults = Faults(overpass={Fault.NOT_FOUND: 1.0})
        with pytest.raises(OverpassRefusedError):
            download(server, tmp_path, not_before=now)
        assert download(server, tmp_path).asked_at == first.asked_at

        sandbox.faults = Faults()
        sandbox.world.add_street(STREET[::-1], highway="footway", name="Pad")
        second = download(server, tmp_path, not_before=now)
        assert not second.from_cache
        assert second.asked_at >= now
        assert download(server, tmp_path, not_before=now).from_cache
        assert len(list((tmp_path / "osmnx").iterdir())) == 1


def test_a_kept_answer_that_is_not_whole_is_asked_for_anew(tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        first = download(server, tmp_path)
        [answer] = first.folder.glob("answers/*")
        answer.write_bytes(answer.read_bytes()[:-20])
        reports: list[str] = []
        again = download(server, tmp_path, reports=reports)
        assert not again.from_cache
        assert str(first.folder) in reports[0]
        assert_geodataframe_equal(first.streets, again.streets)


def test_a_part_that_is_not_whole_is_removed(tmp_path: Path) -> None:
    with overpass_with(STREET) as sandbox:
        server = overpass_at(sandbox.overpass_url)
        first = download(server, tmp_path)
        part = first.folder.rename(first.folder.with_suffix(".part"))
        [answer] = part.glob("answers/*")
        answer.write_bytes(answer.read_bytes()[:-20])
        with pytest.raises(OverpassUnreachableError, match="run again"):
            download(server, tmp_path)
        assert len(download(server, tmp_path).streets) == 1
