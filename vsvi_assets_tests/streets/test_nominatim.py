"""Nominatim: what is asked, what comes back, and what is said when nothing does."""

import json

import pytest
import shapely

from vsvi_assets.sandbox import Sandbox, World
from vsvi_assets.sandbox.faults import Fault, Faults
from vsvi_assets.streets.errors import PlaceError
from vsvi_assets.streets.nominatim import Nominatim, look_up
from vsvi_assets_tests.streets.parts import no_picture, recorder

DELFT = shapely.box(4.32, 51.96, 4.41, 52.03)
AGENT = "vsvi-assets/0 (+https://example.org)"


def world_with_delft() -> World:
    world = World(picture=no_picture)
    world.add_place("Delft, Zuid-Holland, Nederland", DELFT.__geo_interface__, osm_id=324431)
    pin = shapely.Point(4.36, 52.01).__geo_interface__
    world.add_place("Delft, a shop", pin, osm_id=5, osm_type="node", importance=0.9)
    return world


def test_a_place_comes_by_name_and_a_relation_by_id() -> None:
    with Sandbox(world_with_delft()) as sandbox:
        server = Nominatim(sandbox.nominatim_url, AGENT)
        by_name, by_id = look_up(server, "Delft", None), look_up(server, None, 324431)
        first, second = (asked.at for asked in sandbox.stats.asked("nominatim"))
        assert second - first > 0.99
    for found in (by_name, by_id):
        assert found.geometry.iloc[0].equals(DELFT)
        assert found["osm_id"].iloc[0] == 324431


@pytest.mark.parametrize(
    ("place", "relation", "said"),
    [
        ("Atlantis", None, "knows nothing of the place 'Atlantis'"),
        (None, 7, "knows nothing of the relation 7"),
        ("Delft, a shop", None, "knows no polygon of the place"),
    ],
)
def test_what_nominatim_does_not_know(place: str | None, relation: int | None, said: str) -> None:
    with (
        Sandbox(world_with_delft()) as sandbox,
        pytest.raises(PlaceError, match=said),
    ):
        look_up(Nominatim(sandbox.nominatim_url, AGENT), place, relation)


def test_an_address_that_is_refused_is_asked_to_wait() -> None:
    with Sandbox(world_with_delft()) as sandbox:
        sandbox.nominatim_limits.gap = 60
        server = Nominatim(sandbox.nominatim_url, AGENT)
        look_up(server, "Delft", None)
        with pytest.raises(PlaceError, match=r"HTTP 429 .* Do not ask on"):
            look_up(server, "Delft", None)
        with pytest.raises(PlaceError, match=r"HTTP 403 .*VSVI_CONTACT"):
            look_up(Nominatim(sandbox.nominatim_url, "python-requests/2.32"), "Delft", None)
        assert sandbox.stats.requests["nominatim"] == 3


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.HTML_PAGE, Fault.RESET, Fault.CUT_OFF])
def test_a_broken_answer_is_reported(fault: Fault) -> None:
    with Sandbox(world_with_delft(), faults=Faults(nominatim={fault: 1.0})) as sandbox:
        with pytest.raises(PlaceError, match=r"gave no answer about the place 'Delft'"):
            look_up(Nominatim(sandbox.nominatim_url, AGENT), "Delft", None)
        assert sandbox.stats.requests["nominatim"] == 1


PLACE = {
    **{"osm_type": "relation", "osm_id": 324431, "display_name": "Delft", "importance": 0.5},
    **{"lat": "52", "lon": "4.3", "boundingbox": ["51.96", "52.03", "4.32", "4.41"]},
}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": "x"}, "gave no answer"),
        ([{}], "gave no answer"),
        ([5], "gave no answer"),
        ([PLACE], "knows no polygon of the relation"),
        ([{**PLACE, "geojson": {"type": "Polygon"}}], "knows no polygon of the relation"),
        ([{**PLACE, "geojson": {"type": "Blob", "coordinates": []}}], "knows no polygon"),
    ],
)
def test_an_answer_that_is_none_is_reported(answer: object, said: str) -> None:
    with (
        recorder(body=json.dumps(answer).encode()) as port,
        pytest.raises(PlaceError, match=said),
    ):
        look_up(Nominatim(f"http://127.0.0.1:{port}", AGENT), None, 324431)
