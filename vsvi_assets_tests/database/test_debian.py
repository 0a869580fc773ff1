"""PostGIS without root: real apt-get and dpkg-deb on a small repository of the test's own."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsvi_assets.database import debian, server
from vsvi_assets.database.debian import InstallationError, library_path, unpack_postgis
from vsvi_assets_tests.conftest import temporary_postgis

needs_apt = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs Debian's tools"
)

EXTENSION = "usr/share/postgresql/99/extension/postgis-3.control"
PACKAGES = {
    "postgresql-postgis": ("postgresql-99-postgis-3", []),
    "postgresql-99-postgis-3": ("libexample", [EXTENSION]),
    "libexample": ("", ["usr/lib/x86_64-linux-gnu/lapack/liblapack.so.3"]),
    "unneeded": ("", ["usr/share/unneeded"]),
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that apt takes for the only one, with its index still to be fetched."""
    folder = tmp_path / "repository"
    index = []
    for name, (depends, files) in PACKAGES.items():
        content = tmp_path / name
        for file in files:
            (content / file).parent.mkdir(parents=True, exist_ok=True)
            (content / file).write_text(name)
        control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody\n"
        control += f"Depends: {depends}\n" if depends else ""
        control += "Description: of a test\n"
        (content / "DEBIAN").mkdir(parents=True)
        (content / "DEBIAN/control").write_text(control)
        package = folder / f"{name}_1_all.deb"
        package.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "-b", content, package], check=True, capture_output=True)
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        index.append(
            f"{control}Filename: ./{package.name}\nSize: {package.stat().st_size}\n"
            f"SHA256: {digest}\n"
        )
    (folder / "Packages").write_text("\n".join(index))
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb [trusted=yes] file:{folder} ./\n")
    lists = tmp_path / "lists"
    (lists / "partial").mkdir(parents=True)
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{lists}";\nAPT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    return folder


@needs_apt
def test_only_the_missing_packages_are_unpacked(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv" / "postgis"

    unpack_postgis(folder)

    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    extension = "usr/share/postgresql/99/extension"
    libraries = "usr/lib/x86_64-linux-gnu"
    assert files == {
        EXTENSION,
        f"{extension}/postgis.control",
        f"{libraries}/lapack/liblapack.so.3",
        f"{libraries}/liblapack.so.3",
    }
    assert (folder / extension / "postgis.control").read_text() == "postgresql-99-postgis-3"
    assert library_path(folder) == {
        "LD_LIBRARY_PATH": f"{folder / libraries}{os.pathsep}{folder / 'usr/lib'}"
    }
    assert list(folder.parent.iterdir()) == [folder], "nothing is left of the work"


@needs_apt
def test_a_package_with_another_checksum_is_refused(repository: Path, tmp_path: Path) -> None:
    with (repository / "libexample_1_all.deb").open("ab") as file:
        file.write(b"changed")

    with pytest.raises(InstallationError, match="sudo apt-get install"):
        unpack_postgis(tmp_path / "venv" / "postgis")

    assert not list((tmp_path / "venv").iterdir())


def test_without_apt_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian.shutil, "which", lambda _: None)
    with pytest.raises(InstallationError) as raised:
        unpack_postgis(tmp_path / "postgis")
    for way in ("sudo apt-get", "conda install", "VSVI_POSTGRES_URL"):
        assert way in str(raised.value)


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The installed server's files, where unpacked packages would have them."""
    programs = max(Path("/usr/lib/postgresql").glob("*"), default=None)
    if programs is None:
        pytest.skip("needs Debian's PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="vsvi-unpacked-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # for the server's own user
        for source in (programs, Path("/usr/share/postgresql") / programs.name):
            shutil.copytree(source, folder / source.relative_to("/"))
        monkeypatch.setattr(server, "UNPACKED", folder)
        yield folder


def test_an_unpacked_server_runs(unpacked: Path) -> None:
    with temporary_postgis() as postgis:
        postgis.start()
        assert "PostGIS" in postgis.version()
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        assert f"{unpacked}/usr/lib/postgresql" in running
