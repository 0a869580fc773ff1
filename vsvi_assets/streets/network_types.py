"""Which ways of OpenStreetMap are streets, by the kind of network.

The rules are osmnx's own (`network_type` of its `graph_from_*` functions, osmnx 2.1). They are
written here because an extract has to be filtered by the same rules as a query to Overpass, and
osmnx offers them for queries only.
"""

import re
from collections.abc import Mapping

_UNUSED = "abandoned|construction|no|planned|platform|proposed|raceway|razed|rest_area|services"
_NOT_DRIVABLE = (
    "abandoned|bridleway|bus_guideway|construction|corridor|cycleway|elevator|escalator|footway|no"
    "|path|pedestrian|planned|platform|proposed|raceway|razed|rest_area"
)

_EXCLUDED: Mapping[str, Mapping[str, str]] = {
    "all": {"area": "yes", "highway": _UNUSED},
    "all_public": {
        "area": "yes",
        "access": "private",
        "highway": _UNUSED,
        "service": "private",
    },
    "bike": {
        "area": "yes",
        "access": "private",
        "highway": "abandoned|bus_guideway|construction|corridor|elevator|escalator|footway|motor"
        "|no|planned|platform|proposed|raceway|razed|rest_area|services|steps",
        "bicycle": "no",
        "service": "private",
    },
    "drive": {
        "area": "yes",
        "access": "private",
        "highway": f"{_NOT_DRIVABLE}|service|services|steps|track",
        "motor_vehicle": "no",
        "motorcar": "no",
        "service": "alley|driveway|emergency_access|parking|parking_aisle|private",
    },
    "drive_service": {
        "area": "yes",
        "access": "private",
        "highway": f"{_NOT_DRIVABLE}|services|steps|track",
        "motor_vehicle": "no",
        "motorcar": "no",
        "service": "emergency_access|parking|parking_aisle|private",
    },
    "walk": {
        "area": "yes",
        "access": "private",
        "highway": "abandoned|bus_guideway|construction|cycleway|motor|no|planned|platform"
        "|proposed|raceway|razed|rest_area|services",
        "foot": "no",
        "service": "private",
        "sidewalk": "separate",
        "sidewalk:both": "separate",
        "sidewalk:left": "separate",
        "sidewalk:right": "separate",
    },
}
"""Of each network type the tags whose values must not match, as regular expressions that may
match anywhere in the value."""

NETWORK_TYPES = tuple(_EXCLUDED)


def overpass_filter(network_type: str) -> str:
    """Return the rules as a filter of ways in Overpass's query language."""
    excluded = _EXCLUDED[network_type].items()
    return '["highway"]' + "".join(f'["{key}"!~"{pattern}"]' for key, pattern in excluded)


def is_street(tags: Mapping[str, str], network_type: str) -> bool:
    """Return whether a way with these tags is a street of the network type."""
    return "highway" in tags and not any(
        key in tags and re.search(pattern, tags[key])
        for key, pattern in _EXCLUDED[network_type].items()
    )
