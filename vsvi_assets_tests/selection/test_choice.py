"""Choices among rejected photographs, without a database."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vsvi_assets.city import City
from vsvi_assets.selection.choice import choose
from vsvi_assets.selection.rules import usable_images
from vsvi_assets_tests.project import BOX
from vsvi_assets_tests.selection.exhaustive import assert_chosen


@pytest.mark.parametrize("assignment", ["independent", "one_to_one"])
def test_rejected_images_are_replaced_within_the_tries(assignment: str, tmp_path: Path) -> None:
    keys = {"assignment": assignment, "quality": {"min_sharpness": 1, "tries": 3}}
    content = {"bounding_box": BOX, "srid": 28992, "max_distance": 60, **keys}
    city = City.parse(content, name="town", data_dir=tmp_path)
    numbers = np.random.default_rng(3)
    x, y = numbers.uniform(0, 400, (2, 60))
    points = pa.table({"id": np.arange(60), "x": x, "y": y, "bearing": np.zeros(60)})
    x_image, y_image = numbers.uniform(0, 400, (2, 150))
    rejected = numbers.random(150) < 0.5
    none = pa.nulls(150, pa.float64())
    images = pa.table(
        {
            **{"id": np.arange(150), "sequence_id": ["s"] * 150, "x": x_image, "y": y_image},
            **{"captured_at": pa.nulls(150, pa.int64()), "compass_angle": none},
            **{"is_pano": pa.nulls(150, pa.bool_()), "is_rejected": rejected},
        }
    )
    candidates: list[dict[str, Any]] = []
    for point in range(60):
        distance = np.hypot(x_image - x[point], y_image - y[point])
        tried = 0
        for image in np.argsort(distance):
            if distance[image] > 60 or tried == 3:
                break
            tried += int(rejected[image])
            if not rejected[image]:
                candidates.append(
                    {
                        **{"street_point_id": point, "year": None, "image_id": int(image)},
                        "distance": float(distance[image]),
                    }
                )

    usable, _ = usable_images(images, city)
    found = choose(points, usable, city)[0].to_pylist()

    assert_chosen(found, candidates, assignment)
    assert not rejected[[row["image_id"] for row in found]].any()
