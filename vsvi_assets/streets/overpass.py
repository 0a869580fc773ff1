"""Streets from Overpass: queries by osmnx, one at a time and with pauses, and their answers kept.

Rules of overpass-api.de: a User-Agent of one's own, no queries at the same time, and at least
30 s without a query after a 429 (drolbr/Overpass-API#791). osmnx itself would repeat a query
every 55 s for as long as the server is busy.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import geopandas as gpd
import numpy as np
import orjson
import osmnx
import requests
import shapely

from vsvi_assets.city.area import Polygons
from vsvi_assets.files import (
    DataPath,
    atomic_write,
    copy_file,
    copy_files,
    entries_in,
    in_store,
    local_folder,
    remove_folder,
    sync_folder,
    writing_in,
)
from vsvi_assets.proxies import proxies_for
from vsvi_assets.store import StoreError
from vsvi_assets.streets.errors import (
    Box,
    NoStreetsError,
    OverpassBusyError,
    OverpassRefusedError,
    OverpassUnreachableError,
    describe_box,
)
from vsvi_assets.streets.network_types import overpass_filter
from vsvi_assets.streets.networks import streets_of_elements
from vsvi_assets.streets.osmnx_settings import osmnx_configured

QUERY_SECONDS = 180
"""How long the server may work on a query, its own default."""

READ_SECONDS = QUERY_SECONDS + 60
"""How long to wait for an answer to begin: the server's time, and that of its queue."""

RETRIES = 5
"""How often a busy server is asked again."""

PART_LIFETIME = timedelta(days=1)
"""For how long the parts of a download that failed may serve the next attempt."""

_BUSY = frozenset({429, 502, 503, 504})
_MARGIN_METRES = 505.0
"""A little more than osmnx adds around a polygon (500 m)."""


@dataclass(frozen=True)
class Overpass:
    """An Overpass server, and how it may be asked.

    Attributes
    ----------
    url
        Base URL, such as https://overpass-api.de/api.
    user_agent
        Names this program, and how to reach those who use it.
    turn
        Makes a context within which no other process asks this server.
    memory
        Most megabytes that a query may take on the server; None: the server's default.
    area
        Largest area of a query in square kilometres. A larger one is asked for in parts.
    pause
        Seconds without a query after an answer that the server is busy; doubled at each retry.
    """

    url: str
    user_agent: str
    turn: Callable[[], AbstractContextManager[None]]
    memory: int | None = None
    area: int = 2500
    pause: float = 30.0


@dataclass(frozen=True)
class DownloadedStreets:
    """The streets of an area, when Overpass was asked for them, and the folder of its answer.

    `from_cache` says whether that was before this call.
    """

    streets: gpd.GeoDataFrame
    asked_at: datetime
    folder: DataPath
    from_cache: bool


def download_streets(
    box: Box,
    network_type: str,
    *,
    overpass: Overpass,
    cache_folder: DataPath,
    within: Polygons | None = None,
    not_before: datetime | None = None,
    report: Callable[[str], None],
) -> DownloadedStreets:
    """Return the streets that meet an area, from Overpass or from an answer that was kept.

    Overpass is asked once for the same area and network type. An answer without a street in the
    area is not kept. Nothing but the server is contacted. Where a large area is asked for in
    parts, those that arrived are not asked for again after an error.

    Parameters
    ----------
    box
        West, south, east, north in degrees (EPSG:4326).
    network_type
        One of `NETWORK_TYPES`.
    cache_folder
        Where answers are kept, in a folder each. Made where it is missing. In an object store
        they are kept once they have come; until then they are in a temporary folder.
    within
        Polygons in degrees (EPSG:4326), of which the box has the bounds: the area, for whose
        convex hull Overpass is asked. None: the whole box.
    not_before
        Earlier answers do not count; None: all do.
    report
        Receives sentences on pauses and on kept answers that cannot be used.

    Returns
    -------
    streets
        A table of streets (see `vsvi_assets.streets.networks`). Ways that leave the area are
        whole, and some beside it are among them.

    Raises
    ------
    NoStreetsError
        When the answer has no street in the area.
    OverpassUnreachableError
        When Overpass cannot be reached, or its answer is not whole.
    OverpassBusyError
        When it is still busy after `RETRIES` retries.
    OverpassRefusedError
        When it refuses the query or gives up on it.
    """
    with local_folder(cache_folder) as folder:
        cache = _Cache(cache_folder, folder, overpass.url, network_type, box, within)
        if found := cache.kept(not_before, report):
            return found
        with overpass.turn():
            # Another process may have asked for the same while this one waited for its turn.
            if found := cache.kept(not_before, report):
                return found
            asked_at = cache.begin_part(not_before)
            try:
                _ask(box, within, network_type, overpass, cache.part, report)
            except BaseException:
                cache.save_part()
                raise
            streets = _read_streets(cache.part, network_type)
            area = within or shapely.box(*box)
            if not shapely.intersects(streets.geometry.to_numpy(), area).any():
                cache.remove_part()
                raise NoStreetsError(box)
            cache.keep_part()
        return DownloadedStreets(streets, asked_at, cache.folder, from_cache=False)


def _ask(
    box: Box,
    within: Polygons | None,
    network_type: str,
    overpass: Overpass,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Let osmnx put the answers into a folder, with pauses while the server is busy."""
    for retry in range(RETRIES + 1):
        try:
            return _ask_once(box, within, network_type, overpass, folder)
        except OverpassBusyError as error:
            # Held after the last attempt too, since others wait for their turn to ask.
            last = retry == RETRIES
            seconds = overpass.pause * (1 if last else 2**retry)
            if not last:
                report(f"{error}; retry {retry + 1} of {RETRIES} in {seconds:.0f} seconds")
            time.sleep(seconds)
            if last:
                raise OverpassBusyError(
                    f"{error}, {RETRIES + 1} times. Run again later, set OVERPASS_URL to another "
                    "server, or name a streets_file."
                ) from error


def _ask_once(
    box: Box, within: Polygons | None, network_type: str, overpass: Overpass, folder: Path
) -> None:
    where = f"Overpass ({urlsplit(overpass.url).hostname})"
    try:
        with _osmnx_configured(overpass, folder), writing_in(folder):
            # The public way to raw answers. From the graph that osmnx would make of them it
            # drops segments that cross the area with both of their nodes outside.
            osmnx.graph_from_polygon(
                _area(box, within), custom_filter=overpass_filter(network_type)
            )
    except InterruptedError:
        # How osmnx ends in its mode `cache_only_mode`.
        return
    except requests.ReadTimeout as error:
        raise OverpassBusyError(f"{where} did not answer within {READ_SECONDS} seconds") from error
    except requests.RequestException as error:
        raise OverpassUnreachableError(
            f"{where} gave no streets for {describe_box(box)}: {error}. Run again later, or set "
            "OVERPASS_URL to another server."
        ) from error
    except json.JSONDecodeError as error:
        # An attempt was killed while osmnx wrote a part.
        shutil.rmtree(folder)
        raise OverpassUnreachableError(
            f"A part of the streets for {describe_box(box)} was not whole on disk. It is removed: "
            "run again."
        ) from error
    raise AssertionError("osmnx did not keep to cache_only_mode")


def _area(box: Box, within: Polygons | None) -> shapely.Polygon:
    """Return the polygon to ask for: the box, or the convex hull of polygons.

    The hull has few vertices, where a boundary may have more than a query takes; and osmnx takes
    it itself of several polygons, and of large ones.

    osmnx divides a large area in a projected CRS, where a long parallel is a curve; vertices
    along the edges keep the parts from missing what lies in between. And it adds 500 m around,
    which must not reach over the antimeridian: it would come out on the other side of the world.
    """
    west, south, east, north = box
    room = 0.2  # degrees, more than the margin has at any latitude of the tiles
    widened = (min(west, 180 - room), south, max(east, room - 180), north)
    area = within.convex_hull if within is not None and widened == box else shapely.box(*widened)
    area = shapely.segmentize(area, 0.05)

    def withdraw(vertices: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
        lon, lat = vertices.T
        limit = 180 - _MARGIN_METRES / (111_195 * np.cos(np.radians(lat)))
        return np.column_stack([lon.clip(-limit, limit), lat])

    return shapely.transform(area, withdraw)


def _osmnx_configured(overpass: Overpass, folder: Path) -> AbstractContextManager[None]:
    return osmnx_configured(
        overpass.user_agent,
        overpass_url=overpass.url,
        overpass_settings=f"[out:json][timeout:{QUERY_SECONDS}]{{maxsize}}",
        overpass_memory=overpass.memory and overpass.memory * 1_000_000,
        overpass_rate_limit=False,
        max_query_area_size=overpass.area * 1e6,
        requests_timeout=READ_SECONDS,
        requests_kwargs={
            "hooks": {"response": _require_whole},
            "proxies": proxies_for(overpass.url),
        },
        use_cache=True,
        cache_only_mode=True,
        cache_folder=folder / "answers",
    )


def _require_whole(response: requests.Response, **_: object) -> None:
    """Raise unless a response is a whole answer, before it is followed, repeated or kept."""
    host = urlsplit(response.url).hostname
    where = f"Overpass ({host}) answered HTTP {response.status_code} {response.reason}"
    if response.status_code in _BUSY:
        raise OverpassBusyError(f"{where}: it is too busy")
    if response.status_code == 406:
        raise OverpassRefusedError(
            f"{where}: it does not accept the User-Agent {response.request.headers['User-Agent']}. "
            "Set VSVI_CONTACT to your own address or page."
        )
    if response.status_code >= 500:
        raise requests.HTTPError(f"HTTP {response.status_code} {response.reason}")
    if response.status_code != 200:
        raise OverpassRefusedError(f"{where}. Check OVERPASS_URL, or name a streets_file.")
    try:
        answer = orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        if response.content.lstrip()[:1] == b"<":
            raise OverpassBusyError(f"{where} with a page in place of data") from error
        raise requests.RequestException(f"the answer is not whole ({error})") from error
    if not isinstance(answer, dict) or "elements" not in answer:
        raise requests.RequestException("the answer has no elements")
    if "remark" in answer:
        raise OverpassRefusedError(
            f"Overpass ({host}) gave up: {answer['remark']}. Let it take smaller parts "
            "(VSVI_OVERPASS_AREA), allow more memory (VSVI_OVERPASS_MEMORY), or name a "
            "streets_file."
        )


def _read_streets(folder: DataPath, network_type: str) -> gpd.GeoDataFrame:
    names = sorted(name for name in entries_in(folder / "answers") if name.endswith(".json"))
    answers = (orjson.loads((folder / "answers" / name).read_bytes()) for name in names)
    return streets_of_elements(
        (element for answer in answers for element in answer["elements"]), network_type
    )


class _Cache:
    """The answer to one question in a folder of its own, complete or not there.

    `request.json` says what was asked and when; `answers` has osmnx's own files. What is
    downloaded is put into a local folder, which is `root` itself unless that is an object store.
    """

    def __init__(
        self,
        root: DataPath,
        local: Path,
        overpass_url: str,
        network_type: str,
        box: Box,
        within: Polygons | None,
    ) -> None:
        polygons = [] if within is None else [shapely.normalize(within).wkt]
        question = json.dumps([overpass_url, network_type, *box, *polygons])
        name = hashlib.sha256(question.encode()).hexdigest()[:16]
        self.folder = root / name
        self.part = local / f"{name}.part"
        self._saved_part = root / f"{name}.part"
        self._network_type = network_type
        self._request = {
            "host": urlsplit(overpass_url).hostname,
            "network_type": network_type,
            "box": box,
        }

    def asked_at(self, folder: DataPath) -> datetime | None:
        """Return when Overpass was asked for a folder's answers; None where there are none."""
        try:
            request = json.loads((folder / "request.json").read_bytes())
            return datetime.fromisoformat(request["asked_at"])
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def kept(
        self, not_before: datetime | None, report: Callable[[str], None]
    ) -> DownloadedStreets | None:
        """Return the streets of the answer that was kept; None where there is none to use."""
        asked_at = self.asked_at(self.folder)
        if asked_at is None or (not_before and asked_at < not_before):
            return None
        try:
            streets = _read_streets(self.folder, self._network_type)
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            report(f"The answer in {self.folder} cannot be read ({error}); Overpass is asked again")
            return None
        return DownloadedStreets(streets, asked_at, self.folder, from_cache=True)

    def begin_part(self, not_before: datetime | None) -> datetime:
        """Make the folder of a download, or find that of one that failed; return its time."""
        now = datetime.now(UTC)
        begun = self.asked_at(self._saved_part)
        if begun and begun >= max(not_before or begun, now - PART_LIFETIME):
            if self._saved_part != self.part:
                copy_files(self._saved_part, self.part)
            return begun
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        with atomic_write(self.part / "request.json") as file:
            file.write(orjson.dumps(self._request | {"asked_at": now.isoformat()}))
        return now

    def keep_part(self) -> None:
        """Put the download in the place of the answer that was kept before."""
        for path in self.part.glob("answers/*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self.part / "answers")
        if in_store(self.folder):
            # By its request an answer counts as complete.
            (self.folder / "request.json").unlink(missing_ok=True)
            remove_folder(self.folder)
            copy_files(self.part / "answers", self.folder / "answers")
            copy_file(self.part / "request.json", self.folder / "request.json")
            remove_folder(self._saved_part)
        else:
            remove_folder(self.folder)
            self.part.rename(self.folder)
            sync_folder(self.folder.parent)

    def save_part(self) -> None:
        """Keep what has come of a download that failed, for the next attempt."""
        if self._saved_part != self.part:
            remove_folder(self._saved_part)
            if self.part.exists():
                copy_files(self.part, self._saved_part)

    def remove_part(self) -> None:
        """Delete what has come of a download."""
        for folder in (self.part, self._saved_part):
            remove_folder(folder)
