"""Pictures of a city's data: small, quickly drawn, legible on light and dark pages alike.

Each has an opaque background of its own, so that it does not depend on the page around it.
Coordinates are in degrees (EPSG:4326).
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

import mercantile
import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vsvi_assets.city import Area, BoundingBox
from vsvi_assets.city.area import MAX_LATITUDE
from vsvi_assets.files import DataPath, content_of

PAPER, INK, FAINT = "#ffffff", "#1f2933", "#b4bdc8"
COVERED, UNCOVERED = "#1f6fb2", "#e8590c"
COLOUR_MAP = LinearSegmentedColormap.from_list("images", ["#93c9ee", "#1f6fb2", "#0b1f3a"])
WIDTH = 8.0
"""Inches."""

DOTS_PER_INCH = 110
PALETTE = 64
"""Colours of a picture."""

METRES_PER_DEGREE = 111_195.0
"""Of latitude, on a sphere with a radius of 6,371 km."""

THUMBNAIL = (168, 126)
THUMBNAILS_PER_ROW = 5

OSM = "© OpenStreetMap contributors"
MAPILLARY = "© Mapillary contributors"

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def markdown_picture(picture: bytes, description: str) -> str:
    """Return a PNG or JPEG as Markdown that needs no other file."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"![{description}](data:image/{kind};base64,{base64.b64encode(picture).decode()})"


def street_points_map(lines: NDArray[np.object_], lon: Floats, lat: Floats, area: Area) -> bytes:
    """Draw street points on the lines of their streets (shapely LineStrings), as PNG."""
    figure, axes = _map(area)
    _lines(axes, lines, color=FAINT, linewidth=0.8)
    _dots(axes, lon, lat, COVERED, len(lon))
    _finish(axes, f"{len(lon):,} street points", OSM)
    return _png(figure)


def tiles_map(images: Mapping[mercantile.Tile, int], area: Area) -> bytes:
    """Draw how many images each tile holds, and the city's area over them, as PNG.

    Tiles without an image stay empty.
    """
    columns = range(min(tile.x for tile in images), max(tile.x for tile in images) + 2)
    rows = range(min(tile.y for tile in images), max(tile.y for tile in images) + 2)
    counts = np.zeros((len(rows) - 1, len(columns) - 1), np.int64)
    for tile, count in images.items():
        counts[tile.y - rows[0], tile.x - columns[0]] = count
    zoom = next(iter(images)).z
    lon = np.array([mercantile.ul(column, rows[0], zoom).lng for column in columns])
    lat = np.array([mercantile.ul(columns[0], row, zoom).lat for row in rows])
    lat = lat.clip(-MAX_LATITUDE, MAX_LATITUDE)
    figure, axes = _map(Area(BoundingBox(west=lon[0], south=lat[-1], east=lon[-1], north=lat[0])))
    name = "bounding box" if area.polygons is None else "region"
    _fill(figure, axes, lon, lat, counts, f"images in a tile (the {name} in orange)")
    _lines(axes, _rings(area), color=UNCOVERED, linewidth=2)
    _finish(axes, f"{sum(images.values()):,} images in {len(images):,} tiles", MAPILLARY)
    return _png(figure)


def density_map(counts: Counts, area: Area) -> bytes:
    """Draw how many images lie in each cell of a grid over the area's box, as PNG.

    The rows of `counts` go from south to north, its columns from west to east.
    """
    figure, axes = _map(area)
    box = area.box
    height, width = counts.shape
    lon = np.linspace(box.west, box.east, width + 1)
    lat = np.linspace(box.south, box.north, height + 1)
    _fill(figure, axes, lon, lat, counts, "images in a cell")
    _finish(axes, f"{counts.sum():,} images", MAPILLARY)
    return _png(figure)


def selection_map(
    lon: Floats,
    lat: Floats,
    distance: Floats,
    area: Area,
    max_distance: float,
    streets: NDArray[np.object_] | None = None,
) -> bytes:
    """Draw street points with an image and those without one, and the distances, as PNG.

    Parameters
    ----------
    lon, lat
        The street points.
    distance
        Metres to the image selected for each of them; NaN where there is none.
    max_distance
        Metres.
    streets
        Lines to draw under the points.
    """
    without = np.isnan(distance)
    figure, axes = _map(area, histogram=True)
    if streets is not None and len(streets):
        _lines(axes, streets, color=FAINT, linewidth=0.6)
    for points, colour, label in (
        (~without, COVERED, "with an image"),
        (without, UNCOVERED, f"none within {max_distance:g} m"),
    ):
        _dots(
            axes,
            lon[points],
            lat[points],
            colour,
            len(lon),
            f"{np.count_nonzero(points):,} {label}",
        )
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
        labelcolor=INK,
        handletextpad=0.2,
        markerscale=8 / _marker_size(len(lon)),
    )
    _finish(axes, f"{len(lon):,} street points", f"{OSM}, {MAPILLARY}")
    below = figure.axes[1]
    below.hist(distance[~without], bins=40, range=(0, max_distance), color=COVERED)
    below.set_xlim(0, max_distance)
    _chart(below, "metres from the point to its image", "street points")
    return _png(figure)


def capture_years_chart(
    flat: Mapping[int, int], panoramas: Mapping[int, int], unknown: int
) -> bytes:
    """Draw how many images were taken in each year, flat ones and panoramas, as PNG.

    The number of those whose time is `unknown` stands beside the axis.
    """
    years = sorted({*flat, *panoramas})
    figure = _figure(3.2)
    axes = figure.add_subplot()
    heights = [flat.get(year, 0) for year in years]
    axes.bar(years, heights, color=COVERED, label=f"{sum(flat.values()):,} flat")
    axes.bar(
        years,
        [panoramas.get(year, 0) for year in years],
        bottom=heights,
        color=UNCOVERED,
        label=f"{sum(panoramas.values()):,} panoramas",
    )
    # Above the bars, which it would cover.
    axes.legend(
        frameon=False, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    beside = f" (unknown: {unknown:,})" if unknown else ""
    _chart(axes, f"year of capture{beside}", "images")
    return _png(figure)


def contact_sheet(photographs: Sequence[DataPath]) -> bytes:
    """Draw thumbnails of photographs side by side, in rows, as JPEG.

    A photograph that cannot be decoded leaves its place empty.
    """
    margin = 6
    columns = max(1, min(THUMBNAILS_PER_ROW, len(photographs)))
    rows = max(1, math.ceil(len(photographs) / columns))
    width, height = (size + margin for size in THUMBNAIL)
    sheet = Image.new("RGB", (columns * width + margin, rows * height + margin), PAPER)
    for number, path in enumerate(photographs):
        row, column = divmod(number, columns)
        with (
            suppress(OSError),
            content_of(path) as content,
            Image.open(io.BytesIO(content)) as photograph,
        ):
            # Lets the decoder skip what a thumbnail does not need.
            photograph.draft("RGB", (2 * THUMBNAIL[0], 2 * THUMBNAIL[1]))
            thumbnail = ImageOps.fit(photograph.convert("RGB"), THUMBNAIL)
            sheet.paste(thumbnail, (margin + column * width, margin + row * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor=PAPER, layout="constrained")


def _map(area: Area, histogram: bool = False) -> tuple[Figure, Axes]:
    """Make a figure with a map of an area, and if asked for a place for a histogram below."""
    box = area.box
    stretch = 1 / math.cos(math.radians((box.south + box.north) / 2))
    shape = (box.north - box.south) * stretch / (box.east - box.west)
    height = WIDTH * min(max(shape, 0.25), 1.25) + 0.6
    if histogram:
        figure = _figure(height + 2)
        axes, _ = figure.subplots(2, height_ratios=(height, 2))
    else:
        figure = _figure(height)
        axes = figure.add_subplot()
    axes.set_xlim(box.west, box.east)
    axes.set_ylim(box.south, box.north)
    axes.set_aspect(stretch)
    if area.polygons is not None:
        _lines(axes, _rings(area), color=INK, linewidth=1)
    return figure, axes


def _rings(area: Area) -> NDArray[np.object_]:
    """Return the outlines of an area, and of its holes, as lines."""
    return np.asarray(shapely.get_rings(shapely.get_parts(area.outline)))


def _lines(axes: Axes, lines: NDArray[np.object_], color: str, linewidth: float) -> None:
    """Draw lines as one path with gaps, which is many times faster than as many paths."""
    vertices, line = shapely.get_coordinates(lines, return_index=True)
    gaps = np.flatnonzero(np.diff(line)) + 1
    axes.plot(*np.insert(vertices, gaps, np.nan, axis=0).T, color=color, linewidth=linewidth)


def _dots(
    axes: Axes, lon: Floats, lat: Floats, colour: str, of: int, label: str | None = None
) -> None:
    axes.plot(
        lon,
        lat,
        "o",
        color=colour,
        markersize=_marker_size(of),
        markeredgewidth=0,
        label=label,
    )


def _marker_size(points: int) -> float:
    """Return the diameter, in typographic points, at which so many points stay apart."""
    return float(np.clip(120 / math.sqrt(max(points, 1)), 1.0, 6.0))


def _fill(figure: Figure, axes: Axes, lon: Floats, lat: Floats, counts: Counts, label: str) -> None:
    """Colour the cells between meridians and parallels by their counts; empty ones stay blank."""
    cells = axes.pcolormesh(
        lon,
        lat,
        np.ma.masked_equal(counts, 0),
        norm=LogNorm(1, max(int(counts.max()), 2)),
        cmap=COLOUR_MAP,
    )
    bar = figure.colorbar(cells, ax=axes, label=label, shrink=0.8, pad=0.02)
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bar.ax.tick_params(colors=INK)
    bar.ax.yaxis.label.set_color(INK)


def _finish(axes: Axes, title: str, attribution: str) -> None:
    """Give a map its title, scale and attribution."""
    axes.set_title(title, color=INK, loc="left")
    axes.set_title(attribution, color=INK, loc="right", fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    west, east = axes.get_xlim()
    south, north = axes.get_ylim()
    metres_wide = (east - west) * METRES_PER_DEGREE * math.cos(math.radians((south + north) / 2))
    length = _round_length(metres_wide / 4)
    start, end, y = 0.02, 0.02 + length / metres_wide, 0.03
    axes.plot([start, end], [y, y], color=INK, linewidth=3, transform=axes.transAxes)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(
        start,
        y + 0.012,
        text,
        color=INK,
        transform=axes.transAxes,
        verticalalignment="bottom",
        bbox={"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )


def _round_length(metres: float) -> float:
    """Return the longest of 1, 2, 5, 10, … metres that is not longer."""
    power = 10.0 ** math.floor(math.log10(metres))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= metres)


def _chart(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _png(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    # With a palette a dense map takes a third of the bytes.
    picture.quantize(PALETTE, dither=Image.Dither.NONE).save(buffer, "PNG")
    return buffer.getvalue()
