"""The `vsvi` command: what researchers type."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import click
import psycopg2
from dotenv import dotenv_values

from vsvi_assets.city import City, CityFileError
from vsvi_assets.city.area import MAX_TILES
from vsvi_assets.city.split import split_city
from vsvi_assets.database.debian import UNPACKED, InstallationError, unpack_postgis
from vsvi_assets.database.errors import PostgisError
from vsvi_assets.database.server import (
    LocalPostgis,
    LocalPostgisError,
    free_port,
    project_database,
)
from vsvi_assets.database.tile_requests import paced_client
from vsvi_assets.dataset.errors import DatasetError
from vsvi_assets.files import (
    DiskFullError,
    DiskGuard,
    TextFileError,
    atomic_write,
    in_store,
    local_copy,
)
from vsvi_assets.mapillary.errors import RefusedTokenError
from vsvi_assets.photographs.verification import verify_photographs
from vsvi_assets.progress import progress_on
from vsvi_assets.running import services
from vsvi_assets.running.new_project import write_new_project
from vsvi_assets.running.pages import Pages
from vsvi_assets.running.project import (
    Outcome,
    find_city,
    find_city_with_its_region,
    project_settings,
    run_named_city,
    start_all,
    start_postgis,
    status_of,
)
from vsvi_assets.settings import (
    SandboxMissingError,
    SettingError,
    Settings,
    TokenMissingError,
)
from vsvi_assets.store import StoreError, StoreRefusedError
from vsvi_assets.streets.errors import PlaceError
from vsvi_assets.views.qgis import qgis_project
from vsvi_assets.views.status import verification_lines

ERRORS_FOR_PEOPLE = (
    CityFileError,
    DatasetError,
    DiskFullError,
    InstallationError,
    LocalPostgisError,
    PlaceError,
    PostgisError,
    RefusedTokenError,
    SandboxMissingError,
    SettingError,
    StoreError,
    StoreRefusedError,
    TextFileError,
    TokenMissingError,
    services.ServiceError,
)

SECONDS_TO_NOTICE_A_SERVER = 20.0
"""After which Dagster's daemon knows that a code server is there again."""

OUTPUT = click.Path(path_type=Path)


class _Commands(click.Group):
    """The commands; what a person can fix is printed as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ERRORS_FOR_PEOPLE as error:
            raise click.ClickException(str(error)) from error
        except PermissionError as error:
            raise click.ClickException(
                f"{error.filename} is not open to this user. Let it belong to the user who runs "
                "vsvi, or set VSVI_DATA_DIR to a folder of your own."
            ) from error
        except OSError as error:
            # A pipe that was closed, as by `| head`, is click's business.
            if error.errno in (None, errno.EPIPE):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror}.") from error
        except psycopg2.Error as error:
            raise click.ClickException(f"The database answers: {str(error).strip()}") from error
        except KeyboardInterrupt:
            click.echo("Interrupted. What is whole is kept: run it again to go on.", err=True)
            raise SystemExit(128 + signal.SIGINT) from None


@click.group(cls=_Commands)
@click.version_option(package_name="vsvi-assets")
def main() -> None:
    """From a city's bounding box to street-view photographs."""


@main.command()
def init() -> None:
    """Make this folder a project.

    Writes Dagster's configuration, an example of the settings and the demo city.
    """
    written = write_new_project(Path.cwd())
    for path in written:
        click.echo(path.relative_to(Path.cwd()))
    if not written:
        click.echo("This folder is a project already: nothing was written.")


@main.command()
@click.argument("city_name", metavar="CITY")
@click.option(
    "--tiles",
    type=click.IntRange(1, MAX_TILES),
    default=MAX_TILES,
    show_default=True,
    help="Most tiles of a part.",
)
def split(city_name: str, tiles: int) -> None:
    """Cut CITY into several cities.

    Writes their city files, each with a part of the area.
    """
    settings = project_settings()
    parts = split_city(city_name, settings.cities_dir, settings.data_dir, tiles)
    for part in parts:
        click.echo(f"{part.name}: {len(part.tiles):,} tile{'s' if len(part.tiles) > 1 else ''}")
    click.echo(
        f"The file of {city_name} is unchanged. Delete it, so that its area is not in two cities."
    )


@main.command()
def up() -> None:
    """Start what cities and Dagster need.

    That is PostGIS, the server of the reports and, for the cities on it, the sandbox. A region
    that is a place is looked up where it never was.
    """
    # osmnx takes a second to load, which other commands need not.
    from vsvi_assets.running.places import look_up_all

    started = start_all()
    for line in (*started.lines, *look_up_all(started.settings)):
        click.echo(line)


@main.command()
@click.argument("city_name", metavar="CITY")
def region(city_name: str) -> None:
    """Look up the place that is CITY's region.

    It is looked up once, and the answer is kept.
    """
    city = find_city_with_its_region(city_name, services.user_environment())
    if city.region is None:
        click.echo(f"{city.name} has no region, but a bounding box.")
    elif city.region.file:
        click.echo(f"The region of {city.name} is the file {city.region.file}.")
    else:
        click.echo(
            f"The region of {city.name} is kept in {city.region_path}. Delete that file to have "
            "the place looked up again."
        )


@main.command("install-postgis")
def install_postgis() -> None:
    """Unpack PostGIS where it is not installed.

    It needs no root, and Debian or Ubuntu.
    """
    settings = project_settings()
    if settings.postgres_url or LocalPostgis(settings.machine_dir).is_installed():
        return
    click.echo(f"Unpacking PostgreSQL and PostGIS into {UNPACKED}")
    unpack_postgis()


@main.command()
def down() -> None:
    """Stop what `vsvi up` started."""
    stopped = services.stop_all(services.user_environment())
    click.echo(f"Stopped: {', '.join(stopped)}" if stopped else "Nothing runs.")


@main.command()
@click.argument("city_name", metavar="CITY")
@click.option("--tiles-only", is_flag=True, help="Fetch the tiles' metadata, no photographs.")
@click.option("--overwrite", "-O", is_flag=True, help="Fetch again what is on disk already.")
@click.option(
    "--recheck-unavailable",
    is_flag=True,
    help="Ask again for images that Mapillary did not have any more, or that were refused.",
)
def materialize(
    city_name: str, tiles_only: bool, overwrite: bool, recheck_unavailable: bool
) -> None:
    """Run all assets of CITY in order.

    What is on disk and whole is not fetched again.
    """
    outcome = run_named_city(
        city_name,
        tiles_only=tiles_only,
        overwrite=overwrite,
        recheck_unavailable=recheck_unavailable,
    )
    _report(outcome)


@main.command()
@click.argument("city_name", metavar="CITY")
def plan(city_name: str) -> None:
    """Say what CITY's photographs will take.

    Runs all assets that come before them, and downloads 30 photographs to measure them.
    """
    _report(run_named_city(city_name, plan_only=True))


@main.command()
def demo() -> None:
    """Run the demo city on the sandbox."""
    _report(run_named_city("demo", on_start=lambda run: click.echo("\n".join(run.lines))))


@main.command()
@click.argument("city_name", metavar="CITY")
@click.option(
    "--verify",
    is_flag=True,
    help="Read every sidecar anew, and every photograph to compare its SHA-256.",
)
def status(city_name: str, verify: bool) -> None:
    """Report what CITY has and what it lacks.

    Counts what is done, missing, failed, not answered, unavailable, refused or orphaned.
    """
    current = status_of(city_name, from_sidecars=verify)
    click.echo("\n".join(current.lines()))
    if verify:
        found = verify_photographs(current.city.sequences_folder)
        click.echo("\n".join(verification_lines(found)))
        if found.differences:
            raise click.ClickException("\n".join(["Files that differ:", *found.differences]))


@main.command()
@click.argument("city_name", metavar="CITY")
def qgis(city_name: str) -> None:
    """Write a QGIS project of CITY's tables.

    Prints the command that opens it.
    """
    from vsvi_assets.database.dataset import require_selection

    city = find_city(city_name)
    # QGIS gets photographs in an object store from the server of the reports.
    in_object_store = in_store(city.sequences_folder)
    settings = start_all().settings if in_object_store else start_postgis()
    require_selection(project_database(settings), city)
    city.qgis_project_path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(city.qgis_project_path) as file:
        file.write(qgis_project(city, settings.postgres_url, settings.pages_url).encode())
    command = f"qgis {shlex.quote(str(city.qgis_project_path))}"
    if settings.postgres_url is None:
        service_file = LocalPostgis(settings.machine_dir).service_file
        command = f"PGSERVICEFILE={shlex.quote(str(service_file))} {command}"
    click.echo(command)


@main.command()
@click.argument("city_name", metavar="CITY")
@click.option(
    "--format",
    "ending",
    type=click.Choice(["parquet", "gpkg", "csv"]),
    default="parquet",
    help="GeoParquet (default), GeoPackage or CSV.",
)
@click.option("--output", type=OUTPUT, help="The file to write; its ending names the format.")
@click.option("--shards", type=OUTPUT, help="Also write WebDataset tar files to this folder.")
@click.option(
    "--copies", type=OUTPUT, help="Also write photographs with EXIF and XMP to this folder."
)
def export(
    city_name: str, ending: str, output: Path | None, shards: Path | None, copies: Path | None
) -> None:
    """Write all of CITY as one table.

    It has one row per street point and image, gaps included.
    """
    from vsvi_assets.dataset.exif import write_described_copies
    from vsvi_assets.dataset.export import convert_table
    from vsvi_assets.dataset.shards import write_shards

    city = find_city(city_name)
    rows = _export(city)
    path = output or city.dataset_path.with_suffix(f".{ending}")
    with local_copy(city.dataset_path) as table:
        if path != city.dataset_path:
            convert_table(table, path)
        click.echo(f"{path}: {rows:,} rows; `file` lies below {city.sequences_folder}")
        if shards:
            written = write_shards(table, city.sequences_folder, shards)
            click.echo(f"{shards}: {len(written):,} shards")
        if copies:
            heading_at = city.views.heading_at if city.views else "centre"
            count = write_described_copies(table, city.sequences_folder, copies, heading_at)
            click.echo(f"{copies}: {count:,} photographs with EXIF and XMP")


@main.command()
@click.argument("city_name", metavar="CITY")
@click.option("--output", type=OUTPUT, help="The folder to make, or a file that ends in .zip.")
@click.option("--without-photographs", is_flag=True, help="The table and its descriptions alone.")
def freeze(city_name: str, output: Path | None, without_photographs: bool) -> None:
    """Make a BagIt bag of CITY to publish.

    It holds the table, a manifest, a citation and the photographs.
    """
    from vsvi_assets.dataset.descriptions import citation
    from vsvi_assets.dataset.freeze import freeze as freeze_dataset
    from vsvi_assets.dataset.freeze import frozen_tiles

    city = find_city(city_name)
    now = datetime.now(UTC)
    path = output or Path.cwd() / f"{city.name}-{now:%Y-%m-%d}"
    _export(city)
    with local_copy(city.dataset_path) as table:
        manifest = freeze_dataset(
            path,
            city=city.name,
            city_file=city.model_dump(mode="json", exclude_unset=True),
            services=city.services,
            tiles=frozen_tiles(city),
            table=table,
            photographs=None if without_photographs else city.sequences_folder,
            now=now,
        )
    counts = manifest.counts
    click.echo(
        f"{path}: {counts.street_points:,} street points, {counts.gaps:,} gaps, "
        f"{counts.photographs:,} photographs, {counts.bytes:,} bytes\n\n"
        f"Cite it as\n\n{citation(manifest)}"
    )


@main.command()
@click.argument("manifest_path", metavar="MANIFEST", type=click.Path(path_type=Path))
@click.option("--into", type=OUTPUT, help="The folder to make; default: <city>-rebuilt.")
def rebuild(manifest_path: Path, into: Path | None) -> None:
    """Fetch a frozen dataset's photographs again.

    Each is compared with the SHA-256 in MANIFEST.
    """
    from vsvi_assets.dataset.manifest import count_photographs, read_manifest
    from vsvi_assets.dataset.rebuild import WITHDRAWN_NAME, rebuild_city
    from vsvi_assets.dataset.rebuild import rebuild as rebuild_dataset

    manifest, table = read_manifest(manifest_path)
    folder = (into or Path(f"{manifest.city}-rebuilt")).absolute()
    start_all()
    city = rebuild_city(manifest, folder)
    settings = project_settings()
    with progress_on(sys.stderr) as progress, paced_client(city, settings) as client:
        found = rebuild_dataset(
            manifest,
            table,
            client,
            folder,
            size=city.image_size,
            guard=DiskGuard(folder, city.required_free_bytes),
            settled=progress.counting(
                city.name, count_photographs(table), "images", lambda line: None
            ),
        )
    click.echo(f"{folder}: {found.proved:,} photographs are those that were frozen")
    if found.withdrawn:
        click.echo(
            f"{len(found.withdrawn):,} are left out of Mapillary's answers; remove your copies of "
            f"those that stay so for longer than a day: {folder / WITHDRAWN_NAME}"
        )
    failures = [f"image {image_id}: other bytes than were frozen" for image_id in found.other_bytes]
    failures += [f"image {image_id}: {reason}" for image_id, reason in found.failed.items()]
    if failures:
        raise click.ClickException("\n".join(failures))


@main.command()
@click.argument("city_name", metavar="CITY")
def percept(city_name: str) -> None:
    """Write what percept-vsvi-filter reads.

    Prints the commands to run there.
    """
    from vsvi_assets.dataset.percept import write_percept_inputs

    city = find_city(city_name)
    if in_store(city.sequences_folder):
        raise click.ClickException(
            "percept-vsvi-filter reads files, and the photographs are in the object store "
            f"{city.sequences_folder}. Copy them to this machine, for example by "
            f"`vsvi freeze {city.name}`, or keep this city's data in a folder (VSVI_DATA_DIR)."
        )
    _export(city)
    folder = city.folder / "percept"
    inputs = write_percept_inputs(city.dataset_path, city.sequences_folder, city.name, folder)
    click.echo(f"# {inputs.photographs:,} photographs on the lists in {folder}")
    if inputs.without_place:
        click.echo(f"# {inputs.without_place:,} of them get no SQL: no compass angle or position")
    if inputs.stale:
        click.echo(
            f"# {len(inputs.stale):,} files are older than their photograph; make them again:"
        )
        click.echo("\n".join(f"#   {path}" for path in inputs.stale))
    click.echo("\n".join(inputs.commands))


@main.command()
def doctor() -> None:
    """Look at all that a run needs.

    Says how to fix what is wrong. Each service is asked once.
    """
    # Dagster takes a second to load, which other commands need not.
    from vsvi_assets.running.doctor import Verdict, examine

    with suppress(LocalPostgisError):  # it is among the findings
        start_all()
    verdicts = []
    for finding in examine(project_settings()):
        click.echo(str(finding))
        verdicts.append(finding.verdict)
    if Verdict.BAD in verdicts:
        raise SystemExit(1)


@main.command()
@click.option("--host", default="127.0.0.1", help="Name or address by which it is reached.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Default: any free one.")
@click.option(
    "--tiles",
    multiple=True,
    metavar="FOLDER|FILE@14/x/y",
    help="Serve recorded tiles: a folder of them, or one file as that tile. Repeatable.",
)
@click.option("--osm", type=click.Path(exists=True, path_type=Path), help="Serve these streets.")
@click.option(
    "--jpegs", type=click.Path(exists=True, path_type=Path), help="Serve this folder's pictures."
)
@click.option("--address-file", type=click.Path(path_type=Path), hidden=True)
def sandbox(
    host: str,
    port: int | None,
    tiles: tuple[str, ...],
    osm: Path | None,
    jpegs: Path | None,
    address_file: Path | None,
) -> None:
    """Serve invented or recorded data.

    It stands in for Mapillary and OpenStreetMap.
    """
    from vsvi_assets.sandbox import Sandbox, SandboxError, demo_world, recorded_world

    def ready(sandbox: Sandbox) -> None:
        if address_file:
            _write_address(address_file, {"VSVI_SANDBOX_URL": sandbox.url})
        click.echo(f"The sandbox answers at {sandbox.url}, for cities with this setting:")
        click.echo(f"VSVI_SANDBOX_URL={sandbox.url}")

    try:
        recorded = tiles or osm or jpegs
        world = recorded_world(tiles, osm, jpegs) if recorded else demo_world()
        Sandbox(world, host=host, port=port or _port_of_before(address_file)).run(ready)
    except SandboxError as error:
        raise click.ClickException(str(error)) from error


@main.command(hidden=True)
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=int, help="Default: the one of before, or any free one.")
@click.option("--address-file", type=click.Path(path_type=Path))
def pages(host: str, port: int | None, address_file: Path | None) -> None:
    """Serve the coverage reports; `vsvi up` starts it for this machine alone."""
    data_dir = Settings.from_environment().data_dir
    server = Pages(data_dir, port or _port_of_before(address_file), host)
    if address_file:
        _write_address(address_file, {"VSVI_PAGES_URL": server.url})
    server.serve_forever()


@main.command("code-server", hidden=True)
@click.argument("name")
@click.option("--port", type=int, required=True)
def code_server(name: str, port: int) -> None:
    """Serve the assets to a webserver and a daemon elsewhere, and execute their runs.

    NAME is the host by which they know this server, as in their workspace.yaml.
    """
    from dagster import DagsterInstance

    from vsvi_assets.orchestration.launcher import unfinished_runs_of_code_server

    # A server that is only about to start has no runs: these went with the one before.
    with DagsterInstance.get() as instance:
        lost = unfinished_runs_of_code_server(instance, name)
    if lost:
        address = ["--host", name, "--port", str(port)]
        subprocess.Popen([sys.executable, "-m", "vsvi_assets.cli", "end-runs", *address, *lost])
    command = ["dagster", "code-server", "start", "--host", "0.0.0.0", "--port", str(port)]
    os.execvp(command[0], [*command, "--module-name", "vsvi_assets.definitions"])


@main.command()
def worker() -> None:
    """Execute runs that other machines launch, one after the other; see "Many machines".

    Ctrl-C lets the run that goes on end first. A second Ctrl-C ends it too, and another worker
    takes it up.
    """
    if find_spec("dagster_celery") is None:
        raise click.ClickException(
            "A worker needs dagster-celery: pip install 'vsvi-assets[celery]'"
        )
    from vsvi_assets.orchestration.celery_app import app_arguments

    os.environ.update(services.user_environment())
    app_arguments()  # so that a wrong setting is reported by itself
    app = ["--app", "vsvi_assets.orchestration.celery_worker"]
    name = ["--hostname", f"vsvi-{os.getpid()}@%h"]
    command = [sys.executable, "-m", "celery", *app, "worker", *name, "--loglevel", "INFO"]
    os.execv(command[0], command)


@main.command("end-runs", hidden=True)
@click.argument("run_ids", nargs=-1)
@click.option("--host", required=True)
@click.option("--port", type=int, required=True)
def end_runs(run_ids: tuple[str, ...], host: str, port: int) -> None:
    """Record that runs have lost their processes, once the code server serves.

    Dagster's daemon starts them again, for which it needs the server, and tries that once.
    """
    from dagster import DagsterInstance

    from vsvi_assets.orchestration import launcher

    check = ["dagster", "api", "grpc-health-check", "--host", host, "--port", str(port)]
    while subprocess.run(check, capture_output=True).returncode:
        time.sleep(1)
    time.sleep(SECONDS_TO_NOTICE_A_SERVER)
    with DagsterInstance.get() as instance:
        launcher.end_runs(instance, run_ids)


def _write_address(path: Path, address: dict[str, str]) -> None:
    """Say where a server answers, for `services` to read."""
    with atomic_write(path) as file:
        file.write(services.env_lines({**address, "PID": str(os.getpid())}).encode())


def _port_of_before(address_file: Path | None) -> int:
    """Return the port at which a server answered before, where it is free, else any free one.

    Links to a report, and what `dagster dev` has read from `.env`, outlive the server.
    """
    before = dotenv_values(address_file) if address_file and address_file.is_file() else {}
    address = next(iter(before.values()), None)
    return free_port(urlsplit(address or "").port)


def _export(city: City) -> int:
    """Write a city's dataset as it is now, and return its number of rows."""
    from vsvi_assets.database.dataset import dataset
    from vsvi_assets.dataset.export import write_table

    settings = start_postgis()
    postgis = project_database(settings)
    return write_table(dataset(postgis, city), city.dataset_path)


def _report(outcome: Outcome) -> None:
    click.echo("\n".join(outcome.lines()))
    if outcome.run.failures:
        raise click.ClickException("\n".join(outcome.run.failures))


if __name__ == "__main__":
    main()
