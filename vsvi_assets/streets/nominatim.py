"""Places from Nominatim: one question, by osmnx, and never the same one twice.

Rules of nominatim.openstreetmap.org (operations.osmfoundation.org/policies/nominatim): at most
one request per second, a User-Agent of one's own, and answers kept. Who breaks them gets 403 or
429 for hours (osm-search/Nominatim#466, #906), so nothing is repeated here. osmnx waits a second
before each request.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import geopandas as gpd
import orjson
import osmnx
import requests
import shapely

from vsvi_assets.proxies import proxies_for
from vsvi_assets.streets.errors import PlaceError
from vsvi_assets.streets.osmnx_settings import osmnx_configured

READ_SECONDS = 60
_NEEDED = {"boundingbox", "display_name", "importance", "osm_id", "osm_type"}
"""What osmnx and the city's folder keep of a place."""


@dataclass(frozen=True)
class Nominatim:
    """A Nominatim server.

    Attributes
    ----------
    url
        Base URL, such as https://nominatim.openstreetmap.org.
    user_agent
        Names this program, and how to reach those who use it.
    """

    url: str
    user_agent: str


def look_up(nominatim: Nominatim, place: str | None, osm_relation: int | None) -> gpd.GeoDataFrame:
    """Ask Nominatim for a place by its name, or for a relation of OpenStreetMap by its id.

    Returns
    -------
    places
        One row (EPSG:4326): `display_name`, `osm_type`, `osm_id`, `asked_at` (ISO 8601, UTC)
        and `geometry`. Of the places of this name that have polygons it is the one that
        Nominatim holds for the most important.

    Raises
    ------
    PlaceError
        When there is no such place, or no answer.
    """
    what = f"the place {place!r}" if place else f"the relation {osm_relation}"
    host = urlsplit(nominatim.url).hostname
    try:
        with osmnx_configured(
            nominatim.user_agent,
            nominatim_url=nominatim.url,
            requests_timeout=READ_SECONDS,
            requests_kwargs={
                "hooks": {"response": _require_places},
                "proxies": proxies_for(nominatim.url),
            },
            use_cache=False,
        ):
            found = osmnx.geocode_to_gdf(
                place or f"R{osm_relation}", by_osmid=osm_relation is not None
            )
    except requests.RequestException as error:
        raise PlaceError(
            f"Nominatim ({host}) gave no answer about {what}: {error}. Run again later, set "
            "NOMINATIM_URL to another server, or name a file as the region."
        ) from error
    except ValueError as error:
        raise PlaceError(
            f"Nominatim ({host}) knows nothing of {what}. Try the name at "
            "nominatim.openstreetmap.org, or name a file as the region."
        ) from error
    except (KeyError, TypeError, shapely.errors.ShapelyError) as error:
        raise PlaceError(
            f"Nominatim ({host}) knows no polygon of {what}. Try the name at "
            "nominatim.openstreetmap.org, or name a file as the region."
        ) from error
    return found.assign(asked_at=datetime.now(UTC).isoformat(timespec="seconds"))


def _require_places(response: requests.Response, **_: object) -> None:
    """Raise unless a response is a list of places, before osmnx repeats or reads it."""
    host = urlsplit(response.url).hostname
    where = f"Nominatim ({host}) answered HTTP {response.status_code} {response.reason}"
    if response.status_code in (403, 429):
        raise PlaceError(
            f"{where}: it does not serve this address now. Do not ask on: run again after some "
            "hours, set VSVI_CONTACT to your own address or page, set NOMINATIM_URL to another "
            "server, or name a file as the region."
        )
    if response.status_code != 200:
        raise requests.HTTPError(f"HTTP {response.status_code} {response.reason}")
    try:
        answer = orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise requests.RequestException("the answer is no JSON") from error
    if not isinstance(answer, list) or not all(
        isinstance(place, dict) and place.keys() >= _NEEDED for place in answer
    ):
        raise requests.RequestException("the answer is no list of places")
