"""A city's tables: written in one transaction, read through its schema."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dagster import InputContext, IOManager, OutputContext

from vsvi_assets.database.connection import Postgis
from vsvi_assets.database.replacement import NewTable, replace_tables
from vsvi_assets.orchestration.resources import PostgisResource


@dataclass(frozen=True)
class PostgisSchema:
    """The schema that holds a city's tables, and the database it lies in."""

    postgis: Postgis
    name: str


class PostgisIOManager(IOManager):
    """Keeps an asset's tables in PostGIS, in the schema named like the city.

    What comes in is a sequence of `NewTable`, replaced together in one transaction, or an
    iterator of such sequences: what it does after one, it does once that is stored and before
    the asset counts as materialized. What downstream assets get is the `PostgisSchema` to ask.
    """

    def __init__(self, resource: PostgisResource) -> None:
        self._resource = resource

    def handle_output(
        self, context: OutputContext, obj: Sequence[NewTable] | Iterator[Sequence[NewTable]]
    ) -> None:
        schema = context.asset_key.path[0]
        for tables in obj if isinstance(obj, Iterator) else [obj]:
            counts = replace_tables(self._resource.database(), schema, tables)
            context.add_output_metadata(
                {f"rows in {schema}.{name}": count for name, count in counts.items()}
            )

    def load_input(self, context: InputContext) -> PostgisSchema:
        return PostgisSchema(self._resource.database(), context.asset_key.path[0])
