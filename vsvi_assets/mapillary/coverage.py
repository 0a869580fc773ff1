"""The images of many tiles, fetched several at a time."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice

import mercantile

from vsvi_assets.mapillary.client import Mapillary
from vsvi_assets.mapillary.errors import (
    InvalidTileError,
    MapillaryError,
    RefusedRequestError,
    TileNotFoundError,
    TransientError,
)
from vsvi_assets.mapillary.tiles import TileImages

WORKERS = 8
NOT_TO_BE_HAD = (InvalidTileError, RefusedRequestError, TileNotFoundError, TransientError)


class TilesFailedError(MapillaryError):
    """Some tiles could not be had; all others were.

    `may_pass` tells whether any of them may be had later.
    """

    def __init__(self, failed: Sequence[MapillaryError]) -> None:
        reasons = "\n".join(map(str, failed))
        super().__init__(f"{len(failed)} tiles could not be had:\n{reasons}")
        self.may_pass = any(isinstance(error, TransientError) for error in failed)


def fetch_tiles(
    client: Mapillary, tiles: Iterable[mercantile.Tile]
) -> Generator[tuple[mercantile.Tile, TileImages], None, None]:
    """Fetch tiles and yield each with its images, in the order of arrival.

    A tile that cannot be had does not keep the others from coming. Closing the iterator stops
    all requests. No more tiles are in memory at a time than are being fetched.

    Raises
    ------
    TilesFailedError
        At the end, with the reason for each tile that could not be had.
    RefusedTokenError, TileBudgetError
        At once.
    """
    waiting = iter(tiles)
    failed: list[MapillaryError] = []
    with client.workers(WORKERS) as (pool, stop):
        running: dict[Future[TileImages], mercantile.Tile] = {
            pool.submit(client.tile_images, tile, stop): tile for tile in islice(waiting, WORKERS)
        }
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tile = running.pop(future)
                try:
                    images = future.result()
                except NOT_TO_BE_HAD as error:
                    failed.append(error)
                else:
                    yield tile, images
            for tile in islice(waiting, len(done)):
                running[pool.submit(client.tile_images, tile, stop)] = tile
    if failed:
        raise TilesFailedError(failed)
