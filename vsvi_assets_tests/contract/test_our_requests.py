"""The other side of the contract: what the project sends is what the facts demand.

A whole city, from its place to its photographs, by the log of a strict sandbox.
"""

from collections import Counter
from threading import Event

import mercantile
import pytest
import shapely

from vsvi_assets.city import PlaceNotLookedUpError
from vsvi_assets.mapillary.errors import AddressBlockedError
from vsvi_assets.running.places import look_up_region
from vsvi_assets.sandbox import TOKEN, Sandbox
from vsvi_assets_tests.contract.services import BUDGET
from vsvi_assets_tests.mapillary.parts import LAT, LON, client_of, street_images, world_of
from vsvi_assets_tests.project import BOX, Project

TILE = mercantile.tile(LON, LAT, 14)
TOKEN_PLACES = {
    "tiles": {"query"},
    "graph": {"header"},
    **{"images": set(), "overpass": set(), "nominatim": set()},
}
"""Where each service finds the token, and nowhere else."""


def test_each_request_is_one_that_its_service_serves(project: Project) -> None:
    """The token in the query for tiles and in a header for the graph; whom to contact for all."""
    place = shapely.geometry.mapping(shapely.box(*BOX.values()))
    project.sandbox.world.add_place("Polderstad, Nederland", place, osm_id=47)
    with pytest.raises(PlaceNotLookedUpError) as missing:
        project.write_city(bounding_box=None, region={"place": "Polderstad"})
    look_up_region(missing.value, project.settings)
    city = project.write_city(bounding_box=None, region={"place": "Polderstad"})
    project.materialize_metadata(city)
    project.materialize_images(city)

    stats = project.sandbox.stats
    asked = {service: stats.asked(service) for service in TOKEN_PLACES}
    assert {service for service in asked if asked[service]} == set(BUDGET)
    for service, requests in asked.items():
        assert {each.token_in for each in requests} == {frozenset(TOKEN_PLACES[service])}
        assert {each.user_agent for each in requests} == {project.settings.user_agent}
        assert all(each.status in (200, 204) for each in requests)
    assert stats.most_at_once["overpass"] == 1
    assert stats.token_leaks == stats.redirects_followed == 0


def test_no_redirect_to_a_login_page_is_followed() -> None:
    """A blocked address asks once, follows nothing, and says so without the token."""
    with Sandbox(world_of(street_images(3))) as sandbox:
        sandbox.block.block()
        client = client_of(sandbox)
        for _ in range(3):
            with pytest.raises(AddressBlockedError) as error:
                client.tile_images(TILE, Event())
            reported = f"{error.value} {error.value.__cause__} {error.value.__context__}"
            assert TOKEN not in reported
            assert TOKEN.replace("|", "%7C") not in reported
        assert Counter(each.status for each in sandbox.stats.log) == {302: 1}
        assert sandbox.stats.redirects_followed == 0
        assert len(client.image_links([image.id for image in street_images(3)], "256").found) == 3
