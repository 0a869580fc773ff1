"""Cities from Python and notebooks: run one, plan it, count what is there, read its table.

Each function takes the name of a city of the project in the current folder: `cities/<name>.json`.
It starts the services that it needs, as the `vsvi` command does; they go on afterwards
(`vsvi down` stops them). Mistakes in settings and city files, a missing token and so on are raised
with the messages that the command prints.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

import geopandas
import pandas as pd
import pyarrow as pa

from vsvi_assets.database.dataset import dataset
from vsvi_assets.database.server import project_database
from vsvi_assets.running.project import find_city, run_named_city, start_postgis, status_of
from vsvi_assets.views.plan import DownloadPlan
from vsvi_assets.views.status import CityStatus

if TYPE_CHECKING:
    from vsvi_assets.running.run_city import CityRun

Numbers = TypeVar("Numbers")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class CityFailedError(Exception):
    """Not everything could be made or fetched. What is whole is kept; run the city again."""


@dataclass(frozen=True, repr=False)
class Summary(Generic[Numbers]):
    """What the `vsvi` command prints, as a notebook shows it, and the numbers behind it.

    Attributes
    ----------
    text
        Lines for people.
    numbers
        A dataclass: see `run_city`, `plan` and `status` for which.
    """

    text: str
    numbers: Numbers

    def __repr__(self) -> str:
        return self.text


def _in_a_notebook(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Leave the process as it was, so that the next call may be in another project's folder."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        # Starting the services sets variables, by which Dagster finds them.
        before = dict(os.environ)
        try:
            with warnings.catch_warnings():
                # A notebook's kernel has an event loop that runs, which Dagster allows for.
                warnings.filterwarnings("ignore", ".*shutdown_asyncgens.*", RuntimeWarning)
                return function(*args, **kwargs)
        finally:
            os.environ.clear()
            os.environ.update(before)

    return call


@_in_a_notebook
def run_city(
    city: str, *, overwrite: bool = False, recheck_unavailable: bool = False
) -> "Summary[CityRun]":
    """Run a city from its box to its photographs. What is on disk and whole is not fetched again.

    It may be interrupted at any time and called again: it goes on where it was.

    Parameters
    ----------
    city
        Name of the city file, without its ending.
    overwrite
        Fetch again what is on disk; a file is replaced only by a whole new one.
    recheck_unavailable
        Request again the images that are believed to be gone, and refused ones.

    Returns
    -------
    Summary
        What the city has now, and the findings of the checks. `numbers` is the `CityRun`: how many
        images were stored, their bytes, how many were selected.

    Raises
    ------
    CityFailedError
        When something could not be made or fetched, or a check found an error: a line each.
    CityFileError, TokenMissingError, SettingError
        Before anything is started or written.
    CityBusyError
        When another process runs the city.
    """
    outcome = run_named_city(city, overwrite=overwrite, recheck_unavailable=recheck_unavailable)
    if outcome.run.failures:
        raise CityFailedError("\n".join(outcome.run.failures))
    return Summary("\n".join(outcome.lines()), outcome.run)


@_in_a_notebook
def plan(city: str) -> Summary[DownloadPlan]:
    """Say what the photographs of a city will take, after running all that comes before them.

    Downloads about 30 photographs, to their places, to measure their sizes.

    Returns
    -------
    Summary
        `numbers` is the `DownloadPlan`: images, bytes, requests.

    Raises
    ------
    CityFailedError
        When something could not be made or fetched, or a check found an error: a line each.
    CityFileError, TokenMissingError, SettingError
        Before anything is started or written.
    CityBusyError
        When another process runs the city.
    """
    outcome = run_named_city(city, plan_only=True)
    if outcome.run.failures or outcome.run.plan is None:
        raise CityFailedError("\n".join(outcome.run.failures))
    return Summary("\n".join(outcome.lines()), outcome.run.plan)


@_in_a_notebook
def status(city: str) -> Summary[CityStatus]:
    """Count what of a city is done, missing, failed, unavailable or orphaned; fetch nothing.

    Returns
    -------
    Summary
        `numbers` is the `CityStatus`.

    Raises
    ------
    CityFileError
        When there is no such city, or its file is wrong.
    """
    current = status_of(city)
    return Summary("\n".join(current.lines()), current.status)


@_in_a_notebook
def photographs(city: str) -> geopandas.GeoDataFrame:
    """Return a city's photographs and gaps: a row per street point and image.

    These are the rows and columns of `dataset.parquet`, as they are now, held in memory.

    Returns
    -------
    geopandas.GeoDataFrame
        `geometry`: the street point (EPSG:4326), None for an image that is near to none.
        `file`: path of the photograph (str), null where it is not on disk. `state`: `stored`,
        `missing`, `gap`, … . `image_id` and other whole numbers: Int64, so that ids are exact
        although there are nulls. `distance`: metres; `compass_angle`: degrees clockwise from north.

    Raises
    ------
    CityFileError
        When there is no such city, or its file is wrong.
    NothingSelectedError
        When the city was not run yet.
    """
    settings = start_postgis()
    found = find_city(city)
    postgis = project_database(settings)
    rows = dataset(postgis, found).read_all()
    frame = rows.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    frame["file"] = frame["file"].map(
        lambda name: str(found.sequences_folder / name), na_action="ignore"
    )
    geometry = geopandas.points_from_xy(frame["lon"], frame["lat"], crs=4326)
    geometry[frame["lon"].isna().to_numpy()] = None
    return geopandas.GeoDataFrame(frame, geometry=geometry)
