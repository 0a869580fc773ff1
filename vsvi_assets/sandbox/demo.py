"""The demo city: generated from a seed, and drawn where there is nothing but water.

It lies in the Markermeer (the Netherlands), so that nobody takes it for a real place.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import networkx as nx
import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
import shapely.ops

from vsvi_assets.sandbox.pictures import draw
from vsvi_assets.sandbox.world import StreetImage, World

DEMO_BOX = (5.20, 52.520, 5.225, 52.534)
"""west, south, east, north in degrees"""

_CENTRE = ((DEMO_BOX[0] + DEMO_BOX[2]) / 2, (DEMO_BOX[1] + DEMO_BOX[3]) / 2)
_METRES = (111_320 * math.cos(math.radians(_CENTRE[1])), 111_200)
"""Metres in a degree of longitude and of latitude"""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TREES = ("Linden", "Elm", "Ash", "Willow", "Alder", "Poplar", "Maple", "Birch", "Hazel")
# fmt: off
_WORDS = (
    "Lock", "Weir", "Dyke", "Sluice", "Polder", "Buoy", "Anchor", "Mast", "Keel", "Rudder",
    "Sail", "Heron", "Teal", "Coot", "Grebe", "Plover", "Curlew", "Tern", "Stork", "Swan",
    "Otter", "Perch", "Pike", "Roach", "Eel", "Smelt", "Mill", "Baker", "Cooper", "Weaver",
    "Potter", "Smith", "Tanner", "Fuller", "Chandler", "Mason", "Thatcher", "Glazier", "Rope",
    "Tar", "Hemp", "Flax", "Wool", "Salt", "Malt", "Hop", "Barley", "Rye", "Clover", "Sedge",
    "Reed", "Rush", "Iris", "Lily", "Mint", "Sorrel", "Thyme",
)
# fmt: on
_CREATORS = (
    # username, organization, panorama, seconds and metres between images
    ("markerwadden", 991_655_281_702_248, True, 1.0, 9.0),
    ("ijsselbuurt", None, False, 2.0, 9.0),
    ("fietsend_lange_jan", None, False, 2.0, 6.0),
    ("zuiderzee_mapper", None, False, 3.0, 8.0),
    ("gemeente_demo", 250_738_336_733_541, False, 1.5, 11.0),
    ("wandelaarster", None, False, 4.0, 5.0),
)
_ACCURACY = 2.2
"""Standard deviation of the GPS noise along each axis, metres"""


@dataclass(frozen=True)
class _Line:
    """A street as it is planned, in metres east and north of the city's centre."""

    name: str
    highway: str
    line: shapely.LineString
    oneway: bool = False


def demo_world(seed: int = 1) -> World:
    """Generate the demo city: a few hundred ways, about 3,000 images in about 80 sequences.

    Ring roads and radial streets, a warped grid of blocks between them, a park with
    footpaths, dead ends shorter than 50 m, one-way streets; about a fifth of the images are
    panoramas, taken from 2015 to 2025 by several creators; some streets and one quarter have
    no image. Nominatim knows its centre as the municipality Markerstad.
    As with the real data, there are images whose time is 0, whose compass angle is exactly
    0 or 361.39, that share a grid cell, that lie outside the box, and that two tiles hold.
    """
    rng = random.Random(seed)
    world = World(picture=draw, tile_buffer=6)
    network = _pave(world, list(_plan(rng)), rng)
    world.add_images(_drive(network, rng))
    outline = shapely.affinity.scale(shapely.Point(_CENTRE).buffer(0.004), 1.3, 0.8)
    world.add_place(
        "Markerstad, Markermeer, Nederland",
        shapely.geometry.mapping(outline),
        osm_id=19_999_999_001,
        importance=0.4,
    )
    return world


def _plan(rng: random.Random) -> Iterator[_Line]:
    """Yield the streets before they are cut where they meet."""
    names = [f"{word} Street" for word in _WORDS] + [f"{word} Row" for word in _WORDS]
    rng.shuffle(names)
    angles = np.linspace(0, 2 * math.pi, 181)
    outer, inner = (
        np.column_stack(
            [
                radius * (1 + 0.07 * np.sin(3 * angles + phase)) * np.cos(angles) * 1.08,
                radius * (1 + 0.07 * np.sin(3 * angles + phase)) * np.sin(angles) * 0.98,
            ]
        )
        for radius, phase in ((640, 0.4), (235, 2.0))
    )
    yield _Line("Ring Road", "secondary", shapely.LineString(outer))
    yield _Line("Old Rampart", "tertiary", shapely.LineString(inner), oneway=True)
    old_town, town = shapely.Polygon(inner), shapely.Polygon(outer)
    park = shapely.affinity.rotate(shapely.box(230, 120, 520, 340), 24, origin=(0, 0))

    for number, tree in enumerate(_TREES):
        angle = (number + rng.uniform(-0.25, 0.25)) * 2 * math.pi / len(_TREES)
        reach = np.linspace(55, rng.uniform(820, 1080), 24)
        bend = angle + rng.uniform(-0.25, 0.25) * ((reach - 55) / 900) ** 2 * 2
        line = shapely.LineString(np.column_stack([reach * np.cos(bend), reach * np.sin(bend)]))
        yield _Line(f"{tree} Avenue", "tertiary", line)
    square = np.column_stack([55 * np.cos(angles[::6]), 55 * np.sin(angles[::6])])
    yield _Line("Market Square", "residential", shapely.LineString(square), oneway=True)

    grid = [
        *_warped_lines(rng, spacing=118, turn=0.35, wave=26),
        *_warped_lines(rng, spacing=92, turn=0.35 + math.pi / 2, wave=22),
    ]
    for number, line in enumerate(grid):
        name, oneway = names[number], rng.random() < 0.3
        for piece in _lines(line.intersection(town.difference(old_town).difference(park))):
            for part in _interrupted(piece, rng):
                yield _Line(name, "residential", part, oneway)
    for turn in (0.9, 0.9 + math.pi / 2):
        for line in _warped_lines(rng, spacing=74, turn=turn, wave=12):
            for piece in _lines(line.intersection(old_town.buffer(4))):
                if rng.random() < 0.75:
                    yield _Line(names[-1 - int(rng.random() * 30)], "living_street", piece)
    for turn in (0.2, 1.1, 2.0):
        for line in _warped_lines(rng, spacing=120, turn=turn, wave=30):
            for piece in _lines(line.intersection(park.buffer(8))):
                yield _Line("", "footway", piece)


def _warped_lines(
    rng: random.Random, spacing: float, turn: float, wave: float
) -> Iterator[shapely.LineString]:
    """Yield roughly parallel, gently waving lines over the whole town."""
    along = np.linspace(-900, 900, 61)
    phase, offset = rng.uniform(0, 6), -850 + rng.uniform(0, spacing)
    while offset < 850:
        across = offset + wave * np.sin(along / 210 + phase + offset / 500)
        yield shapely.LineString(
            np.column_stack(
                [
                    along * math.cos(turn) - across * math.sin(turn),
                    along * math.sin(turn) + across * math.cos(turn),
                ]
            )
        )
        offset += spacing * rng.uniform(0.75, 1.25)


def _interrupted(line: shapely.LineString, rng: random.Random) -> Iterator[shapely.LineString]:
    """Leave gaps in a street, so that blocks differ in size and some streets are dead ends."""
    start = 0.0
    while start < line.length:
        end = min(start + rng.uniform(180, 620), line.length)
        if end - start > 25:
            yield shapely.ops.substring(line, start, end)
        start = end + rng.choice((0.0, 0.0, 70.0, 110.0))


def _lines(geometry: shapely.Geometry) -> list[shapely.LineString]:
    return [
        part
        for part in shapely.get_parts(geometry)
        if isinstance(part, shapely.LineString) and part.length > 25
    ]


def _pave(world: World, plan: list[_Line], rng: random.Random) -> nx.Graph:
    """Add the streets as ways that meet in common nodes; return the network to drive on."""
    plan = plan + list(_dead_ends(plan, rng))
    tree = shapely.STRtree([street.line for street in plan])
    pieces = shapely.get_parts(
        shapely.unary_union([street.line for street in plan], grid_size=0.01)
    )
    pieces = [piece for piece in pieces if piece.length > 4]
    network = nx.Graph()
    for piece in sorted(pieces, key=lambda piece: piece.coords[0]):
        street = plan[int(tree.nearest(piece.interpolate(0.5, normalized=True)))]
        tags = {"highway": street.highway}
        if street.name:
            tags["name"] = street.name
        if street.oneway:
            tags["oneway"] = "yes"
        if street.highway in ("secondary", "tertiary", "residential"):
            tags["maxspeed"] = "50" if street.highway == "secondary" else "30"
        world.add_street([_degrees(x, y) for x, y in piece.coords], **tags)
        ends = piece.coords[0], piece.coords[-1]
        network.add_edge(*ends, line=piece, name=street.name, highway=street.highway, driven=0)
    return network


def _dead_ends(plan: list[_Line], rng: random.Random) -> Iterator[_Line]:
    """Yield short closes that leave a street at a right angle."""
    residential = [street for street in plan if street.highway == "residential"]
    for number in range(26):
        line = rng.choice(residential).line
        at = rng.uniform(0.2, 0.8) * line.length
        x, y = line.interpolate(at).coords[0]
        ahead = line.interpolate(at + 1).coords[0]
        side = rng.choice((-1, 1))
        length = rng.uniform(22, 46)
        end = (x - side * length * (ahead[1] - y), y + side * length * (ahead[0] - x))
        yield _Line(f"{_WORDS[number]} Close", "residential", shapely.LineString([(x, y), end]))


def _drive(network: nx.Graph, rng: random.Random) -> Iterator[StreetImage]:
    """Yield the images of sequences driven along the streets."""
    names = sorted({name for *_, name in network.edges(data="name") if name})
    unseen = set(rng.sample(names, len(names) // 8))
    new_quarter = shapely.Point(370, -310).buffer(190)
    driveable = network.edge_subgraph(
        (a, b)
        for a, b, data in network.edges(data=True)
        if data["highway"] != "footway"
        and data["name"] not in unseen
        and not data["line"].intersects(new_quarter)
    )
    box = shapely.box(*DEMO_BOX)
    outskirts = [
        node for node in sorted(driveable) if not box.covers(shapely.Point(_degrees(*node)))
    ]
    next_id = 1_000_000_000_000_000
    for number in range(80):
        creator = number % len(_CREATORS) if rng.random() < 0.88 else 0
        username, organization_id, is_pano, seconds, metres = _CREATORS[creator]
        walking = username == "wandelaarster"
        streets = network if walking else driveable
        start = rng.choice(outskirts) if number % 25 == 7 else _quiet_place(streets, rng)
        route = _route(streets, start, rng, length=rng.uniform(120, 420))
        sequence_id = "".join(rng.choices(_ALPHABET, k=22))
        if number % 20 == 3:
            sequence_id = "-_"[number // 20 % 2] + sequence_id[1:]
        time = datetime(2015, 1, 1, tzinfo=UTC) + timedelta(
            days=rng.randrange(365 * 11), hours=8 + rng.random() * 10
        )
        drift = np.array([rng.gauss(0, _ACCURACY * 0.8), rng.gauss(0, _ACCURACY * 0.8)])
        at, waiting, index = 0.0, 0, 0
        while at < route.length:
            x, y = route.interpolate(at).coords[0]
            ahead = route.interpolate(min(at + 3, route.length)).coords[0]
            behind = route.interpolate(max(at - 3, 0)).coords[0]
            heading = math.degrees(math.atan2(ahead[0] - behind[0], ahead[1] - behind[1])) % 360
            if not waiting:
                drift = drift * 0.97 + np.array([rng.gauss(0, _ACCURACY * 0.15) for _ in "xy"])
            lon, lat = _degrees(x + drift[0], y + drift[1])
            next_id += rng.randrange(10**9, 10**13)
            angle = round((heading + rng.gauss(0, 2.5)) % 360, 11)
            if number % 9 == 4 and index == 5:
                angle = (0.0, 361.39)[number // 9 % 2]
            yield StreetImage(
                id=next_id,
                lon=lon,
                lat=lat,
                sequence_id=sequence_id,
                captured_at=0 if number == 11 and index < 4 else int(time.timestamp() * 1000),
                compass_angle=angle,
                is_pano=is_pano,
                creator_id=100_000_000_000_000 + 7_654_321 * (creator + 1),
                creator_username=username,
                organization_id=organization_id,
                width=2048 if is_pano else 1024,
                height=1024 if is_pano else 768,
            )
            index += 1
            time += timedelta(seconds=seconds)
            waiting = waiting - 1 if waiting else 5 * (rng.random() < 0.006)
            if not waiting:
                at += metres * rng.uniform(0.85, 1.15)


def _quiet_place(network: nx.Graph, rng: random.Random) -> tuple[float, float]:
    """Return a junction that few came along, by the counts in `driven`."""
    nodes = sorted(network)
    weights = [1 / (1 + network.degree(node, weight="driven")) ** 2 for node in nodes]
    return rng.choices(nodes, weights)[0]


def _route(
    network: nx.Graph, start: tuple[float, float], rng: random.Random, length: float
) -> shapely.LineString:
    """Return a way through the network, rather straight on and where few came along before."""
    here, before = start, None
    path: list[tuple[float, float]] = []
    while not path or shapely.LineString(path).length < length:
        onward = sorted(node for node in network[here] if node != before) or [before]
        weights = []
        for node in onward:
            street = network[here][node]
            weight = _straightness(street["line"], here, path[-2:]) if path else 1.0
            weights.append(weight / (1 + street["driven"]))
        there = rng.choices(onward, weights)[0]
        street = network[here][there]
        street["driven"] += 1
        coordinates = list(street["line"].coords)
        path += coordinates if coordinates[0] == here else coordinates[::-1]
        before, here = here, there
    return shapely.LineString(path)


def _straightness(
    line: shapely.LineString, start: tuple[float, float], behind: list[tuple[float, float]]
) -> float:
    """Return how much a street invites those who come along `behind`: straight on, most."""
    coordinates = line.coords if line.coords[0] == start else line.coords[::-1]
    (x0, y0), (x1, y1) = behind
    bearing = math.atan2(y1 - y0, x1 - x0)
    (x0, y0), (x1, y1) = coordinates[0], coordinates[1]
    return 0.1 + max(0.0, math.cos(math.atan2(y1 - y0, x1 - x0) - bearing)) ** 2


def _degrees(x: float, y: float) -> tuple[float, float]:
    """Return the (lon, lat) of a point in metres east and north of the city's centre."""
    return _CENTRE[0] + x / _METRES[0], _CENTRE[1] + y / _METRES[1]
