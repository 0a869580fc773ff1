"""Coverage reports over HTTP, on this machine alone, with the photographs that they show.

Browsers follow no link from a web page to a file, and an asset's page in Dagster is a web page.
The address of a report is the file's own path on this server, so that what it names relative to
itself is found wherever the photographs lie. Nothing else is served.
"""

import os
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vsvi_assets.city import REPORT_NAME
from vsvi_assets.photographs.sidecar import SIDECAR_NAME


class Pages(ThreadingHTTPServer):
    """Serves the coverage reports under a data folder, and photographs wherever they lie.

    Parameters
    ----------
    data_dir
        Absolute.
    port
        Taken if it is free, else any other.
    host
        The address to listen on; by default this machine alone can see the reports.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, data_dir: Path, port: int = 0, host: str = "127.0.0.1") -> None:
        self._data_dir = Path(os.path.normpath(data_dir))
        try:
            super().__init__((host, port), _Handler)
        except OSError:
            super().__init__((host, 0), _Handler)

    @property
    def url(self) -> str:
        """The address, without a path."""
        return f"http://127.0.0.1:{self.server_port}"

    def is_page(self, path: Path) -> bool:
        """Return whether a file is a coverage report or one of the project's photographs."""
        if path.suffix == ".jpg":
            return path.with_name(SIDECAR_NAME).is_file()
        return path.name == REPORT_NAME and path.parent.parent == self._data_dir


class _Handler(SimpleHTTPRequestHandler):
    server: Pages

    def __init__(self, *args: object) -> None:
        super().__init__(*args, directory="/")  # type: ignore[arg-type]

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.server.is_page(Path(self.translate_path(self.path))):
            return super().send_head()
        self.send_error(404)
        return None

    def end_headers(self) -> None:
        # The report of today is at the address of yesterday's.
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Stay silent."""
