"""Pictures of streets, drawn on request: always the same ones for the same image.

The scene is made of flat faces in metres (x right, y up, z ahead of the camera), sorted from
far to near and painted in that order. What stands at a place depends on the place, so that
the houses of a street come nearer from one image of a sequence to the next, and how green it
is varies over some hundred metres (`greenery`). The light depends on the capture date.
"""

import io
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from vsvi_assets.sandbox.world import StreetImage

Colour = tuple[float, float, float]
Point = tuple[float, float, float]
Tree = tuple[Point, float, int]
"""Where it stands, metres of height, and the seed of its crown"""

_CAMERA_HEIGHT = 2.3
_NEAR = 0.7
_FAR = 150.0
_QUALITY = 86

# fmt: off
_BRICKS: tuple[Colour, ...] = (
    (150, 82, 62), (128, 70, 58), (172, 108, 78), (196, 168, 132), (214, 204, 186),
    (160, 132, 108), (118, 92, 80), (224, 214, 202), (146, 140, 134),
)
# fmt: on
_ROOFS: tuple[Colour, ...] = ((142, 74, 52), (96, 66, 58), (84, 86, 92), (118, 62, 48))
_DOORS: tuple[Colour, ...] = ((40, 60, 50), (70, 34, 32), (36, 44, 70), (92, 70, 46))
_CARS: tuple[Colour, ...] = ((38, 42, 48), (170, 174, 178), (122, 30, 32), (40, 66, 108))
_AWNINGS: tuple[Colour, ...] = ((150, 40, 36), (40, 92, 72), (46, 62, 110), (196, 150, 60))
_LEAVES: tuple[Colour, ...] = ((104, 94, 78), (134, 164, 74), (76, 112, 48), (178, 124, 50))
"""In winter, spring, summer and autumn"""


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
    scene = _Scene(image)
    canvas = _Canvas(round(width * detail), round(height * detail), image)
    canvas.paint(scene)
    picture = canvas.picture.resize((width, height), Image.Resampling.BILINEAR)
    picture = picture.point([round(share * value) for share in scene.tint for value in range(256)])
    picture = ImageChops.add(picture, _grain(width, height), 1, -128)
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


class _Scene:
    """What stands around the camera: faces, and the items that they and trees make up."""

    def __init__(self, image: StreetImage) -> None:
        self.points: list[Point] = []
        self.colours: list[Colour] = []
        self.items: list[tuple[float, int, int, Tree | None]] = []
        """Depth, first and last face, and the tree of each item"""
        self.both_ways = image.is_pano

        moment = datetime.fromtimestamp(image.captured_at / 1000, UTC)
        self.season = moment.month % 12 // 3
        self.is_grey = random.Random(moment.toordinal()).random() < 0.3
        low_sun = min(1.0, abs(moment.hour - 12) / 7) ** 2 * (not self.is_grey)
        level = 0.98 - 0.14 * self.is_grey - 0.2 * low_sun
        self.tint: Colour = (level + 0.02 * low_sun, level, level - 0.1 * low_sun)

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
        self.road, self.pavement = rng.choice((2.8, 3.2, 3.6, 4.4)), rng.choice((2.0, 2.6, 3.4))
        self.has_cycle_lane = rng.random() < 0.35 and self.road > 3
        self.asphalt: Colour = (122, 106, 98) if rng.random() < 0.3 else (96, 97, 100)
        self.centre = -0.45 * self.road if self.road > 3 else -0.1
        self.storeys = rng.choice((2, 3, 3, 4)) - (self.green > 0.55)

        self._ground()
        self.ground_faces = len(self.colours)
        for side in (-1, 1):
            self._houses(side)
            self._trees(side)
            self._parked_cars(side)
        rng = random.Random(image.id)
        if rng.random() < 0.5:
            self._car(rng, self.centre + self.road * 0.45, rng.uniform(14, 45))

    def _along(
        self, x0: float, y0: float, x1: float, y1: float, z0: float, z1: float, colour: Colour
    ) -> None:
        """Add a rectangle that follows the street."""
        if not self.both_ways:
            if z1 <= _NEAR:
                return
            z0 = max(z0, _NEAR)
        self.points += ((x0, y0, z0), (x1, y1, z0), (x1, y1, z1), (x0, y0, z1))
        self.colours.append(colour)

    def _facing(
        self, x0: float, y0: float, x1: float, y1: float, z: float, colour: Colour, top: float = 0
    ) -> None:
        """Add a rectangle across the street; `top` narrows its upper edge, towards a gable."""
        if z > _NEAR or self.both_ways:
            inset = (x1 - x0) * top / 2
            self.points += ((x0, y0, z), (x1, y0, z), (x1 - inset, y1, z), (x0 + inset, y1, z))
            self.colours.append(colour)

    def _item(self, depth: float, first: int, tree: Tree | None = None) -> None:
        """Close an item that began with face number `first`, to be painted by its depth."""
        self.items.append((depth, first, len(self.colours), tree))

    def _lots(
        self, kind: int, side: int, length: float, reach: float
    ) -> Iterator[tuple[float, random.Random]]:
        """Yield the z of lots along the street, each `length` metres, with what decides on them.

        That is a generator with a seed of the place: the same from whichever direction it is seen.
        """
        behind = reach if self.both_ways else 12.0
        low, high = sorted(
            (self.along - self.direction * behind, self.along + self.direction * reach)
        )
        for number in range(math.floor(low / length), math.floor(high / length)):
            seed = ((self.street * 31 + kind) * 7 + side * self.direction) * 1_000_003 + number
            edge = (number + (self.direction < 0)) * length
            self.rng.seed(seed)
            yield self.direction * (edge - self.along), self.rng

    def _ground(self) -> None:
        c, road = self.centre, self.road
        kerb = road + 0.18
        walk = kerb + self.pavement
        lawn = self._leaf(0.9) if self.green > 0.5 else (132, 126, 118)
        # Cut lengthwise, finely where it is near
        ahead = [_NEAR, 1.5, 3, 5, 8, 12, 18, 26, 40, 60, 90, _FAR]
        if self.both_ways:
            ahead = [-z for z in ahead[::-1]] + [-0.3, 0.3] + ahead
        for z0, z1 in pairwise(ahead):
            for side in (-1, 1):
                self._along(c + side * walk, 0.1, c + side * 70, 0.1, z0, z1, lawn)
                self._along(c + side * kerb, 0.12, c + side * walk, 0.12, z0, z1, (158, 152, 144))
                self._along(c + side * road, 0.12, c + side * kerb, 0.12, z0, z1, (186, 184, 180))
                self._along(0.0, 0, c + side * road, 0.0, z0, z1, self.asphalt)
                if self.has_cycle_lane:
                    lane = c + side * (road - 1.3)
                    self._along(lane, 0, c + side * road, 0.0, z0, z1, (146, 74, 62))
        if road > 3:
            for z, _ in self._lots(0, 1, 6.0, 80):
                self._along(c - 0.07, 0, c + 0.07, 0, z, z + 2, (222, 222, 216))

    def _houses(self, side: int) -> None:
        detached = self.green > 0.58
        length = 9.0 if detached else 6.6
        for z, rng in self._lots(1, side, length, 130):
            if rng.random() > (self.green - 0.45) * 0.8:
                first = len(self.colours)
                setback, gap = (4.0, rng.uniform(1.2, 2.6)) if detached else (0.0, 0.0)
                self._house(rng, side, z, z + length - gap, setback)
                if detached:
                    x = self.centre + side * (self.road + 0.3 + self.pavement)
                    leaf = self._leaf(0.7)
                    self._along(x, 1.0, x + side * 0.7, 1.0, z, z + length - 1.3, leaf)
                    self._along(x, 0, x, 1.0, z, z + length - 1.3, _dim(leaf, 0.8))
                self._item(abs(z + length / 2), first)

    def _house(self, rng: random.Random, side: int, z0: float, z1: float, setback: float) -> None:
        x = self.centre + side * (self.road + 0.18 + self.pavement + setback)
        brick, storey = rng.choice(_BRICKS), rng.uniform(2.8, 3.3)
        storeys = max(1, self.storeys + rng.choice((-1, 0, 0, 1)))
        height, pitch = storeys * storey + 0.4, rng.choice((0.3, 2.2, 2.8))
        wall = _dim(brick, 0.9 if side > 0 and not self.is_grey else 1.0)
        # The end wall that is turned towards the camera
        z_end, (left, right) = z0 if z0 + z1 > 0 else z1, sorted((x, x + side * 8))
        self._facing(left, 0, right, height, z_end, _dim(brick, 0.78))
        self._facing(left, height, right, height + pitch, z_end, _dim(brick, 0.78), top=1)
        roof = rng.choice(_ROOFS)
        self._along(x - side * 0.25, height, x + side * 4, height + pitch, z0, z1, roof)
        self._along(x, 0, x, height, z0, z1, wall)
        self._along(x, height - 0.25, x, height, z0, z1, _dim(wall, 0.7))
        self._along(x, 0, x, 0.5, z0, z1, _dim(wall, 0.62))
        windows = max(2, round((z1 - z0) / 2.3))
        step, entrance, door = (z1 - z0) / windows, rng.randrange(windows), rng.choice(_DOORS)
        tall, half = rng.uniform(1.35, 1.8), rng.uniform(0.25, 0.31) * step
        is_shop = self.green < 0.42 and rng.random() < 0.42
        if is_shop:
            sign = rng.choice(_AWNINGS)
            self._along(x, 0.3, x, 2.5, z0 + 0.3, z1 - 0.3, (84, 82, 74))
            self._along(x, 2.5, x, 3.0, z0 + 0.2, z1 - 0.2, sign)
            self._along(x, 2.6, x - side * 1.1, 2.15, z0 + 0.3, z1 - 0.3, _dim(sign, 1.15))
        for floor in range(is_shop, storeys):
            for number in range(windows):
                z, sill = z0 + (number + 0.5) * step, floor * storey + 0.95
                if floor == 0 and number == entrance:
                    self._along(x, 0.1, x, 2.4, z - 0.55, z + 0.55, (225, 222, 214))
                    self._along(x, 0.1, x, 2.25, z - 0.45, z + 0.45, door)
                    continue
                shine, top = rng.uniform(0, 46), sill + tall
                frame = (sill - 0.1, x, top + 0.1, z - half - 0.1, z + half + 0.1)
                self._along(x, *frame, (232, 230, 222))
                glass: Colour = (44 + shine * 0.8, 54 + shine, 66 + shine * 1.15)
                self._along(x, sill, x, top, z - half, z + half, glass)
                self._along(x, sill, x, top, z - 0.04, z + 0.04, (226, 224, 216))

    def _trees(self, side: int) -> None:
        for z, rng in self._lots(2, side, 7.0, 120):
            z += rng.uniform(0, 3)
            if rng.random() < self.green * 1.15 - 0.14 and abs(z) > 3.2:
                foot = (self.centre + side * (self.road + 0.9), 0.1, z)
                tree = (foot, rng.uniform(5, 7.5) + 3 * self.green, rng.randrange(8))
                self._item(abs(z), len(self.colours), tree)
            if self.green > 0.5 and rng.random() < self.green:
                foot = (self.centre + side * (self.road + rng.uniform(14, 26)), 0.1, z)
                tree = (foot, rng.uniform(8, 13), rng.randrange(8))
                self._item(abs(z) + 9, len(self.colours), tree)

    def _parked_cars(self, side: int) -> None:
        for z, rng in self._lots(3, side, 6.0, 90):
            if self.road > 3 and rng.random() < 0.24 and abs(z + 2.2) > 4.5:
                self._car(rng, self.centre + side * (self.road - 1.0), z + 0.8)

    def _car(self, rng: random.Random, x: float, low: float) -> None:
        """Add a car from z = `low`, 4.2 m long, that is seen from behind or from its front."""
        first, paint = len(self.colours), rng.choice(_CARS)
        is_ahead = low > -2
        near = low if is_ahead else low + 4.2
        flank = x + math.copysign(0.86, -x)
        cabin = (low + 0.25, low + 3.0) if is_ahead else (low + 1.2, low + 3.95)
        glass: Colour = (52, 60, 68)
        self._along(x - 0.9, 0.02, x + 0.9, 0.02, low - 0.2, low + 4.4, (58, 58, 61))
        self._along(flank, 0.28, flank, 0.95, low, low + 4.2, _dim(paint, 0.72))
        self._along(flank, 0.95, x + (flank - x) * 0.8, 1.45, *cabin, _dim(paint, 0.72))
        self._along(flank, 1.0, x + (flank - x) * 0.8, 1.36, cabin[0] + 0.3, cabin[1] - 0.3, glass)
        self._along(x - 0.68, 1.45, x + 0.68, 1.45, *cabin, paint)
        for wheel in (low + 0.8, low + 3.4):
            self._along(flank, 0, flank, 0.62, wheel - 0.31, wheel + 0.31, (26, 26, 28))
        self._facing(x - 0.86, 0.28, x + 0.86, 0.98, near, paint)
        window = cabin[0] if is_ahead else cabin[1]
        self._facing(x - 0.86, 0.98, x + 0.86, 1.45, window, paint, top=0.2)
        self._facing(x - 0.7, 1.02, x + 0.7, 1.35, window, glass, top=0.14)
        for edge in (x - 0.84, x + 0.56):
            lamp: Colour = (168, 34, 30) if is_ahead else (236, 232, 214)
            self._facing(edge, 0.68, edge + 0.28, 0.88, near, lamp)
        self._facing(x - 0.26, 0.5, x + 0.26, 0.62, near, (226, 186, 60))
        self._facing(x - 0.86, 0.2, x + 0.86, 0.4, near, (44, 44, 46))
        self._item(abs(near), first)

    def _leaf(self, light: float) -> Colour:
        """Return the season's colour of lawns and hedges, which stay green in winter."""
        return _dim((112, 118, 84) if self.season == 0 else _LEAVES[min(self.season, 2)], light)


class _Canvas:
    """A picture in the making: a camera's view ahead, or all around for a panorama."""

    def __init__(self, width: int, height: int, image: StreetImage) -> None:
        self.picture = Image.new("RGB", (width, height))
        self.drawing = ImageDraw.Draw(self.picture)
        self.panorama = image.is_pano
        self.compass_angle = image.compass_angle
        self.horizon = height / 2 if self.panorama else height * 0.48
        self.focal = width * 0.62

    def paint(self, scene: _Scene) -> None:
        """Paint the sky, and then faces and trees from far to near."""
        self._paint_sky(scene)
        haze = np.array((206, 208, 210) if scene.is_grey else (208, 217, 226))
        points = np.array(scene.points).reshape(-1, 4, 3)
        clear = np.exp(-np.abs(points[:, :, 2]).mean(axis=1) / 170)[:, None]
        colours = np.array(scene.colours) * clear + haze * (1 - clear)
        if self.panorama:
            # Straight edges are curves in an equirectangular picture
            share = np.linspace(0, 1, 5)[:-1, None]
            following = np.roll(points, -1, axis=1)[:, :, None]
            points = (points[:, :, None] * (1 - share) + following * share).reshape(-1, 16, 3)
        shapes = self._project(points).reshape(len(points), -1).tolist()
        paints = [tuple(colour) for colour in colours.clip(0, 255).astype(int).tolist()]
        ground = (math.inf, 0, scene.ground_faces, None)
        for depth, first, last, tree in [ground, *sorted(scene.items, key=lambda item: -item[0])]:
            for number in range(first, last):
                self._polygon(shapes[number], paints[number])
            if tree is not None:
                self._paint_tree(scene.season, *tree, clear=math.exp(-depth / 170), haze=haze)

    def _paint_sky(self, scene: _Scene) -> None:
        sky = _sky(scene.is_grey)
        width, horizon = self.picture.width, math.ceil(self.horizon)
        span = 360 if self.panorama else 78
        left = (self.compass_angle - span / 2) % 360 * 2
        low = 0 if self.panorama else sky.height * 0.45
        part = sky.crop((round(left), round(low), round(left + span * 2), sky.height))
        self.picture.paste(part.resize((width, horizon), Image.Resampling.BILINEAR), (0, 0))
        # Under all faces: the far plain, and what lies right under the camera
        self.picture.paste((166, 178, 180), (0, horizon, *self.picture.size))
        under = tuple(round(value) for value in scene.asphalt)
        self.picture.paste(under, (0, horizon * 3 // 2, *self.picture.size))

    def _polygon(self, shape: list[float], colour: tuple[int, ...]) -> None:
        """Paint a polygon, which in a panorama goes on at the other side."""
        polygon, width = self.drawing.polygon, self.picture.width
        polygon(shape, colour)
        across = shape[::2]
        shift = width * ((min(across) < 0) - (max(across) > width))
        if self.panorama and shift:
            shape = shape.copy()
            shape[::2] = [x + shift for x in across]
            polygon(shape, colour)

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

    def _paint_tree(
        self,
        season: int,
        foot: Point,
        height: float,
        seed: int,
        clear: float,
        haze: NDArray[np.int64],
    ) -> None:
        """Paint a trunk with branches, and a crown of round tufts that are lit from above."""
        x, y, z = foot
        if z <= _NEAR and not self.panorama:
            return
        (middle, bottom), (_, top) = self._project(np.array([[x, y, z], [x, y + height, z]]))
        size = bottom - top
        if size < 3:
            return
        rng, paint = random.Random(seed), self.drawing
        veil = [(1 - clear) * value for value in haze.tolist()]

        def pale(colour: Colour) -> tuple[int, ...]:
            # Not NumPy, which takes ten times as long for three values
            return tuple(
                min(255, max(0, int(value * clear + white)))
                for value, white in zip(colour, veil, strict=True)
            )

        bark, thick = pale((74, 62, 52)), size * 0.035
        paint.line([middle, bottom, middle, bottom - size * 0.7], bark, width=max(1, round(thick)))
        ups = sorted(rng.uniform(0.38, 0.96) for _ in range(90))
        # Widest in the middle of the crown, and branches that rise
        tufts = [(rng.uniform(-0.34, 0.34) * (1.3 - abs(up - 0.62) * 2.9), up) for up in ups]
        for across, up in tufts[::2]:
            fork = [middle + across * size * 0.12, bottom - size * (0.22 + 0.5 * up)]
            tip = [middle + across * size, bottom - size * up]
            paint.line(
                [middle, bottom - size * (0.12 + 0.5 * up), *fork, *tip], bark, round(thick / 4)
            )
        for across, up in tufts if season else ():
            x, y, r = middle + across * size, bottom - size * up, size * rng.uniform(0.03, 0.065)
            colour = pale(_dim(_LEAVES[season], (0.6 + 0.5 * up) * rng.uniform(0.8, 1.15)))
            paint.ellipse([x - r, y - r * 0.85, x + r, y + r * 0.85], colour)


@lru_cache(maxsize=2)
def _sky(is_grey: bool) -> Image.Image:
    """Return a sky: twice around from left to right, from the zenith down to the horizon."""
    high, low = ((150, 158, 168), (206, 208, 210)) if is_grey else ((84, 134, 196), (200, 216, 230))
    down = np.linspace(0, 1, 400)[:, None, None] ** 1.3
    clear = np.array(high) * (1 - down) + np.array(low) * down
    # Noise that is smooth and goes on at the other side: most of it in long waves
    spectrum = np.fft.fft2(np.random.default_rng(11).normal(size=(400, 720)))
    frequency = np.hypot(np.fft.fftfreq(720)[None, :] * 1.8, np.fft.fftfreq(400)[:, None])
    frequency[0, 0] = np.inf
    clouds = np.fft.ifft2(spectrum / frequency**1.75).real
    cover = np.clip(clouds / np.abs(clouds).max() * 2 - 0.2, 0, 0.85)[..., None]
    sky = (clear * (1 - cover) + np.array((238, 239, 242)) * cover).astype(np.uint8)
    return Image.fromarray(np.concatenate([sky, sky], axis=1))


@lru_cache(maxsize=8)
def _grain(width: int, height: int) -> Image.Image:
    """Return the sensor's noise around 128, the same for all pictures of a size."""
    fine = np.random.default_rng(7).normal(0, 4, (height, width))
    return Image.fromarray((128 + fine).clip(0, 255).astype(np.uint8)).convert("RGB")
