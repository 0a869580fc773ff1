"""Places that cities are regions of: looked up once, by whoever runs a city first."""

from collections.abc import Iterator

import pyproj

from vsvi_assets.city import CityFileError, PlaceNotLookedUpError, load_cities
from vsvi_assets.city.region import freeze_place
from vsvi_assets.settings import Settings
from vsvi_assets.streets.errors import PlaceError
from vsvi_assets.streets.nominatim import Nominatim, look_up


def look_up_all(settings: Settings) -> Iterator[str]:
    """Look up the places that never were, of all cities; say of each what it is, or what failed."""
    try:
        _, broken = load_cities(settings.cities_dir, settings.data_dir)
    except CityFileError:
        return  # of which more is said where a city is asked for
    for city in broken:
        if isinstance(city.error, PlaceNotLookedUpError):
            try:
                yield look_up_region(city.error, settings)
            except (PlaceError, CityFileError) as error:
                yield f"{city.name}: {error}"


def look_up_region(missing: PlaceNotLookedUpError, settings: Settings) -> str:
    """Ask Nominatim for the place of a city's region and keep the answer; describe it.

    Raises
    ------
    PlaceError
        When there is no such place, or no answer.
    CityFileError
        When the place is no polygon.
    SandboxMissingError
        When the city is on the sandbox, and that does not run.
    """
    services = settings.services_of(missing.services)
    nominatim = Nominatim(services.nominatim_url, services.user_agent)
    source = missing.source
    found = look_up(nominatim, source.place, source.osm_relation)
    freeze_place(missing.path, source, found)
    place = found.iloc[0]
    area, _ = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(place.geometry)
    return (
        f"{missing.name}: {source} is {place['display_name']} ({place['osm_type']} "
        f"{place['osm_id']}), {abs(area) / 1e6:,.1f} km²; kept in {missing.path}"
    )
