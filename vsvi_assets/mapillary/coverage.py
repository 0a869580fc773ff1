"""The images of many tiles, fetched several at a time."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

import mercantile
import pyarrow as pa

from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.errors import MapillaryError, RefusedRequestError, TransientError
from vsvi_assets.mapillary.tiles import decode_tile, tile_name

WORKERS = 8


class TilesFailedError(MapillaryError):
    """Some tiles could not be had; all others were."""


def fetch_tiles(
    client: Mapillary, tiles: Iterable[mercantile.Tile]
) -> Iterator[tuple[mercantile.Tile, pa.Table]]:
    """Fetch tiles and yield each with its images (`IMAGE_SCHEMA`), in the order of arrival.

    A tile that cannot be had does not keep the others from coming. Closing the iterator stops
    all requests. No more tiles are in memory at a time than are being fetched.

    Raises
    ------
    TilesFailedError
        At the end, with the reason for each tile that could not be had.
    RefusedTokenError, TileBudgetError
        At once.
    """
    stop = threading.Event()

    def fetch(tile: mercantile.Tile) -> pa.Table:
        return decode_tile(client.tile(tile, stop), tile)

    waiting = iter(tiles)
    failed: dict[mercantile.Tile, str] = {}
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="tiles")
    try:
        running: dict[Future[pa.Table], mercantile.Tile] = {
            pool.submit(fetch, tile): tile for tile in islice(waiting, WORKERS)
        }
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tile = running.pop(future)
                try:
                    images = future.result()
                except (TransientError, RefusedRequestError) as error:
                    failed[tile] = str(error)
                else:
                    yield tile, images
            for tile in islice(waiting, len(done)):
                running[pool.submit(fetch, tile)] = tile
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if failed:
        reasons = "\n".join(f"{tile_name(tile)}: {reason}" for tile, reason in failed.items())
        raise TilesFailedError(f"{len(failed)} tiles could not be had:\n{reasons}")
