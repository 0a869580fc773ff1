"""Pictures of streets, drawn on request: always the same ones for the same image.

The scene is made of flat faces in metres (x right, y up, z ahead of the camera), sorted from
far to near and painted in that order. What stands at a place depends on the place, so that
the houses of a street come nearer from one image of a sequence to the next, and how green it
is varies over some hundred metres (`greenery`). The light depends on the capture date.
"""

import io
import math
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from vsvi_assets.sandbox.world import StreetImage

Colour = tuple[float, float, float]
Point = tuple[float, float, float]

_CAMERA_HEIGHT = 2.3
_NEAR = 0.7
_FAR = 150.0
_QUALITY = 86

_BRICKS: tuple[Colour, ...] = (
    (150, 82, 62),
    (128, 70, 58),
    (172, 108, 78),
    (196, 168, 132),
    (214, 204, 186),
    (160, 132, 108),
    (118, 92, 80),
    (224, 214, 202),
    (182, 150, 120),
    (146, 140, 134),
)
_ROOFS: tuple[Colour, ...] = ((142, 74, 52), (96, 66, 58), (84, 86, 92), (118, 62, 48))
_DOORS: tuple[Colour, ...] = ((40, 60, 50), (70, 34, 32), (36, 44, 70), (92, 70, 46), (50, 50, 52))
_CARS: tuple[Colour, ...] = (
    (38, 42, 48),
    (170, 174, 178),
    (122, 30, 32),
    (40, 66, 108),
    (214, 216, 216),
    (88, 92, 94),
    (70, 96, 84),
)
_AWNINGS: tuple[Colour, ...] = ((150, 40, 36), (40, 92, 72), (46, 62, 110), (196, 150, 60))


def draw(image: StreetImage, size: str) -> bytes:
    """Draw the picture of an image and return it as a JPEG.

    Parameters
    ----------
    size
        `original`, or the width in pixels.
    """
    width = image.width if size == "original" else int(size)
    height = round(width * image.height / image.width)
    # Drawn larger, so that scaling it down smooths the edges; panoramas have pixels to spare
    detail = 1.0 if image.is_pano and width > 1024 else 1.5
    canvas = _Canvas(round(width * detail), round(height * detail), image)
    scene = _Scene(image)
    canvas.paint_sky(scene)
    canvas.paint(scene)
    picture = canvas.picture.resize((width, height), Image.Resampling.BILINEAR)
    picture = ImageChops.add(picture.point(scene.light.table()), _grain(width, height), 1, -128)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def greenery(lon: float, lat: float) -> float:
    """Return how green a place is, from 0 (stone) to 1 (a park); it varies smoothly."""
    x, y = lon * 1180, lat * 1940
    wave = math.sin(x + 1.3 * math.sin(y * 0.7)) + math.sin(y * 1.3 + 0.8 * math.sin(x * 0.9 + 2))
    return min(1.0, max(0.0, 0.5 + 0.32 * wave))


def _dim(colour: Colour, light: float) -> Colour:
    return colour[0] * light, colour[1] * light, colour[2] * light


class _Light:
    """Sky and colours of an hour: season, weather and the sun's place."""

    def __init__(self, captured_at: int) -> None:
        moment = datetime.fromtimestamp(captured_at / 1000, UTC)
        self.season = moment.month % 12 // 3
        rng = random.Random(moment.toordinal())
        self.weather = rng.choices(("clear", "fair", "grey"), (3, 4, 3))[0]
        hour = moment.hour + moment.minute / 60 + 1
        self.azimuth = math.radians(hour * 15)
        low = min(1.0, abs(hour - 13) / 7) ** 2
        clouded = self.weather == "grey"
        level = 0.98 - 0.22 * low - 0.14 * clouded
        warmth = 0.11 * low * (not clouded)
        self.tint: Colour = (level + warmth, level, level - warmth * 1.3 + 0.02 * clouded)
        self.contrast = 0.08 if clouded else 0.3
        self.haze: Colour = (206, 208, 210) if clouded else (208, 217, 226)

    def table(self) -> list[int]:
        """Return the lookup table that gives a picture the tint of the hour."""
        return [min(255, round(value * share)) for share in self.tint for value in range(256)]


class _Scene:
    """What stands around the camera, as faces in metres and in the order to paint them."""

    def __init__(self, image: StreetImage) -> None:
        self.light = _Light(image.captured_at)
        self.both_ways = image.is_pano
        self.points: list[Point] = []
        self.colours: list[Colour] = []
        self.items: list[tuple[float, int, int, tuple[int, float, Point] | None]] = []

        east, north = image.lon * 111_320 * math.cos(math.radians(image.lat)), image.lat * 111_200
        # The street's axis, and the camera's place along it; both directions share one axis.
        axis = round(image.compass_angle / 15) % 24
        self.direction = 1 if axis < 12 else -1
        angle = math.radians(axis % 12 * 15)
        self.along = east * math.sin(angle) + north * math.cos(angle)
        across = east * math.cos(angle) - north * math.sin(angle)
        self.street = axis % 12 * 1_000_003 + round(across / 60)
        self.green = greenery(image.lon, image.lat)

        self.rng = rng = random.Random(self.street)
        self.road = rng.choice((2.8, 3.2, 3.6, 4.4))
        self.pavement = rng.choice((2.0, 2.6, 3.4))
        self.cycle_lane = rng.random() < 0.35 and self.road > 3
        self.cobbled = rng.random() < 0.3
        self.asphalt = (122, 106, 98) if self.cobbled else (96, 97, 100)
        self.bend = rng.uniform(-1, 1) * 0.0006
        self.centre = -0.45 * self.road if self.road > 3 else -0.1
        self.storeys = rng.choice((2, 3, 3, 4)) - (self.green > 0.55)
        facing = math.radians(image.compass_angle) - self.light.azimuth
        self.sun_side = math.sin(facing)

        self._ground()
        self.ground_faces = len(self.points) // 4
        self._end_of_the_street()
        for side in (-1, 1):
            self._houses(side)
            self._trees(side)
            self._parked_cars(side)
            self._lamps(side)
        self._traffic(random.Random(image.id))

    # Faces

    def _along(
        self, x0: float, y0: float, x1: float, y1: float, z0: float, z1: float, colour: Colour
    ) -> None:
        """A rectangle that follows the street."""
        if not self.both_ways:
            if z1 <= _NEAR:
                return
            z0 = max(z0, _NEAR)
        self.points += ((x0, y0, z0), (x1, y1, z0), (x1, y1, z1), (x0, y0, z1))
        self.colours.append(colour)

    def _facing(
        self, x0: float, y0: float, x1: float, y1: float, z: float, colour: Colour, top: float = 0
    ) -> None:
        """A rectangle across the street; `top` narrows its upper edge, towards a gable."""
        if z <= _NEAR and not self.both_ways:
            return
        inset = (x1 - x0) * top / 2
        self.points += ((x0, y0, z), (x1, y0, z), (x1 - inset, y1, z), (x0 + inset, y1, z))
        self.colours.append(colour)

    def _item(
        self, depth: float, first: int, sprite: tuple[int, float, Point] | None = None
    ) -> None:
        """Close an item that began with face number `first`, to be painted by its depth."""
        self.items.append((depth, first, len(self.colours), sprite))

    def _slots(self, length: float, reach: float) -> Iterator[tuple[int, float]]:
        """Yield the lots along the street, each `length` metres, with their z."""
        behind = reach if self.both_ways else 12.0
        low, high = sorted(
            (self.along - self.direction * behind, self.along + self.direction * reach)
        )
        for number in range(math.floor(low / length), math.floor(high / length)):
            edge = (number + (self.direction < 0)) * length
            yield number, self.direction * (edge - self.along)

    def _seeded(self, kind: int, side: int, number: int) -> random.Random:
        """Seed the generator for one lot: the same from whichever direction it is seen."""
        self.rng.seed(((self.street * 31 + kind) * 7 + side * self.direction) * 1_000_003 + number)
        return self.rng

    def _stretches(self) -> list[tuple[float, float]]:
        """Cut the street lengthwise, finely where it is near."""
        ahead = [_NEAR, 1.5, 3, 5, 8, 12, 18, 26, 40, 60, 90, _FAR]
        if self.both_ways:
            ahead = [-z for z in ahead[::-1]] + [-0.3, 0.3] + ahead
        return list(pairwise(ahead))

    # Ground

    def _ground(self) -> None:
        road, c = self.road, self.centre
        kerb = road + 0.18
        walk = kerb + self.pavement
        asphalt = self.asphalt
        paving: Colour = (158, 152, 144)
        lawn = self._leaf((98, 122, 62), 0.6)
        beyond = lawn if self.green > 0.5 else (132, 126, 118)
        shaded = 1 - self.light.contrast * 0.55
        for z0, z1 in self._stretches():
            for side in (-1, 1):
                self._along(c + side * walk, 0.1, c + side * 70, 0.1, z0, z1, beyond)
                self._along(c + side * kerb, 0.12, c + side * walk, 0.12, z0, z1, paving)
                self._along(c + side * road, 0, c + side * road, 0.12, z0, z1, (120, 118, 116))
                self._along(c + side * road, 0.12, c + side * kerb, 0.12, z0, z1, (186, 184, 180))
                self._along(0.0, 0, c + side * road, 0, z0, z1, asphalt)
                light = shaded if side * self.sun_side > 0.25 else 1.0
                if light < 1:
                    self._along(
                        c + side * kerb, 0.12, c + side * walk, 0.12, z0, z1, _dim(paving, light)
                    )
                    dark = _dim(asphalt, light)
                    self._along(c + side * road * 0.45, 0, c + side * road, 0, z0, z1, dark)
                if self.cycle_lane:
                    lane = _dim((146, 74, 62), light)
                    self._along(c + side * (road - 1.3), 0, c + side * road, 0, z0, z1, lane)
        if self.cobbled:
            return
        white: Colour = (222, 222, 216)
        for number, z in self._slots(2.0, 80):
            if number % 3 == 0 and self.road > 3:
                self._along(c - 0.07, 0, c + 0.07, 0, z, z + 2, white)
            if self.cycle_lane and number % 2 == 0:
                for side in (-1, 1):
                    x = c + side * (road - 1.3)
                    self._along(x - 0.06, 0, x + 0.06, 0, z, z + 1, white)
        for number, z in self._slots(1.0, 60):
            # A zebra crossing every 90 m
            if number % 90 < 4:
                stripe = road / 5
                for step in range(5):
                    x = c - road + (2 * step + 0.5) * stripe
                    self._along(x, 0, x + stripe, 0, z, z + 1, white)

    def _end_of_the_street(self) -> None:
        first = len(self.colours)
        for number in range(14):
            rng = random.Random(self.street * 17 + number)
            x = -70 + number * 10
            self._facing(x, 0, x + 10, rng.uniform(5, 11), _FAR, rng.choice(_BRICKS))
            if self.both_ways and abs(x + 5) > 5:
                self._facing(x, 0, x + 10, rng.uniform(5, 11), -_FAR, rng.choice(_BRICKS))
        self._item(_FAR + 10, first)

    # Houses

    def _houses(self, side: int) -> None:
        detached = self.green > 0.58
        length = 9.0 if detached else 6.6
        for number, z in self._slots(length, 130):
            rng = self._seeded(1, side, number)
            if rng.random() < (self.green - 0.45) * 0.8:
                continue
            setback = 3.5 + rng.uniform(0, 1.2) if detached else 0.0
            gap = rng.uniform(1.2, 2.6) if detached else 0.0
            first = len(self.colours)
            self._house(rng, side, z, z + length - gap, setback)
            if detached:
                self._hedge(rng, side, z, z + length)
            self._item(abs(z + length / 2), first)

    def _house(self, rng: random.Random, side: int, z0: float, z1: float, setback: float) -> None:
        x = self.centre + side * (self.road + 0.18 + self.pavement + setback)
        brick, roof = rng.choice(_BRICKS), rng.choice(_ROOFS)
        storeys = max(1, self.storeys + rng.choice((-1, 0, 0, 0, 1)))
        storey = rng.uniform(2.8, 3.3)
        height = storeys * storey + 0.4
        light = 1 - self.light.contrast * max(0.0, side * self.sun_side)
        wall = _dim(brick, light)
        end = _dim(brick, 0.78)
        far, pitch = x + side * 8, rng.choice((0.3, 2.2, 2.8))
        # The end wall that is turned towards the camera
        z_end = z0 if z0 + z1 > 0 else z1
        left, right = min(x, far), max(x, far)
        self._facing(left, 0, right, height, z_end, end)
        self._facing(left, height, right, height + pitch, z_end, end, top=1)
        self._along(x - side * 0.25, height, x + side * 4, height + pitch, z0, z1, roof)
        self._along(x, 0, x, height, z0, z1, wall)
        self._along(x, height - 0.25, x, height, z0, z1, _dim(wall, 0.7))
        near = min(abs(z0), abs(z1)) < 45
        if near:
            plinth = _dim(wall, 0.62)
            self._along(x, 0, x, 0.5, z0, z1, plinth)
        if pitch > 1 and rng.random() < 0.4 and min(abs(z0), abs(z1)) > 6:
            z = z0 + (z1 - z0) * 0.4
            self._facing(
                x + side * 1.2 - 0.7, height + 0.4, x + side * 1.2 + 0.7, height + 2, z, end
            )
        shop = self.green < 0.42 and rng.random() < 0.42
        door = rng.choice(_DOORS)
        windows = max(2, round((z1 - z0) / 2.3))
        step = (z1 - z0) / windows
        entrance = rng.randrange(windows)
        tall, broad = rng.uniform(1.35, 1.8), rng.uniform(0.5, 0.62) * step
        for floor in range(storeys):
            sill = floor * storey + 0.95
            if floor == 0 and shop:
                self._shop(rng, side, x, z0, z1)
                continue
            for number in range(windows):
                z = z0 + (number + 0.5) * step
                if floor == 0 and number == entrance:
                    self._along(x, 0.1, x, 2.4, z - 0.55, z + 0.55, (225, 222, 214))
                    self._along(x, 0.1, x, 2.25, z - 0.45, z + 0.45, door)
                    continue
                self._window(rng, x, sill, z, broad, tall, near)

    def _window(
        self,
        rng: random.Random,
        x: float,
        sill: float,
        z: float,
        broad: float,
        tall: float,
        near: bool,
    ) -> None:
        half = broad / 2
        if near:
            frame: Colour = (232, 230, 222)
            self._along(x, sill - 0.1, x, sill + tall + 0.1, z - half - 0.1, z + half + 0.1, frame)
        shine = rng.uniform(0, 46)
        glass = (44 + shine * 0.8, 54 + shine, 66 + shine * 1.15)
        self._along(x, sill, x, sill + tall, z - half, z + half, glass)
        if near:
            bright = (glass[0] + 34, glass[1] + 38, glass[2] + 42)
            self._along(x, sill + tall * 0.55, x, sill + tall, z - half, z + half * 0.05, bright)
            self._along(x, sill, x, sill + tall, z - 0.04, z + 0.04, (226, 224, 216))

    def _shop(self, rng: random.Random, side: int, x: float, z0: float, z1: float) -> None:
        sign, inside = rng.choice(_AWNINGS), rng.uniform(0, 60)
        self._along(
            x, 0.3, x, 2.5, z0 + 0.3, z1 - 0.3, (64 + inside, 62 + inside, 56 + inside * 0.8)
        )
        for z in (z0 + (z1 - z0) * part for part in (0.33, 0.66)):
            self._along(x, 0.3, x, 2.5, z - 0.05, z + 0.05, (40, 40, 42))
        self._along(x, 2.5, x, 3.0, z0 + 0.2, z1 - 0.2, sign)
        if rng.random() < 0.6:
            lit = _dim(sign, 1.15)
            self._along(x, 2.6, x - side * 1.1, 2.15, z0 + 0.3, z1 - 0.3, lit)

    def _hedge(self, rng: random.Random, side: int, z0: float, z1: float) -> None:
        x = self.centre + side * (self.road + 0.3 + self.pavement)
        leaf = self._leaf((58, 84, 42), 0.35)
        tall = rng.uniform(0.7, 1.2)
        dark = _dim(leaf, 0.8)
        self._along(x, tall, x + side * 0.7, tall, z0, z1 - 1.3, leaf)
        self._along(x, 0, x, tall, z0, z1 - 1.3, dark)

    # What stands on the pavement and on the road

    def _trees(self, side: int) -> None:
        for number, z in self._slots(7.0, 120):
            rng = self._seeded(2, side, number)
            z += rng.uniform(0, 3)
            if rng.random() < self.green * 1.15 - 0.14 and abs(z) > 3.2:
                x = self.centre + side * (self.road + 0.9)
                height = rng.uniform(5, 7.5) + 3 * self.green
                self._item(abs(z), len(self.colours), (rng.randrange(4), height, (x, 0.1, z)))
            if self.green > 0.5 and rng.random() < self.green:
                x = self.centre + side * (self.road + self.pavement + rng.uniform(12, 24))
                height = rng.uniform(8, 13)
                self._item(abs(z) + 9, len(self.colours), (rng.randrange(4), height, (x, 0.1, z)))

    def _parked_cars(self, side: int) -> None:
        for number, z in self._slots(6.0, 90):
            rng = self._seeded(3, side, number)
            if self.road > 3 and rng.random() < 0.24 and abs(z + 2.2) > 4.5:
                self._car(rng, self.centre + side * (self.road - 1.0), z + 0.8, side)

    def _traffic(self, rng: random.Random) -> None:
        if rng.random() < 0.4:
            self._car(rng, self.centre + self.road * 0.45, rng.uniform(14, 45), 1)
        if rng.random() < 0.3 and self.road > 3:
            self._car(rng, self.centre - self.road * 0.45, rng.uniform(10, 50), -1)

    def _car(self, rng: random.Random, x: float, z: float, side: int) -> None:
        first = len(self.colours)
        paint, van = rng.choice(_CARS), rng.random() < 0.15
        wide, long, roof = 0.86, 4.2, 2.1 if van else 1.45
        ahead = z > -2
        near, far = (z, z + long) if ahead else (z + long, z)
        inwards = -1 if x > 0 else 1
        flank = x + inwards * wide
        dark = _dim(paint, 0.72)
        low = min(near, far)
        glass: Colour = (52, 60, 68)
        self._along(
            x - wide - 0.1, 0.02, x + wide + 0.1, 0.02, low - 0.2, low + long + 0.2, (58, 58, 61)
        )
        self._along(flank, 0.28, flank, 0.95, low, low + long, dark)
        cabin = (low + 0.25, low + 3.0) if ahead else (low + 1.2, low + 3.95)
        self._along(flank, 0.95, x + inwards * 0.68, roof, *cabin, dark)
        self._along(
            flank - inwards * 0.02,
            1.0,
            x + inwards * 0.7,
            roof - 0.1,
            cabin[0] + 0.2,
            cabin[1] - 0.3,
            glass,
        )
        self._along(x - 0.68, roof, x + 0.68, roof, *cabin, paint)
        for wheel in (low + 0.8, low + long - 0.8):
            self._along(flank, 0, flank, 0.62, wheel - 0.31, wheel + 0.31, (26, 26, 28))
        self._facing(x - wide, 0.28, x + wide, 0.98, near, paint)
        window = cabin[0] if ahead else cabin[1]
        self._facing(x - wide, 0.98, x + wide, roof, window, paint, top=0.2)
        self._facing(x - 0.7, 1.02, x + 0.7, roof - 0.1, window - 0.01, glass, top=0.14)
        lamp: Colour = (168, 34, 30) if (side > 0) == ahead else (236, 232, 214)
        for edge in (x - wide + 0.02, x + wide - 0.3):
            self._facing(edge, 0.68, edge + 0.28, 0.88, near, lamp)
        self._facing(x - 0.26, 0.5, x + 0.26, 0.62, near, (226, 186, 60))
        self._facing(x - wide, 0.2, x + wide, 0.4, near, (44, 44, 46))
        self._item(abs(near), first)

    def _lamps(self, side: int) -> None:
        for number, z in self._slots(28.0, 110):
            if (number + (side * self.direction > 0)) % 2 or abs(z) < 2.5:
                continue
            first = len(self.colours)
            x = self.centre + side * (self.road + 0.5)
            metal: Colour = (72, 78, 76)
            self._facing(x - 0.07, 0, x + 0.07, 6, z, metal)
            arm = sorted((x, x - side * 1.3))
            self._facing(arm[0], 5.9, arm[1], 6.02, z, metal)
            self._facing(x - side * 1.3 - 0.3, 5.82, x - side * 1.3 + 0.3, 5.98, z, (226, 222, 200))
            self._item(abs(z), first)

    def _leaf(self, summer: Colour, change: float) -> Colour:
        """Return the season's colour of something green; `change`: how far it goes with it."""
        towards: Colour = ((116, 110, 84), (122, 152, 70), summer, (158, 112, 48))[
            self.light.season
        ]
        r, g, b = (a + (b - a) * change for a, b in zip(summer, towards, strict=True))
        return r, g, b


class _Canvas:
    """A picture in the making: a camera's view ahead, or all around for a panorama."""

    def __init__(self, width: int, height: int, image: StreetImage) -> None:
        self.picture = Image.new("RGB", (width, height))
        self.panorama = image.is_pano
        self.compass_angle = image.compass_angle
        self.horizon = height / 2 if self.panorama else height * 0.48
        self.focal = width * 0.62

    def paint_sky(self, scene: _Scene) -> None:
        """Paint the sky in the direction of view."""
        sky = _sky(scene.light.weather)
        width, horizon = self.picture.width, math.ceil(self.horizon)
        degree = sky.width / 720
        span = 360 if self.panorama else 78
        left = (self.compass_angle - span / 2) % 360 * degree
        low = 0 if self.panorama else sky.height * 0.45
        part = sky.crop((round(left), round(low), round(left + span * degree), sky.height))
        self.picture.paste(part.resize((width, horizon), Image.Resampling.BILINEAR), (0, 0))
        # Under all faces: the far plain, and what lies right under the camera
        red, green, blue = (round(value) for value in scene.light.haze)
        self.picture.paste((red - 40, green - 36, blue - 44), (0, horizon, *self.picture.size))
        self.picture.paste(scene.asphalt, (0, horizon * 3 // 2, *self.picture.size))

    def paint(self, scene: _Scene) -> None:
        """Paint the faces and trees from far to near."""
        points = np.array(scene.points).reshape(-1, 4, 3)
        colours = self._lit(scene, np.array(scene.colours), np.abs(points[:, :, 2]).mean(axis=1))
        if self.panorama:
            # Straight edges are curves in an equirectangular picture
            share = np.linspace(0, 1, 5)[:-1, None]
            points = np.concatenate(
                [
                    points[:, None, i] * (1 - share) + points[:, None, (i + 1) % 4] * share
                    for i in range(4)
                ],
                axis=1,
            )
        points[..., 0] += scene.bend * points[..., 2] * np.abs(points[..., 2])
        shapes = self._project(points).reshape(len(points), -1).tolist()
        paints = [tuple(colour) for colour in colours.tolist()]
        polygon = self._polygon()
        for number in range(scene.ground_faces):
            polygon(shapes[number], paints[number])
        for _, first, end, sprite in sorted(scene.items, key=lambda item: -item[0]):
            for number in range(first, end):
                polygon(shapes[number], paints[number])
            if sprite is not None:
                self._paint_tree(scene, *sprite)

    def _polygon(self) -> Callable[[list[float], tuple[int, ...]], None]:
        """Return Pillow's function; one that goes on at the other side for a panorama."""
        polygon, width = ImageDraw.Draw(self.picture).polygon, self.picture.width
        if not self.panorama:
            return polygon

        def paint(shape: list[float], colour: tuple[int, ...]) -> None:
            polygon(shape, colour)
            across = shape[::2]
            shift = width * ((min(across) < 0) - (max(across) > width))
            if shift:
                shape = shape.copy()
                shape[::2] = [x + shift for x in across]
                polygon(shape, colour)

        return paint

    def _lit(
        self, scene: _Scene, colours: NDArray[np.float64], depth: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return the colours, paler with distance."""
        clear = np.exp(-depth / 170)[:, None]
        lit = colours * clear + np.array(scene.light.haze) * (1 - clear)
        return lit.clip(0, 255).astype(np.int64)

    def _project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pixel positions of points in metres."""
        x, y, z = points[..., 0], points[..., 1] - _CAMERA_HEIGHT, points[..., 2]
        if not self.panorama:
            centre = self.picture.width / 2
            return np.stack([centre + self.focal * x / z, self.horizon - self.focal * y / z], -1)
        azimuth = np.arctan2(x, z)
        # What crosses the seam behind the camera stays on the side where most of it is
        middle = azimuth.mean(axis=-1, keepdims=True)
        azimuth = np.where(azimuth - middle > math.pi, azimuth - 2 * math.pi, azimuth)
        azimuth = np.where(middle - azimuth > math.pi, azimuth + 2 * math.pi, azimuth)
        altitude = np.arctan2(y, np.hypot(x, z))
        pixel = self.picture.width / (2 * math.pi)
        return np.stack([(azimuth + math.pi) * pixel, self.horizon - altitude * pixel], -1)

    def _paint_tree(self, scene: _Scene, kind: int, height: float, foot: Point) -> None:
        x, y, z = foot
        x += scene.bend * z * abs(z)
        if z <= _NEAR and not self.panorama:
            return
        ends = self._project(np.array([[[x, y, z], [x, y + height, z]]]))[0]
        (middle, bottom), (_, top) = ends.round().astype(int).tolist()
        season, paleness = scene.light.season, min(3, int(abs(z) / 30))
        # In steps, so that the scaled trees can be kept; the largest are cut to what is seen
        step = round(math.log(max(bottom - top, 4)) / _TREE_STEP)
        if bottom - top < _LARGEST_TREE_KEPT:
            tree, outline = _tree(kind, season, step, paleness, scene.light.haze)
            left, top = middle - tree.width // 2, bottom - tree.height
        else:
            grown, grown_outline = _grow_tree(kind, season)[-1]
            scale = (bottom - top) / grown.height
            left = middle - round(grown.width * scale / 2)
            right = min(left + round(grown.width * scale), self.picture.width)
            seen = max(left, 0), max(top, 0), right, min(bottom, self.picture.height)
            size = seen[2] - seen[0], seen[3] - seen[1]
            if min(size) <= 0:
                return
            box = tuple(
                min((edge - origin) / scale, limit)
                for edge, origin, limit in zip(seen, (left, top) * 2, grown.size * 2, strict=True)
            )
            tree, outline = (
                part.resize(size, Image.Resampling.NEAREST, box=box)
                for part in (grown, grown_outline)
            )
            left, top = seen[:2]
        self.picture.paste(tree, (left, top), outline)


@lru_cache(maxsize=3)
def _sky(weather: str) -> Image.Image:
    """Return a sky: twice around from left to right, from the zenith down to the horizon."""
    high, low, cover = {
        "clear": ((74, 128, 196), (196, 216, 232), 0.75),
        "fair": ((96, 140, 194), (206, 218, 228), 0.5),
        "grey": ((150, 158, 168), (206, 208, 210), 0.12),
    }[weather]
    height, width = 400, 1440
    down = np.linspace(0, 1, height)[:, None, None] ** 1.3
    blue = np.array(high) * (1 - down) + np.array(low) * down
    clouds = _noise(width, height * 2, roughness=1.75)[:height] * 0.5 + 0.5
    share = np.clip((clouds - cover) / 0.32, 0, 1)[..., None] * 0.85
    white = np.array([242, 242, 244]) - 46 * np.clip(clouds[..., None] - 0.5, 0, 1)
    if weather == "grey":
        white = np.array([168, 172, 178]) + 60 * clouds[..., None]
    sky = (blue * (1 - share) + white * share).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([sky, sky], axis=1))


@lru_cache(maxsize=8)
def _grain(width: int, height: int) -> Image.Image:
    """Return the sensor's noise around 128, the same for all pictures of a size."""
    fine = np.random.default_rng(7).normal(0, 4, (height, width))
    return Image.fromarray((128 + fine).clip(0, 255).astype(np.uint8)).convert("RGB")


def _noise(width: int, height: int, roughness: float) -> NDArray[np.float64]:
    """Return noise in [-1, 1] that is the smoother the higher the roughness, and that tiles."""
    rng = np.random.default_rng(11)
    across, down = np.fft.fftfreq(width)[None, :] * 1.8, np.fft.fftfreq(height)[:, None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(height, width))) / frequency**roughness
    values = np.fft.ifft2(spectrum).real
    return np.asarray(np.clip(values / np.abs(values).max() * 1.5, -1, 1))


_LARGEST_TREE_KEPT = 256
_TREE_STEP = 0.1
"""Trees are kept in heights of exp(0.1 * step) pixels"""


@lru_cache(maxsize=1024)
def _tree(
    kind: int, season: int, step: int, paleness: int, haze: Colour
) -> tuple[Image.Image, Image.Image]:
    """Return one of four trees and its outline, scaled, and paler by steps of 30 m."""
    height = round(math.exp(_TREE_STEP * step))
    grown, outline = next(
        pair
        for pair in _grow_tree(kind, season)
        if pair[0].height >= height or pair[0].height > 700
    )
    size = max(3, round(grown.width * height / grown.height)), height
    method = Image.Resampling.NEAREST  # The whole picture is smoothed in the end
    return grown.resize(size, method).point(_pale(paleness, haze)), outline.resize(size, method)


@lru_cache(maxsize=8)
def _pale(paleness: int, haze: Colour) -> list[int]:
    """Return the lookup table that makes a picture paler by steps of 30 m."""
    clear = math.exp(-30 * paleness / 170)
    return [round(value * clear + share * (1 - clear)) for share in haze for value in range(256)]


@lru_cache(maxsize=16)
def _grow_tree(kind: int, season: int) -> list[tuple[Image.Image, Image.Image]]:
    """Paint a tree, and its outline, in heights of 45 to 720 pixels.

    What lies outside of the outline has the tree's colour too, so that both can be scaled
    each by itself.
    """
    rng = random.Random(kind * 5 + 1)
    width, height = 760, 720
    base = ((92, 82, 64), (134, 164, 74), (76, 112, 48), (178, 124, 50))[season]
    tree, outline = Image.new("RGB", (width, height), base), Image.new("L", (width, height))
    paint, cut = ImageDraw.Draw(tree), ImageDraw.Draw(outline)
    slim = (0.88, 0.8, 0.82, 0.66)[kind]
    twigs: list[tuple[float, float]] = []

    def branch(x: float, y: float, angle: float, length: float, thick: int) -> None:
        tip = (x + math.sin(angle) * length * slim, y - math.cos(angle) * length)
        shade = rng.randrange(58, 72)
        paint.line([(x, y), tip], (shade + 14, shade + 2, shade - 10), width=thick)
        cut.line([(x, y), tip], 255, width=thick)
        if length < 72:
            twigs.append(tip)
        if length > 22:
            for turn in (-0.55, -0.05, 0.5):
                bent = (angle + turn + rng.uniform(-0.2, 0.2)) * 0.95
                branch(*tip, bent, length * rng.uniform(0.64, 0.78), max(2, round(thick * 0.6)))

    branch(width / 2, height, 0.0, 178, 26)
    if season:
        top, bottom = min(y for _, y in twigs), max(y for _, y in twigs)
        leaves = twigs * (3 if season == 2 else 2)
        rng.shuffle(leaves)
        for x, y in leaves:
            x, y = x + rng.gauss(0, 15), y + rng.gauss(0, 15)
            light = 1.12 - 0.5 * (y - top) / (bottom - top) - 0.0006 * (x - width / 2)
            light *= rng.uniform(0.78, 1.2)
            size = rng.uniform(3, 9)
            leaf = [x - size, y - size * 0.8, x + size, y + size * 0.8]
            red, green, blue = (min(255, round(value * light)) for value in base)
            paint.ellipse(leaf, (red, green, blue))
            cut.ellipse(leaf, 255)
    return [(tree.reduce(by), outline.reduce(by)) for by in (16, 8, 4, 2)] + [(tree, outline)]
