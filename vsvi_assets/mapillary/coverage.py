"""The images of many tiles, fetched several at a time."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import mercantile

from vsvi_assets.city import Origin
from vsvi_assets.mapillary.client import IMAGES_PER_REQUEST, Mapillary, TileSet
from vsvi_assets.mapillary.errors import (
    AddressBlockedError,
    InvalidTileError,
    MapillaryError,
    RefusedRequestError,
    TileBudgetError,
    TileNotFoundError,
    TransientError,
)
from vsvi_assets.mapillary.tiles import (
    TileImages,
    tile_name,
    with_computed_headings,
    with_computed_positions,
)
from vsvi_assets.threads import interruptible_workers

WORKERS = 8
HEADING_WORKERS = 4
"""Requests for the headings of a tile's images at a time."""

NOT_FOUND_ATTEMPTS = 3
NOT_FOUND_PAUSE_SECONDS = 180.0
"""How often a tile is asked for that is answered 404, and after which time. Such answers pass
within minutes or a day (https://github.com/jonfroehlich/streetscape-tracker)."""

OF_ONE_TILE = (InvalidTileError, RefusedRequestError, TileNotFoundError, TransientError)
OF_ALL_TILES = (AddressBlockedError, TileBudgetError)


class TilesFailedError(MapillaryError):
    """Some tiles could not be fetched; all others were.

    `may_pass` says whether any of them may be fetched minutes later.
    """

    def __init__(self, failed: Sequence[MapillaryError]) -> None:
        reasons = "\n".join(map(str, failed))
        super().__init__(f"{len(failed)} tiles could not be fetched:\n{reasons}")
        self.may_pass = any(error.may_pass for error in failed)


def fetch_tiles(
    client: Mapillary,
    tiles: Iterable[mercantile.Tile],
    *,
    positions: Origin = "original",
    heading: Origin = "original",
    not_found_pause: float = NOT_FOUND_PAUSE_SECONDS,
) -> Generator[tuple[mercantile.Tile, TileImages], None, None]:
    """Fetch tiles and yield each with its images, in the order of arrival.

    A tile that fails does not keep the others from coming. Closing the iterator stops all
    requests. No more tiles are in memory at a time than are being fetched.

    One thread decodes tiles while the thread that iterates stores others: each further thread
    would keep the memory that its largest tile took.

    Parameters
    ----------
    positions
        `computed`: each tile that has images is fetched from both tile sets, and its images get
        the corrected positions as `with_computed_positions` says.
    heading
        `computed`: the Graph API is asked for the corrected headings of all images, 50 at a time,
        and they get them as `with_computed_headings` says.
    not_found_pause
        Seconds after which a tile that was answered 404 is asked for again, at most twice.

    Raises
    ------
    TilesFailedError
        At the end, with the reason for each tile that could not be fetched.
    AddressBlockedError, TileBudgetError
        After the tiles that had been asked for already.
    RefusedTokenError, ConnectionSettingsError
        At once.
    """
    with interruptible_workers(1) as (decoder, _), interruptible_workers(WORKERS) as (pool, stop):
        yield from _Fetching(
            client, iter(tiles), positions, heading, not_found_pause, pool, stop, decoder
        ).run()


@dataclass(eq=False)
class _Fetching:
    """The tiles that are being fetched.

    All of it runs in the thread that iterates, but for the requests, which the pool makes, and the
    decoding.
    """

    client: Mapillary
    tiles: Iterator[mercantile.Tile]
    positions: Origin
    heading: Origin
    not_found_pause: float
    pool: Executor
    stop: threading.Event
    decoder: Executor

    def __post_init__(self) -> None:
        self._finished: SimpleQueue[tuple[mercantile.Tile, Future[TileImages]]] = SimpleQueue()
        self._not_found: Counter[mercantile.Tile] = Counter()
        self._later: deque[tuple[float, mercantile.Tile]] = deque()
        self._running = 0
        self._arrived: list[tuple[mercantile.Tile, TileImages]] = []
        self._failed: list[MapillaryError] = []
        self._end: MapillaryError | None = None

    def run(self) -> Generator[tuple[mercantile.Tile, TileImages], None, None]:
        while True:
            self._start()
            if not self._running:
                if self._end or not self._later:
                    break
                self.stop.wait(self._seconds_to_the_next())
                continue
            is_full = self._running == WORKERS
            with suppress(Empty):
                timeout = None if is_full else self._seconds_to_the_next()
                self._fetched(*self._finished.get(timeout=timeout))
            yield from self._arrived
            self._arrived.clear()
        if self._end:
            raise self._end
        if self._failed:
            raise TilesFailedError(self._failed)

    def _start(self) -> None:
        """Ask for as many tiles as there are threads."""
        while not self._end and self._running < WORKERS:
            is_due = self._later and self._later[0][0] <= time.monotonic()
            tile = self._later.popleft()[1] if is_due else next(self.tiles, None)
            if tile is None:
                return
            future = self.pool.submit(self._fetch, tile)
            self._running += 1
            future.add_done_callback(partial(self._put, tile))

    def _put(self, tile: mercantile.Tile, future: Future[TileImages]) -> None:
        self._finished.put((tile, future))

    def _fetched(self, tile: mercantile.Tile, future: Future[TileImages]) -> None:
        self._running -= 1
        try:
            self._arrived.append((tile, future.result()))
        except TileNotFoundError as error:
            self._ask_later(tile, error)
        except OF_ONE_TILE as error:
            self._failed.append(error)
        except OF_ALL_TILES as error:
            self._end = error

    def _fetch(self, tile: mercantile.Tile) -> TileImages:
        images = self._tile_images(tile)
        if not len(images):
            return images
        if self.positions == "computed":
            computed = self._tile_images(tile, "mly1_computed_public")
            images = with_computed_positions(images, computed)
        if self.heading == "computed":
            images = with_computed_headings(images, self._headings(tile, images))
        return images

    def _tile_images(self, tile: mercantile.Tile, tile_set: TileSet = "mly1_public") -> TileImages:
        return self.client.tile_images(tile, self.stop, tile_set, decoder=self.decoder)

    def _headings(self, tile: mercantile.Tile, images: TileImages) -> dict[int, float]:
        """Ask for the corrected headings of a tile's images.

        Raises TransientError when the answers leave out all of many images, since that is no
        matter of single ones.
        """
        ids = images.images["id"].to_pylist()
        headings: dict[int, float] = {}
        with ThreadPoolExecutor(HEADING_WORKERS, thread_name_prefix="headings") as pool:
            batches = [
                pool.submit(
                    self.client.image_headings, ids[start : start + IMAGES_PER_REQUEST], self.stop
                )
                for start in range(0, len(ids), IMAGES_PER_REQUEST)
            ]
            try:
                for future in batches:
                    headings |= future.result().found
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if len(ids) > IMAGES_PER_REQUEST and not headings:
            raise TransientError(
                f"{tile_name(tile)}: asked for their headings, the Graph API left out all of its "
                f"{len(ids):,} images"
            )
        return {id_: heading for id_, heading in headings.items() if not math.isnan(heading)}

    def _ask_later(self, tile: mercantile.Tile, error: TileNotFoundError) -> None:
        self._not_found[tile] += 1
        if self._not_found[tile] < NOT_FOUND_ATTEMPTS:
            self._later.append((time.monotonic() + self.not_found_pause, tile))
        else:
            self._failed.append(
                TileNotFoundError(
                    f"{error}, in {NOT_FOUND_ATTEMPTS} attempts; the next run tries again"
                )
            )

    def _seconds_to_the_next(self) -> float | None:
        """Return when a tile is due again, None where none is."""
        return max(self._later[0][0] - time.monotonic(), 0.0) if self._later else None
