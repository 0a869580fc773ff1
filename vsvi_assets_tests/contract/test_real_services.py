"""The contract: what is known of the real services, one test per fact.

Always tried against the sandbox, which is so kept as strict as the facts. With VSVI_LIVE=1 and
a token (`make live`) the same tests ask the real services too, within the budget of
`contract.services`, and print for each fact whether it holds or what was seen instead. Facts
that must not be provoked (a blocked address, an outage) are tried against the sandbox alone.

Evidence is named where the sandbox answers so: vsvi_assets/sandbox/.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import mercantile
import pytest
import requests

from vsvi_assets.running.services import user_environment
from vsvi_assets.sandbox import TOKEN, Fault, Faults, Sandbox, StreetImage, World
from vsvi_assets.settings import Settings, TokenMissingError
from vsvi_assets_tests.contract.services import BUDGET, RELATION, Answer, Services
from vsvi_assets_tests.project import picture

IS_LIVE = os.environ.get("VSVI_LIVE") == "1"
DELFT = mercantile.tile(4.3571, 52.0116, 14)
OCEAN = mercantile.tile(-30.0, 0.5, 14)
USER_AGENT = "vsvi-contract-test/1 (contract@example.org)"

Check = Callable[[bool, Answer | str], None]


def world() -> World:
    """A tile of 260 images in 13 sequences, and two streets through its middle."""
    world = World(picture=picture)
    bounds = mercantile.bounds(DELFT)
    lon, lat = (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
    world.add_images(
        StreetImage(
            1_000_000_000_000_001 + number,
            lon + 1e-5 * (number - 130),
            lat,
            f"sequence_{number // 20:04}",
            computed_lon=lon + 1e-5 * (number - 129),
        )
        for number in range(260)
    )
    world.add_street([(bounds.west, lat), (bounds.east, lat)], highway="residential")
    world.add_street([(lon, bounds.south), (lon, bounds.north)], highway="footway")
    delft = {"type": "Polygon", "coordinates": [[[4.3, 52], [4.4, 52], [4.4, 52.1], [4.3, 52]]]}
    world.add_place("Delft, Zuid-Holland, Netherlands", delft, osm_id=RELATION)
    return world


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox of its own, for facts that are states of a service."""
    with Sandbox(world()) as sandbox:
        yield sandbox


def services_at(sandbox: Sandbox) -> Services:
    return Services(
        sandbox.url,
        sandbox.url,
        sandbox.overpass_url,
        sandbox.nominatim_url,
        token=TOKEN,
        user_agent=USER_AGENT,
        tile=DELFT,
        empty_tile=OCEAN,
        is_live=False,
    )


def real_services() -> Services:
    settings = Settings.from_environment(user_environment())
    addresses = settings.services_of("mapillary")
    try:
        token = addresses.token()
    except TokenMissingError as error:
        pytest.exit(str(error), returncode=2)
    return Services(
        addresses.tiles_url,
        addresses.graph_url,
        addresses.overpass_url,
        addresses.nominatim_url,
        token=token,
        user_agent=settings.user_agent,
        tile=DELFT,
        empty_tile=OCEAN,
        is_live=True,
        gap=2.0,
    )


@pytest.fixture(scope="module", params=["sandbox", "live"] if IS_LIVE else ["sandbox"])
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    """The services of the session; what was asked once is not asked again."""
    if request.param == "live":
        services = real_services()
        urls = (services.tiles_url, services.graph_url, services.overpass_url)
        say(request, f"Asking {', '.join(urls)}, {services.nominatim_url}")
        yield services
        made = [f"{services.made[service]} of {most} {service}" for service, most in BUDGET.items()]
        say(request, f"Requests made: {', '.join(made)}.")
    else:
        with Sandbox(world()) as sandbox:
            services = services_at(sandbox)
            yield services
            asked = Counter(each.service for each in sandbox.stats.log)
            assert asked == services.made  # what is counted is what is asked


def say(request: pytest.FixtureRequest, line: str) -> None:
    """Print a line in the terminal, whatever pytest captures."""
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        reporter.ensure_newline()
        reporter.write_line(line)


@pytest.fixture
def holds(request: pytest.FixtureRequest, services: Services) -> Check:
    """Report, in a live run, whether the fact holds that a test's docstring states."""
    fact = (request.function.__doc__ or "").splitlines()[0]

    def check(is_so: bool, seen: Answer | str) -> None:
        text = services.seen(seen) if isinstance(seen, Answer) else services.redacted(seen)
        if services.is_live:
            say(request, f"holds: {fact}" if is_so else f"NOT SO: {fact}\n  Seen: {text}")
        if not is_so:
            pytest.fail(f"{fact} Seen instead: {text}", pytrace=False)

    return check


# Tiles


def test_the_tile_token_counts_in_the_query(services: Services, holds: Check) -> None:
    """A tile is given to a token in the query."""
    answer = services.tile_by_query
    holds("image" in answer.layers(), answer)


def test_the_tile_token_does_not_count_in_the_header(services: Services, holds: Check) -> None:
    """A tile request with the token in the header alone gets 403."""
    holds(services.tile_by_header.status == 403, services.tile_by_header)


def test_no_tile_without_a_token(services: Services, holds: Check) -> None:
    """A tile request without a token gets 401 or 403."""
    holds(services.tile_without_token.status in (401, 403), services.tile_without_token)


def test_no_tile_for_another_token(services: Services, holds: Check) -> None:
    """A tile request with a token that is none gets 401 or 403."""
    holds(services.tile_by_other_token.status in (401, 403), services.tile_by_other_token)


def test_a_tile_without_images_is_empty(services: Services, holds: Check) -> None:
    """A tile without images is 200 without bytes or without the layer, or 204."""
    answer = services.tile_without_images
    lacks_the_layer = answer.layers().keys() == {"sequence"}
    is_empty = answer.status == 200 and (not answer.body or lacks_the_layer)
    holds(is_empty or answer.status == 204, answer)


def test_what_a_tile_says_of_an_image(services: Services, holds: Check) -> None:
    """Each image of a tile has id, sequence_id, captured_at, is_pano and creator_id."""
    types = {
        "id": int,
        "sequence_id": str,
        "captured_at": int,
        "is_pano": bool,
        "creator_id": int,
    }
    wrong = Counter(
        f"{name}: {type(image.get(name)).__name__}"
        for image in services.images.values()
        for name, type_ in types.items()
        if type(image.get(name)) is not type_
    )
    holds(not wrong, f"among {len(services.images):,} images {dict(wrong)}")


def test_the_corrected_tile_has_the_same_images(services: Services, holds: Check) -> None:
    """mly1_computed_public has the images of mly1_public, in other positions."""
    positions = [
        {
            each["properties"]["id"]: tuple(each["geometry"]["coordinates"])
            for each in answer.layers().get("image", {"features": []})["features"]
        }
        for answer in (services.tile_by_query, services.tile_corrected)
    ]
    common = positions[0].keys() & positions[1].keys()
    moved = sum(positions[0][id] != positions[1][id] for id in common)
    holds(
        len(common) > 0.8 * len(positions[0]) and moved > 0,
        f"{len(common):,} of {len(positions[0]):,} images in both, {moved:,} moved",
    )


def test_the_corrected_tile_has_the_same_properties(services: Services, holds: Check) -> None:
    """Its metadata are documented as "exactly the same" as those of mly1_public."""
    properties = [
        {
            name
            for each in answer.layers().get("image", {"features": []})["features"]
            for name in each["properties"]
        }
        for answer in (services.tile_by_query, services.tile_corrected)
    ]
    holds(properties[0] == properties[1], f"{sorted(properties[0])} and {sorted(properties[1])}")


def tile_of(sandbox: Sandbox, token: str = TOKEN, **options: object) -> requests.Response:
    url = f"{sandbox.url}/maps/vtp/mly1_public/2/{DELFT.z}/{DELFT.x}/{DELFT.y}"
    options.setdefault("allow_redirects", False)
    return requests.get(url, params={"access_token": token}, timeout=10, **options)  # type: ignore[arg-type]


def test_a_blocked_address_is_sent_to_a_login_page(sandbox: Sandbox) -> None:
    """Every tile request of a blocked address gets 302 to a login page of another host."""
    sandbox.block.block()
    for _ in range(3):
        answer = tile_of(sandbox)
        assert (answer.status_code, answer.content) == (302, b"")
        assert "/login/" in answer.headers["Location"]
        assert not answer.headers["Location"].startswith(sandbox.url)


def test_the_login_page_passes_for_a_good_answer(sandbox: Sandbox) -> None:
    """The login page answers 200, text/html, some 58 bytes."""
    sandbox.block.block()
    answer = tile_of(sandbox, allow_redirects=True)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert len(answer.content) == 58


def test_a_block_goes_by_the_address(sandbox: Sandbox) -> None:
    """Another token from a blocked address is blocked too, and the Graph API goes on working."""
    sandbox.block.block()
    assert tile_of(sandbox, token="MLY|sandbox|another").status_code == 302
    link = requests.get(
        f"{sandbox.url}/images?image_ids=1000000000000001&fields=id",
        headers={"Authorization": f"OAuth {TOKEN}"},
        timeout=10,
    )
    assert link.json() == {"data": [{"id": "1000000000000001"}]}


def test_a_block_lifts_unless_one_asks_on(sandbox: Sandbox) -> None:
    """A block ends by itself after a while, which every further request begins anew."""
    sandbox.block.lasts = 0.5
    sandbox.block.block()
    for _ in range(2):
        time.sleep(0.3)
        assert tile_of(sandbox).status_code == 302
    time.sleep(0.6)
    assert tile_of(sandbox).status_code == 200


def test_a_sudden_spike_blocks_the_address(sandbox: Sandbox) -> None:
    """Too many tile requests in too short a time block the address, far below 50,000 a day."""
    sandbox.block.after = 5
    assert [tile_of(sandbox).status_code for _ in range(7)] == [200] * 5 + [302] * 2


def test_a_tile_can_be_missing_for_a_while(sandbox: Sandbox) -> None:
    """404 for a tile that exists passes."""
    sandbox.faults = Faults(tiles={Fault.NOT_FOUND: 1.0}, most=2)
    assert [tile_of(sandbox).status_code for _ in range(3)] == [404, 404, 200]


# The Graph API


def test_the_graph_takes_the_token_in_the_header(services: Services, holds: Check) -> None:
    """The Graph API accepts the token in a header."""
    holds(services.one_image.status == 200, services.one_image)


def test_no_image_without_a_token(services: Services, holds: Check) -> None:
    """The Graph API answers code 190 without a token."""
    answer = services.images_without_token
    holds(answer.status >= 400 and answer.error_code() == 190, answer)


def test_no_image_for_another_token(services: Services, holds: Check) -> None:
    """The Graph API answers code 190 to a token that is none."""
    answer = services.images_by_other_token
    holds(answer.status >= 400 and answer.error_code() == 190, answer)


def test_fifty_images_are_answered_in_any_order(services: Services, holds: Check) -> None:
    """/images answers for 50 ids at once, with what was asked for, in any order."""
    answer = services.fifty_images
    ids = {int(image["id"]) for image in answer.data()}
    asked = set(sorted(services.images)[:50])
    has_links = all("thumb_256_url" in image for image in answer.data())
    # Some may have been withdrawn since the tile was made.
    holds(ids <= asked and len(ids) > 40 and has_links, answer)


def test_most_images_have_a_corrected_heading(services: Services, holds: Check) -> None:
    """/images answers `computed_compass_angle`, a number of degrees, for 50 ids at once."""
    answer = services.headings_of_fifty_images
    headings = [image.get("computed_compass_angle") for image in answer.data()]
    numbers = [each for each in headings if isinstance(each, int | float)]
    holds(len(numbers) > 25 and all(-360 <= each <= 720 for each in numbers), answer)


def test_two_hundred_images_are_not_too_many(services: Services, holds: Check) -> None:
    """/images answers for 200 ids at once, as mapillary-js asks for."""
    holds(len(services.two_hundred_images.data()) > 160, services.two_hundred_images)


def test_unknown_ids_are_left_out(services: Services, holds: Check) -> None:
    """/images leaves out ids that it does not know, and answers for the others."""
    answer = services.images_and_an_unknown_one
    ids = {int(image["id"]) for image in answer.data()}
    holds(answer.status == 200 and ids == set(sorted(services.images)[:2]), answer)


def test_an_unknown_id_by_itself_is_an_error(services: Services, holds: Check) -> None:
    """/<id> of an unknown image is an error, code 100."""
    answer = services.unknown_image
    holds(answer.status >= 400 and answer.error_code() == 100, answer)


def images_of(sandbox: Sandbox, *ids: int) -> requests.Response:
    return requests.get(
        f"{sandbox.url}/images",
        params={"image_ids": ",".join(map(str, ids)), "fields": "id,thumb_256_url"},
        headers={"Authorization": f"OAuth {TOKEN}"},
        timeout=10,
    )


FIRST_ID = 1_000_000_000_000_001


def test_an_outage_looks_like_images_that_are_gone(sandbox: Sandbox) -> None:
    """In an outage /images answers 200 with an empty list for images that exist."""
    sandbox.faults = Faults(graph={Fault.NO_DATA: 1.0}, most=1)
    answers = [images_of(sandbox, FIRST_ID, FIRST_ID + 1) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [len(answer.json()["data"]) for answer in answers] == [0, 2]


def test_one_id_can_fail_its_whole_batch_for_ever(sandbox: Sandbox) -> None:
    """A single id can answer 500, code 2, is_transient, and take its whole batch along."""
    sandbox.faults = Faults(failing_ids=frozenset({FIRST_ID}))
    for ids in ((FIRST_ID, FIRST_ID + 1), (FIRST_ID,)):
        answer = images_of(sandbox, *ids)
        assert answer.status_code == 500
        assert (answer.json()["error"]["code"], answer.json()["error"]["is_transient"]) == (2, True)
    assert images_of(sandbox, FIRST_ID + 1).ok


def test_a_batch_can_be_too_large(sandbox: Sandbox) -> None:
    """Code 1 asks to reduce the amount of data; a smaller batch is answered."""
    sandbox.faults = Faults(most_ids=2)
    answer = images_of(sandbox, *range(FIRST_ID, FIRST_ID + 3))
    assert answer.json()["error"]["code"] == 1
    assert "reduce the amount of data" in answer.json()["error"]["message"]
    assert images_of(sandbox, FIRST_ID, FIRST_ID + 1).ok


# Image servers


def test_a_link_needs_no_token(services: Services, holds: Check) -> None:
    """The image server gives a JPEG to a link by itself."""
    answer = services.image_file
    holds(answer.status == 200 and answer.body.startswith(b"\xff\xd8"), answer)


def test_a_link_says_when_it_expires(services: Services, holds: Check) -> None:
    """A link expires after about 30 days, which its parameter oe says in hexadecimal."""
    seconds = services.link_expires_in()
    days = None if seconds is None else seconds / 86_400
    holds(days is not None and 1 < days < 60, f"expires in {days} days")


def test_an_expired_link_is_refused(services: Services, holds: Check) -> None:
    """The image server answers 403 to a link that has expired."""
    holds(services.image_file_too_late.status == 403, services.image_file_too_late)


def test_a_new_link_can_answer_404_for_a_moment(sandbox: Sandbox) -> None:
    """404 of the image server right after a link was given passes."""
    sandbox.faults = Faults(images={Fault.NOT_FOUND: 1.0}, most=1)
    [image] = images_of(sandbox, FIRST_ID).json()["data"]
    statuses = [requests.get(image["thumb_256_url"], timeout=10).status_code for _ in range(2)]
    assert statuses == [404, 200]


# Overpass


def test_overpass_serves_who_can_be_reached(services: Services, holds: Check) -> None:
    """Overpass answers a request whose User-Agent names the program and its maker."""
    answer = services.streets
    holds(answer.status == 200 and b'"way"' in answer.body, answer)


def test_overpass_refuses_stock_user_agents(services: Services, holds: Check) -> None:
    """Overpass answers 406 to the User-Agent that requests sends by default."""
    holds(services.streets_by_stock_agent.status == 406, services.streets_by_stock_agent)


def query(sandbox: Sandbox, user_agent: str | None = USER_AGENT, path: str = "interpreter") -> int:
    """Ask Overpass and return the status; 0 where it takes no connection."""
    bounds = mercantile.bounds(DELFT)
    box = f"{bounds.south},{bounds.west},{bounds.north},{bounds.east}"
    try:
        return requests.get(
            f"{sandbox.overpass_url}/{path}",
            params={"data": f'[out:json];way["highway"]({box});out;'},
            headers={"User-Agent": user_agent},
            timeout=10,
        ).status_code
    except requests.ConnectionError:
        return 0


def test_overpass_wants_a_user_agent_for_every_request(sandbox: Sandbox) -> None:
    """406 comes without a User-Agent and with stock ones, for /api/status too."""
    agents = (None, "python-requests/2.32.3", "OSMnx Python package (https://github.com/x/osmnx)")
    assert [query(sandbox, agent) for agent in agents] == [406] * 3
    assert [query(sandbox, agent, "status") for agent in agents] == [406] * 3
    assert query(sandbox, path="status") == 200


def test_overpass_runs_one_query_of_an_address_at_a_time(sandbox: Sandbox) -> None:
    """A second query from the same address at the same time gets 429."""
    sandbox.overpass_seconds = 0.5
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lambda _: query(sandbox), range(2))) == [200, 429]


def test_overpass_wants_a_pause_after_429(sandbox: Sandbox) -> None:
    """After a 429 a query within 30 s gets another one, and who goes on is banned."""
    assert sandbox.overpass_limits.pause == 30
    sandbox.overpass_limits.pause = 0.5
    sandbox.overpass_limits.refuse("127.0.0.1")
    assert query(sandbox) == 429
    time.sleep(0.6)
    assert query(sandbox) == 200
    sandbox.overpass_limits.refuse("127.0.0.1")
    assert [query(sandbox) for _ in range(4)] == [429, 429, 0, 0]


def test_overpass_is_busy_daily(sandbox: Sandbox) -> None:
    """504 and pages that the server is too busy pass."""
    sandbox.faults = Faults(overpass={Fault.TOO_BUSY: 0.5, Fault.GATEWAY_TIMEOUT: 0.5}, most=2)
    assert [query(sandbox) for _ in range(3)] == [504, 504, 200]


# Nominatim


def is_place(answer: Answer) -> bool:
    """Return whether an answer is a list whose first entry has what osmnx reads."""
    try:
        place = answer.json()[0]
        numbers = [float(each) for each in (*place["boundingbox"], place["lat"], place["lon"])]
        return (
            len(numbers) == 6
            and float(place["importance"]) >= 0
            and place["geojson"]["type"] in ("Polygon", "MultiPolygon")
            and {"place_id", "licence", "osm_type", "osm_id", "display_name"} <= set(place)
        )
    except (ValueError, TypeError, KeyError, IndexError):
        return False


def test_nominatim_knows_places_by_name(services: Services, holds: Check) -> None:
    """/search?format=json answers a list of places, with their polygons where asked for.

    nominatim.org/release-docs/latest/api/Output
    """
    answer = services.place_by_name
    holds(answer.status == 200 and is_place(answer), answer)


def test_nominatim_knows_relations_by_id(services: Services, holds: Check) -> None:
    """/lookup answers a list, from which ids of nothing are left out."""
    answer = services.place_by_id
    known = is_place(answer) and [each["osm_id"] for each in answer.json()] == [RELATION]
    holds(answer.status == 200 and known, answer)


def place(sandbox: Sandbox, **headers: str) -> requests.Response:
    url = f"{sandbox.nominatim_url}/search?format=json&q=Delft"
    return requests.get(url, headers={"User-Agent": USER_AGENT, **headers}, timeout=10)


def test_nominatim_refuses_stock_user_agents(sandbox: Sandbox) -> None:
    """403 and a page for what libraries send by default (hotosm/tasking-manager#6304)."""
    refused = place(sandbox, **{"User-Agent": "python-requests/2.32.3"})
    assert refused.status_code == 403
    assert "Access blocked" in refused.text


def test_nominatim_serves_one_request_per_second(sandbox: Sandbox) -> None:
    """429 and a page for the second request within a second (osm-search/Nominatim#906)."""
    assert [place(sandbox).status_code for _ in range(2)] == [200, 429]
    time.sleep(1.05)
    assert place(sandbox).status_code == 200


def test_nominatim_answers_an_empty_list_for_nothing(sandbox: Sandbox) -> None:
    """A name that is none gives 200 and [], which is no error."""
    url = f"{sandbox.nominatim_url}/search?format=json&q=Atlantis"
    answer = requests.get(url, headers={"User-Agent": USER_AGENT}, timeout=10)
    assert (answer.status_code, answer.json()) == (200, [])


def test_the_budget_is_kept(services: Services) -> None:
    """A whole session makes at most 6 tile, 12 graph, 3 image, 2 Overpass, 2 place requests."""
    services.ask_all()
    assert all(services.made[service] <= most for service, most in BUDGET.items())


def test_no_request_goes_beyond_the_budget(sandbox: Sandbox) -> None:
    services = services_at(sandbox)
    services.made["tiles"] = BUDGET["tiles"]
    with pytest.raises(AssertionError, match="the budget for tiles is used up"):
        services.tile_by_query  # noqa: B018
    assert not sandbox.stats.requests["tiles"]


def test_a_blocked_address_is_not_asked_on(sandbox: Sandbox) -> None:
    services = services_at(sandbox)
    sandbox.block.block()
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="has blocked this address"):
            services.tile_by_query  # noqa: B018
    assert sandbox.stats.requests["tiles"] == 1


def test_what_was_seen_is_reported_without_the_token(sandbox: Sandbox) -> None:
    services = services_at(sandbox)
    for encoded in (TOKEN, TOKEN.replace("|", "%7C"), TOKEN.replace("|", "%257C")):
        answer = Answer(302, {"Location": f"https://x/?next={encoded}"}, encoded.encode())
        assert "sandbox" not in services.seen(answer)
