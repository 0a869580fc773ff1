"""The contract holds the sandbox to its strictest."""

from collections.abc import Iterator

import pytest

from vsvi_assets.sandbox import server


@pytest.fixture(autouse=True, scope="package")
def _strict() -> Iterator[None]:
    """Serve no token in a tile's header, and no Overpass request without a maker."""
    lenient, server.LENIENT = server.LENIENT, False
    yield
    server.LENIENT = lenient
