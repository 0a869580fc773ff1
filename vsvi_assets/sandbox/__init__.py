"""A stand-in for Mapillary's tile, graph and image servers and for Overpass, on real HTTP.

For the demo and the tests: the pipeline is pointed at it by the URLs in its settings and does
not know that it exists. It serves a `World`: the generated `demo_world`, recorded data
(`recorded_world`), or one made by a test. `Faults` are what it does wrong on purpose, and
`Stats` what it was asked.

    with Sandbox(demo_world()) as sandbox:
        os.environ.update(sandbox.environment())
"""

from vsvi_assets.sandbox.demo import DEMO_BOX, demo_world
from vsvi_assets.sandbox.faults import Fault, Faults
from vsvi_assets.sandbox.limits import AddressBlock, OverpassLimits
from vsvi_assets.sandbox.recorded import recorded_world
from vsvi_assets.sandbox.server import TOKEN, Sandbox
from vsvi_assets.sandbox.stats import Asked, Stats
from vsvi_assets.sandbox.world import Place, SandboxError, Street, StreetImage, World

__all__ = [
    "DEMO_BOX",
    "TOKEN",
    "AddressBlock",
    "Asked",
    "Fault",
    "Faults",
    "OverpassLimits",
    "Place",
    "Sandbox",
    "SandboxError",
    "Stats",
    "Street",
    "StreetImage",
    "World",
    "demo_world",
    "recorded_world",
]
