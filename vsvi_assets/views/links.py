"""Addresses at which browsers and QGIS find what a city has."""

import os
from urllib.parse import quote

from vsvi_assets.city import City
from vsvi_assets.files import DataPath, in_store
from vsvi_assets.store import address_of


def report_link(city: City, pages_url: str | None) -> str:
    """Return the address of a city's coverage report: of the file itself where none serves it."""
    return page_link(city.coverage_report_path, pages_url)


def photographs_link(city: City, pages_url: str | None) -> str:
    """Return the address of the photographs: their folder, or of an object store the server's."""
    folder = city.sequences_folder
    return page_link(folder, pages_url) if in_store(folder) else folder.as_uri()


def page_link(path: DataPath, pages_url: str | None) -> str:
    """Return the address of a file on the server of the reports: its own path, or bucket and key.

    Where none serves it, the address is that of the file itself.
    """
    if pages_url is None:
        return path.as_uri()
    return pages_url + quote(f"/{address_of(path)}" if in_store(path) else os.path.normpath(path))
