import colorsys
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsvi_assets.dataset.perspective import NotAPanoramaError, Panorama, View, heading_of_centre

WIDTH, HEIGHT = 2880, 1440
MARKS = range(0, 360, 30)


def marked_panorama(centre_heading: float) -> Image.Image:
    """Draw a grey panorama with a vertical mark of its own colour every 30 degrees."""
    headings = (np.arange(WIDTH) + 0.5) / WIDTH * 360 - 180 + centre_heading
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for mark in MARKS:
        distance = (headings - mark + 180) % 360 - 180
        pixels[:, np.abs(distance) < 0.5] = colour(mark)
    return Image.fromarray(pixels)


def colour(mark: int) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(mark / 360, 1, 1))


def heading_seen(picture: Image.Image, mark: int, view: View) -> float:
    """Return the heading of a mark in the middle row of a view, measured in its pixels."""
    row = np.asarray(picture)[view.height // 2].astype(int)
    difference = np.abs(row - colour(mark)).sum(axis=1)
    columns = np.flatnonzero(difference <= difference.min() + 40)
    x = columns.mean() + 0.5 - view.width / 2
    return float(view.heading + np.degrees(np.arctan(x / view.focal_length)))


@pytest.mark.parametrize("centre_heading", [0, 15, 180, 271.3])
@pytest.mark.parametrize("mark", MARKS)
def test_the_middle_of_a_view_shows_its_heading_within_a_degree(
    centre_heading: float, mark: int
) -> None:
    panorama = Panorama(marked_panorama(centre_heading), centre_heading)
    view = View(mark, 0, 90, 640, 480)
    assert heading_seen(panorama.view(view), mark, view) == pytest.approx(mark, abs=0.1)


def test_every_mark_in_a_view_across_the_seam_lies_where_it_should() -> None:
    panorama = Panorama(marked_panorama(0), 0)
    view = View(180, 0, 100, 800, 400)  # the seam is in its middle
    picture = panorama.view(view)
    for mark in (150, 180, 210):
        assert heading_seen(picture, mark, view) == pytest.approx(mark, abs=0.2)


def test_nothing_but_the_picture_is_in_a_view_across_the_seam() -> None:
    panorama = Panorama(marked_panorama(0), 0)
    row = np.asarray(panorama.view(View(165, 0, 25, 640, 480)))[240]
    assert (row == 128).all()


def picture_by_definition(pixels: np.ndarray, view: View, centre: float) -> np.ndarray:
    """Compute a view from rotation matrices, in double precision, by the nearest pixel."""
    height, width = pixels.shape[:2]
    x, y = np.meshgrid(
        np.arange(view.width) + 0.5 - view.width / 2, np.arange(view.height) + 0.5 - view.height / 2
    )
    rays = np.stack([x, -y, np.full_like(x, view.focal_length)], axis=-1)
    pitch, yaw = np.radians(view.pitch), np.radians(view.heading - centre)
    up_down = np.array(
        [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]]
    )
    around = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    east, up, north = np.moveaxis(rays @ up_down.T @ around.T, -1, 0)
    longitude, latitude = np.arctan2(east, north), np.arctan2(up, np.hypot(east, north))
    columns = np.floor((longitude / (2 * np.pi) + 0.5) * width).astype(int) % width
    rows = np.floor((0.5 - latitude / np.pi) * height).astype(int).clip(0, height - 1)
    return pixels[rows, columns]


@settings(max_examples=40, deadline=None)
@given(
    heading=st.floats(-720, 720),
    pitch=st.floats(-90, 90),
    fov=st.floats(10, 150),
    centre=st.floats(0, 360),
)
def test_any_view_is_what_the_definition_says(
    heading: float, pitch: float, fov: float, centre: float
) -> None:
    rows, columns = np.mgrid[0:256, 0:512]
    smooth = np.stack(
        [
            127 + 120 * np.sin(columns * 2 * np.pi / 512),
            127 + 120 * np.cos(columns * 2 * np.pi / 512),
            rows,
        ],
        axis=-1,
    ).astype(np.uint8)
    # At a pole itself colours may be anything, as all columns meet there.
    smooth[:8, :, :2] = smooth[-8:, :, :2] = 127
    view = View(heading, pitch, fov, 96, 64)
    seen = np.asarray(Panorama(Image.fromarray(smooth), centre).view(view)).astype(int)
    expected = picture_by_definition(smooth, view, centre).astype(int)
    near_the_cap = (expected[..., 2] < 10) | (expected[..., 2] > 245)
    assert np.abs(seen - expected)[~near_the_cap].max(initial=0) <= 4
    assert np.abs(seen - expected)[..., 2].max() <= 4


def test_a_view_straight_up_and_down_shows_the_poles() -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    pixels[:40], pixels[-40:] = (255, 0, 0), (0, 0, 255)
    panorama = Panorama(Image.fromarray(pixels), 0)
    above = np.asarray(panorama.view(View(10, 90, 60, 200, 200)))
    below = np.asarray(panorama.view(View(10, -90, 60, 200, 200)))
    assert (above[98:102, 98:102] == (255, 0, 0)).all()
    assert (below[98:102, 98:102] == (0, 0, 255)).all()


def test_the_same_view_has_the_same_bytes_and_headings_repeat_after_a_turn() -> None:
    picture = marked_panorama(0)
    one = Panorama(picture, 12.5).view(View(77, 3, 80, 300, 200)).tobytes()
    assert Panorama(picture, 12.5).view(View(77, 3, 80, 300, 200)).tobytes() == one
    assert Panorama(picture, 372.5).view(View(77 - 360, 3, 80, 300, 200)).tobytes() == one


def test_the_left_edge_may_be_taken_for_the_camera_s_heading() -> None:
    assert heading_of_centre(350, "centre") == 350
    assert heading_of_centre(350, "left") == 170


def test_a_large_jpeg_is_decoded_no_larger_than_the_view_needs() -> None:
    file = io.BytesIO()
    marked_panorama(0).save(file, "JPEG", quality=95)
    view = View(90, 0, 90, 128, 128)
    panorama = Panorama(Image.open(file), 0, view.panorama_width)
    assert panorama.size == (1440, 720)
    assert heading_seen(panorama.view(view), 90, view) == pytest.approx(90, abs=1)


@pytest.mark.parametrize("size", [(1000, 400), (600, 600), (10, 2000)])
def test_a_picture_that_is_no_full_panorama_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(NotAPanoramaError, match="twice as wide as high"):
        Panorama(Image.new("RGB", size), 0)
