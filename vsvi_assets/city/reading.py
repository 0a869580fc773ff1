"""City files, one JSON or YAML file per city, in the format of percept-vsvi-filter's users."""

import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vsvi_assets.city.area import BoundingBox
from vsvi_assets.city.errors import CityFileError
from vsvi_assets.city.model import PROJECT_FOLDERS, City
from vsvi_assets.city.paths import FileLayer
from vsvi_assets.city.region import PlaceNotLookedUpError, RegionSource
from vsvi_assets.city.rules import NearTwins
from vsvi_assets.city.views import Views
from vsvi_assets.files import DataPath, TextFileError, read_text

CITY_FILE_SUFFIXES = (".json", ".yaml", ".yml")

RESERVED_NAMES = PROJECT_FOLDERS | {
    "public",
    "information_schema",
    "tiger",
    "tiger_data",
    "topology",
}
"""Names of folders and of database schemas that are not a city's, in lower case."""

_KEYS_OF: Mapping[str, type[BaseModel]] = {
    "bounding_box": BoundingBox,
    "duplicates.near": NearTwins,
    "districts.layer": FileLayer,
    "points_file.layer": FileLayer,
    "region": RegionSource,
    "streets_file.layer": FileLayer,
    "views": Views,
}

_MESSAGES = {
    "missing": "is required",
    "tuple_type": "must be a list",
    "model_type": "must be an object of keys and values",
    "too_short": "must not be empty",
    "path_type": "must be the path of a file",
}
"""Of pydantic's types of errors, whose own messages are written for those who know Python."""

_TOKEN = re.compile(r"MLY\|[^\s'\"]*")
"""Must not be repeated in logs and in the UI, should somebody put it into a city file."""


@dataclass(frozen=True)
class BrokenCity:
    """A city file that cannot be used, and why."""

    name: str
    path: Path
    error: CityFileError


def load_city(path: Path, data_dir: DataPath) -> City:
    """Read one city file.

    Raises
    ------
    CityFileError
        When the file cannot be used.
    PlaceNotLookedUpError
        When it can, but for a place that has to be looked up first.
    """
    name = path.stem
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,49}", name):
        raise CityFileError(
            f"{path}: the city would be called {name!r}; rename the file to at most 50 letters, "
            "digits, - or _, the first a letter"
        )
    if name.lower() in RESERVED_NAMES or name.lower().startswith("pg_"):
        raise CityFileError(
            f"{path}: the city would be called {name!r}, which names a folder of the project or a "
            f"schema of the database; rename the file, to city-{path.name} for example"
        )
    try:
        content = read_content(path)
        return City.parse(content, name=name, data_dir=data_dir)
    except ValidationError as error:
        reason = "\n".join(_describe(path, error))
    except PlaceNotLookedUpError:
        raise
    except CityFileError as error:
        reason = f"{path}: {error}"
    raise CityFileError(_TOKEN.sub("<token>", reason))


def read_content(path: Path) -> Mapping[str, Any]:
    """Read the keys and values of a city file, whatever they are.

    Raises
    ------
    CityFileError
        When the file cannot be read as JSON or YAML.
    """
    try:
        text = read_text(path)
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except TextFileError as error:
        raise CityFileError(str(error).removeprefix(f"{path} ")) from error
    # For values that do not fit their tag PyYAML raises more than its own error.
    except (
        ValueError,
        yaml.YAMLError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise CityFileError(f"cannot be read as {path.suffix[1:].upper()} ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CityFileError('must hold an object of keys such as "bounding_box"')
    return content


def _describe(path: Path, error: ValidationError) -> Iterator[str]:
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    for problem in problems:
        if any(place[: len(problem["loc"])] == problem["loc"] != place for place in places):
            continue  # A list is too short where all that is in it is wrong.
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _KEYS_OF.get(".".join(map(str, problem["loc"][:-1])), City)
            message = f"unknown key; {_hint(str(problem['loc'][-1]), known)}"
        elif problem["type"] == "model_type" and key in _KEYS_OF:
            message = f"must be an object of the keys {', '.join(_KEYS_OF[key].model_fields)}"
        else:
            message = _MESSAGES.get(problem["type"], message)
        value = problem["input"]
        shown = "" if isinstance(value, dict) else f" = {value!r:.80}"
        yield f"{path}: {key}{shown}: {message}" if key else f"{path}: {message}"


def _hint(key: str, model: type[BaseModel]) -> str:
    if close := get_close_matches(key, model.model_fields, cutoff=0.75):
        return f"did you mean {' or '.join(close)}?"
    return f"the keys are {', '.join(model.model_fields)}"


def load_cities(cities_dir: Path, data_dir: DataPath) -> tuple[list[City], list[BrokenCity]]:
    """Read every city file of a folder; one that cannot be used does not stop the others.

    Cities that would get in each other's way (the same name except for case, `-` and `_`, or
    the same seqdir) are all refused, since either of them could be the mistake.

    Returns
    -------
    cities, broken
        Both sorted by name.

    Raises
    ------
    CityFileError
        When the folder itself cannot be read.
    """
    if not cities_dir.is_dir():
        raise CityFileError(
            f"{cities_dir}: no such folder; make it, with a city file in it, or set VSVI_CITIES_DIR"
        )
    cities: dict[Path, City] = {}
    broken: list[BrokenCity] = []
    try:
        paths = sorted(cities_dir.iterdir())
    except OSError as error:
        raise CityFileError(f"{cities_dir}: cannot be read ({error.strerror})") from error
    for path in paths:
        if path.suffix not in CITY_FILE_SUFFIXES or path.name.startswith("."):
            continue
        try:
            cities[path] = load_city(path, data_dir)
        except CityFileError as error:
            broken.append(BrokenCity(path.stem, path, error))
    for clashing, what in _clashes(cities):
        for path in clashing:
            others = ", ".join(other.name for other in clashing if other != path)
            city = cities.pop(path, None)
            if city:
                clash = CityFileError(f"{path}: {what(city)} as {others}; give each its own")
                broken.append(BrokenCity(path.stem, path, clash))
    return list(cities.values()), sorted(broken, key=lambda city: city.name)


def _clashes(
    cities: Mapping[Path, City],
) -> Iterator[tuple[Sequence[Path], Callable[[City], str]]]:
    """Find the files whose cities have the same name or seqdir; say of a city what it shares."""
    rules: tuple[tuple[Callable[[City], Hashable], Callable[[City], str]], ...] = (
        (
            lambda city: city.name.replace("-", "_").lower(),
            lambda city: f"the name {city.name} is the same",
        ),
        (lambda city: city.group, lambda city: f"{city.group}, its name in Dagster, is the same"),
        (
            lambda city: os.path.realpath(str(city.sequences_folder)),
            lambda city: f"seqdir = {city.sequences_folder} is the same folder",
        ),
    )
    for key, what in rules:
        by_key: dict[Hashable, list[Path]] = {}
        for path, city in cities.items():
            by_key.setdefault(key(city), []).append(path)
        yield from ((paths, what) for paths in by_key.values() if len(paths) > 1)
