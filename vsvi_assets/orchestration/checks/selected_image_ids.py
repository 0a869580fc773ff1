"""What must hold for a city's selection."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest

import pyarrow as pa
import pyarrow.compute as pc
from dagster import AssetCheckResult, AssetChecksDefinition, AssetCheckSeverity, multi_asset_check

from vsvi_assets.city import City
from vsvi_assets.database import audit
from vsvi_assets.database.audit import EXAMPLES, WrongRows
from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.queries import selected_ids
from vsvi_assets.orchestration.checks.rules import Rule
from vsvi_assets.orchestration.common import asset_key
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.orchestration.retries import retry_boundary

NOTABLE_SHARE = 0.1
"""The share of points without an image, or of old images, above which a check warns."""

OLD_YEARS = 10


def build_selected_image_ids_checks(city: City) -> AssetChecksDefinition:
    asset = asset_key(city, "selected_image_ids")
    in_the_tables = Rule(
        asset,
        "in_the_tables",
        "Every selected image, and the street point it is selected for, is in the tables.",
    )
    ids_file = Rule(
        asset,
        "ids_file",
        "The file of selected image ids lists the table's images, no more and no less.",
    )
    recent = Rule(
        asset,
        "recent",
        f"At most {NOTABLE_SHARE:.0%} of the selection is older than {OLD_YEARS} years.",
        AssetCheckSeverity.WARN,
        NOTABLE_SHARE,
    )
    points_with_image = Rule(
        asset,
        "points_with_image",
        f"At most {NOTABLE_SHARE:.0%} of the street points have no selected image within "
        f"{city.max_distance:g} m.",
        AssetCheckSeverity.WARN,
        NOTABLE_SHARE,
    )
    listed_ids = Rule(
        asset,
        "listed_ids",
        f"Every image that {city.imgid_file} lists is in the box and passes the city's filters.",
        AssetCheckSeverity.WARN,
    )
    distances = Rule(
        asset,
        "distances",
        f"Every selected image lies within {city.max_distance:g} m of its street point, at the "
        "distance that the table gives.",
    )
    rules = [in_the_tables, ids_file, recent, points_with_image]
    if city.imgid_file:
        rules.append(listed_ids)
    elif city.selection == "nearest":
        rules.append(distances)

    @multi_asset_check(
        name=f"{city.group}__selected_image_ids_checks", specs=[rule.spec for rule in rules]
    )
    def selected_image_ids_checks(postgis: PostgisResource) -> Iterator[AssetCheckResult]:
        with retry_boundary():
            tables = postgis.database()
            yield in_the_tables.result(audit.selected_but_not_in_the_tables(tables, city))
            yield ids_file.result(_ids_file_differences(tables, city))
            yield recent.result(audit.selected_and_old(tables, city, OLD_YEARS))
            yield points_with_image.result(audit.points_without_image(tables, city))
            if listed_ids in rules:
                absent = _listed_but_not_selected(tables, city)
                yield listed_ids.result(absent, {"all of them": str(city.absent_image_ids_path)})
            if distances in rules:
                yield distances.result(audit.wrong_distances(tables, city))

    return selected_image_ids_checks


def _ids_file_differences(postgis: Postgis, city: City) -> WrongRows:
    ids = selected_ids(postgis, city)
    expected = "".join(f"{image_id}\n" for image_id in ids.to_pylist())
    if city.selected_image_ids_path.read_text() == expected:
        return WrongRows(0, len(ids), [])
    wrong = lines = 0
    examples: list[Mapping[str, object]] = []
    with city.selected_image_ids_path.open() as file:
        listed = (line.rstrip("\n") for line in file)
        selected = map(str, ids)
        for lines, (line, image_id) in enumerate(zip_longest(listed, selected), 1):
            if line != image_id:
                wrong += 1
                if len(examples) < EXAMPLES:
                    examples.append({"line": lines, "file": line, "table": image_id})
    return WrongRows(wrong, lines, examples)


def _listed_but_not_selected(postgis: Postgis, city: City) -> WrongRows:
    listed = pa.array(city.read_image_ids(), pa.int64()).unique()
    absent = listed.filter(pc.invert(pc.is_in(listed, selected_ids(postgis, city))))
    examples = [{"image": image_id} for image_id in absent.slice(0, EXAMPLES).to_pylist()]
    return WrongRows(len(absent), len(listed), examples)
