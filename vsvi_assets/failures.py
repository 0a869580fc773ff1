"""Which errors a retry cannot mend: they end the run at once, with what to do about them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

from dagster import DagsterExecutionInterruptedError, Failure

from vsvi_assets.city import City, CityFileError
from vsvi_assets.files import DiskFullError
from vsvi_assets.mapillary.errors import RefusedTokenError, TileBudgetError
from vsvi_assets.settings import TokenMissingError
from vsvi_assets.streets import NoStreetsError

REASONS_SHOWN = 5


class ImagesFailedError(Exception):
    """Images that could not be downloaded, after everything else was."""

    def __init__(self, city: str, failed: Mapping[int, str]) -> None:
        reasons = "\n".join(
            f"image {id_}: {why}" for id_, why in islice(failed.items(), REASONS_SHOWN)
        )
        super().__init__(
            f"{city}: {len(failed)} images could not be downloaded; all others were. Run the "
            f"failed partitions again to ask for these alone. The first reasons:\n{reasons}"
        )
        self.failed = failed


NOT_MENDED_BY_A_RETRY = (
    CityFileError,
    DiskFullError,
    NoStreetsError,
    TokenMissingError,
    RefusedTokenError,
    TileBudgetError,
)


@contextmanager
def explained(city: City) -> Iterator[None]:
    """Turn errors that a retry cannot mend into failures that are not retried.

    So is an interruption (Ctrl-C, Terminate), which Dagster would otherwise answer with a
    retry where the asset has a retry policy.
    """
    try:
        yield
    except NOT_MENDED_BY_A_RETRY as error:
        raise Failure(f"{city.name}: {error}", allow_retries=False) from error
    except (DagsterExecutionInterruptedError, KeyboardInterrupt) as error:
        raise Failure(
            f"{city.name}: interrupted; run it again to go on from here", allow_retries=False
        ) from error
