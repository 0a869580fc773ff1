"""The metadata of all Mapillary images, tile by tile."""

from collections.abc import Generator, Iterator

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    Output,
    ResourceParam,
    StaticPartitionsDefinition,
    asset,
)

from vsvi_assets.city import City, parse_tile_key, tile_key
from vsvi_assets.mapillary.coverage import fetch_tiles
from vsvi_assets.mapillary.errors import AddressBlockedError, InvalidTileError
from vsvi_assets.mapillary.tile_files import read_tile
from vsvi_assets.mapillary.tiles import TileImages
from vsvi_assets.orchestration.checks.tile_metadata import TileSurvey
from vsvi_assets.orchestration.columns import TILE_FILE
from vsvi_assets.orchestration.common import MAPILLARY_POOL, Fetch, identity, not_before
from vsvi_assets.orchestration.partitions import Partition, hand_over
from vsvi_assets.orchestration.resources import MapillaryResource
from vsvi_assets.orchestration.retries import retry_boundary
from vsvi_assets.progress import Progress


def build_tile_metadata(city: City) -> AssetsDefinition:
    @asset(
        **identity(city, "tile_metadata", {"mapillary", "geojson"}),
        description=(
            "Step 2. The metadata of every Mapillary image in the z14 tiles that meet the "
            f"{city.area_name}, one GeoJSON file per tile."
        ),
        metadata={"dagster/column_schema": TILE_FILE},
        partitions_def=StaticPartitionsDefinition(city.tile_keys),
        backfill_policy=BackfillPolicy.single_run(),
        io_manager_key="tile_files",
        pool=MAPILLARY_POOL,
        check_specs=TileSurvey(city).specs,
    )
    def tile_metadata(
        context: AssetExecutionContext,
        config: Fetch,
        mapillary: MapillaryResource,
        progress: ResourceParam[Progress],
    ) -> Iterator[Output | AssetCheckResult]:
        survey = TileSurvey(city)

        def on_disk(key: str, tile: TileImages) -> Partition[TileImages]:
            survey.add(key, tile)
            return Partition(key, None, _counts(tile) | {"fetched": False})

        def partitions() -> Generator[Partition[TileImages], None, None]:
            for warning in city.warnings:
                context.log.warning(warning)
            oldest = not_before(context, city, config)
            missing, old = list[str](), set[str]()
            for key in context.partition_keys:
                tile = _read_tile(context, city, key)
                if tile is None:
                    missing.append(key)
                elif oldest and city.tile_path(key).stat().st_mtime < oldest.timestamp():
                    old.add(key)
                else:
                    yield on_disk(key, tile)
            wanted = [*missing, *sorted(old)]
            context.log.info(f"{len(wanted)} of {len(context.partition_keys)} tiles to fetch")
            if not wanted:
                return
            advance = progress.counting(
                context.asset_key.to_user_string(), len(wanted), "tiles", context.log.info
            )
            remaining = set(wanted)
            with mapillary.client(city) as client:
                if client.tile_gate:
                    state = client.tile_gate.state()
                    requests = city.requests_for(len(wanted))
                    is_long = state.minutes(requests) > 2 or state.left_today < requests
                    report = context.log.warning if is_long else context.log.info
                    report(f"{context.asset_key.to_user_string()}: {state.summary(requests)}")
                try:
                    tiles = map(parse_tile_key, wanted)
                    for fetched, images in fetch_tiles(
                        client, tiles, positions=city.positions, heading=city.heading
                    ):
                        advance()
                        key = tile_key(fetched)
                        survey.add(key, images)
                        remaining.remove(key)
                        yield Partition(key, images, _counts(images) | {"fetched": True})
                except AddressBlockedError as error:
                    serving = sorted(old & remaining)
                    for key in serving:
                        tile = _read_tile(context, city, key)
                        if tile is not None:
                            survey.add_old(key, city.tile_path(key))
                            remaining.remove(key)
                            yield on_disk(key, tile)
                    if remaining:
                        raise
                    context.log.warning(
                        f"{len(serving)} tiles on disk are older than this run asks for, and serve "
                        f"all the same. {error}"
                    )

        with retry_boundary():
            yield Output(hand_over(context, partitions()))
            yield from survey.results()

    return tile_metadata


def _counts(tile: TileImages) -> dict[str, int]:
    """Return what the page of a tile shows."""
    counts = {"images": len(tile)}
    if tile.uncorrected is not None:
        counts["images without a corrected position"] = tile.uncorrected
    if tile.uncorrected_headings is not None:
        counts["images without a corrected heading"] = tile.uncorrected_headings
    return counts


def _read_tile(context: AssetExecutionContext, city: City, key: str) -> TileImages | None:
    """Return a tile that is on disk; None where it is not there, or is no tile."""
    try:
        return read_tile(city.tile_path(key), city.services)
    except FileNotFoundError:
        return None
    except InvalidTileError as error:
        context.log.warning(f"Fetched again: {error}")
        return None
