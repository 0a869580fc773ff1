"""Coverage reports over HTTP, on this machine alone, with the photographs that they show.

Browsers follow no link from a web page to a file, and an asset's page in Dagster is a web page.
The address of a report is the file's own path on this server, or bucket and key where the data
folder is an object store, so that what it names relative to itself is found wherever the
photographs lie. Nothing else is served.
"""

import io
import os
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

from vsvi_assets.city import REPORT_NAME
from vsvi_assets.files import DataPath, in_store
from vsvi_assets.photographs.sidecar import SIDECAR_NAME
from vsvi_assets.store import address_of


class Pages(ThreadingHTTPServer):
    """Serves the coverage reports under a data folder, and photographs wherever they lie.

    Parameters
    ----------
    data_dir
        An absolute folder, or a path in an object store.
    port
        Taken if it is free, else any other.
    host
        The address to listen on; by default this machine alone can see the reports.
    """

    def __init__(self, data_dir: DataPath, port: int = 0, host: str = "127.0.0.1") -> None:
        self._data_dir = data_dir if in_store(data_dir) else Path(os.path.normpath(data_dir))
        try:
            super().__init__((host, port), _Handler)
        except OSError:
            super().__init__((host, 0), _Handler)

    @property
    def url(self) -> str:
        """The address, without a path."""
        return f"http://127.0.0.1:{self.server_port}"

    def file_at(self, path: str) -> DataPath | None:
        """Return the file at a path of this server; None where that is not served."""
        if not in_store(self._data_dir):
            return Path(path) if self._is_page(Path(path)) else None
        key, below = PurePosixPath(path.lstrip("/")), address_of(self._data_dir)
        if not key.is_relative_to(below):
            return None
        file = self._data_dir / str(key.relative_to(below))
        return file if self._is_page(file) else None

    def _is_page(self, path: DataPath) -> bool:
        """Return whether a file is a coverage report or one of the project's photographs."""
        if path.suffix == ".jpg":
            return path.with_name(SIDECAR_NAME).is_file()
        return path.name == REPORT_NAME and path.parent.parent == self._data_dir


class _Handler(SimpleHTTPRequestHandler):
    server: Pages

    def __init__(self, *args: object) -> None:
        super().__init__(*args, directory="/")  # type: ignore[arg-type]

    def send_head(self):  # type: ignore[no-untyped-def]
        file = self.server.file_at(self.translate_path(self.path))
        if file and not in_store(file):
            return super().send_head()
        if file is None or not file.is_file():
            self.send_error(404)
            return None
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(file.name))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)

    def end_headers(self) -> None:
        # The report of today is at the address of yesterday's.
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Stay silent."""
