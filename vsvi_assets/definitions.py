"""All cities' assets, with what they need: what `dagster dev` loads."""

from vsvi_assets.orchestration.build import build_defs
from vsvi_assets.settings import Settings

defs = build_defs(Settings.from_environment())
