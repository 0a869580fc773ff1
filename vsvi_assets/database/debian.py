"""PostgreSQL with PostGIS from Debian's or Ubuntu's packages, without root.

The packages are unpacked into a folder and not installed. That is enough: PostgreSQL finds its
own files relative to its programs, and the libraries are found by LD_LIBRARY_PATH.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "postgresql-postgis"

UNPACKED = Path(sys.prefix, "postgis")
"""Where the packages are unpacked: inside the virtual environment, and removed with it."""

DPKG_STATUS = Path("/var/lib/dpkg/status")
"""Where dpkg records what is installed."""

_LIBRARY_FOLDERS = ("usr/lib/*-linux-gnu*", "usr/lib", "lib/*-linux-gnu*")


class InstallationError(Exception):
    """The packages cannot be fetched or unpacked; the message says what to do instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"PostGIS cannot be unpacked here: {reason.strip()}\n"
            f"Ask an administrator for: sudo apt-get install --no-install-recommends {PACKAGE}\n"
            "or run: conda install -c conda-forge postgis (pixi: pixi add postgis)\n"
            "or set VSVI_POSTGRES_URL to a database that has PostGIS."
        )


def unpack_postgis(folder: Path = UNPACKED) -> None:
    """Fetch the packages of a PostGIS server that the system lacks, and unpack them.

    Asks apt which packages an installation would add, lets apt-get fetch and verify exactly
    these, and unpacks them with dpkg-deb. The folder appears whole or not at all. Where the
    system's package lists are missing or out of date, new ones are fetched for this purpose.
    Nothing outside the folder is written.

    Raises
    ------
    InstallationError
        When the system has no apt-get, or it cannot fetch a package.
    """
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise InstallationError(f"this system has no {program}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        root, packages, state = (Path(temporary, name) for name in ("root", "packages", "apt"))
        root.mkdir(mode=0o755)
        packages.mkdir()
        status = _status_without_postgresql(state)
        try:
            _fetch(packages, status)
        except InstallationError:
            own_lists = _own_lists(state)
            _run("apt-get", "-qq", *own_lists, "update")
            _fetch(packages, [*status, *own_lists])
        for package in sorted(packages.glob("*.deb")):
            _run("dpkg-deb", "--extract", str(package), str(root))
        _make_links_of_maintainer_scripts(root)
        root.replace(folder)


def library_path(folder: Path) -> dict[str, str]:
    """Return the environment variable by which unpacked programs find unpacked libraries."""
    found = [str(path) for pattern in _LIBRARY_FOLDERS for path in sorted(folder.glob(pattern))]
    return {"LD_LIBRARY_PATH": os.pathsep.join(found)}


def _status_without_postgresql(state: Path) -> Sequence[str]:
    """Return the options by which apt takes all of PostgreSQL for missing.

    A server that is installed without PostGIS does not look for it in another folder.
    """
    state.mkdir()
    installed = DPKG_STATUS.read_text(encoding="utf-8").split("\n\n")
    others = [entry for entry in installed if not entry.startswith("Package: postgresql")]
    status = state / "status"
    status.write_text("\n\n".join(others), encoding="utf-8")
    return ["-o", f"Dir::State::status={status}"]


def _own_lists(state: Path) -> Sequence[str]:
    """Return the options by which apt-get keeps lists and caches in a folder of the user's."""
    for needed in ("lists/partial", "cache/archives/partial"):
        Path(state, needed).mkdir(parents=True)
    return ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]


def _fetch(packages: Path, options: Sequence[str]) -> None:
    simulated = _run(
        "apt-get", *options, "install", "--simulate", "--no-install-recommends", PACKAGE
    )
    missing = re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)
    _run("apt-get", "-qq", *options, "download", *missing, cwd=packages)


def _make_links_of_maintainer_scripts(root: Path) -> None:
    """Make the links by which PostGIS's extension and linear algebra are found."""
    for control in root.glob("usr/share/postgresql/*/extension/postgis-*.control"):
        _link(control.with_name("postgis.control"), control.name)
    for library in ("blas/libblas.so.3", "lapack/liblapack.so.3"):
        for path in root.glob(f"usr/lib/*/{library}"):
            _link(path.parent.with_name(path.name), library)


def _link(path: Path, target: str) -> None:
    if not path.is_symlink() and not path.exists():
        path.symlink_to(target)


def _run(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return what it printed.

    Its output is parsed, so it is asked for in English.
    """
    ran = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise InstallationError(f"{' '.join(command[:2])} failed: {ran.stderr}")
    return ran.stdout
