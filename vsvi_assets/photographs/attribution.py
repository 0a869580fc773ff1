"""The duties that come with the photographs, laid beside them."""

from vsvi_assets.files import DataPath, atomic_write, remove_abandoned_parts

LICENCE = "CC BY-SA 4.0"
LICENCE_PAGE = "https://creativecommons.org/licenses/by-sa/4.0/"

ATTRIBUTION = """\
The photographs in this folder are from Mapillary (https://www.mapillary.com).

They are licensed under the Creative Commons Attribution-ShareAlike 4.0 International
License (CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/). Whoever publishes
them, or something made of them, has to

- name Mapillary and, where it is known, the person who took the photograph,
- link to the photograph's page at Mapillary,
- name the licence and link to it, and say what was changed,
- publish what was made of them under the same licence.

The file images.geojson of each sequence gives, for each photograph, its creator and its
page ("url"). See also https://help.mapillary.com/hc/en-us/articles/115001770409
"""


def write_attribution(seqdir: DataPath) -> None:
    """Write ATTRIBUTION.txt into the folder of the sequences, unless it is there."""
    path = seqdir / "ATTRIBUTION.txt"
    if not path.is_file():
        remove_abandoned_parts(seqdir)
        with atomic_write(path) as file:
            file.write(ATTRIBUTION.encode())
