"""What a frozen dataset says of itself: citation, licence, and its columns for machines.

Sources: Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html); Citation
File Format 1.2.0 (https://citation-file-format.github.io).
"""

from typing import Any

import pyarrow as pa

from vsvi_assets.dataset.manifest import STREETS_LICENCE_PAGE, Manifest
from vsvi_assets.photographs.attribution import ATTRIBUTION
from vsvi_assets.settings import PROJECT_PAGE

_CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "recordSet": "cr:recordSet",
    "source": "cr:source",
}
"""What is used of appendix 1 of the specification."""


def citation(manifest: Manifest) -> str:
    """Return how to cite the dataset, in BibTeX."""
    year = manifest.frozen_at.year
    note = (
        f"{manifest.counts.photographs:,} photographs of Mapillary contributors for "
        f"{manifest.counts.street_points:,} street points, selected with vsvi-assets "
        f"{manifest.software['vsvi-assets']}; SHA-256 of the table {manifest.table.sha256}"
    )
    return (
        f"@misc{{{manifest.city}_street_view_{year},\n"
        f"  title = {{{_title(manifest)}}},\n"
        f"  author = {{{{Mapillary contributors}}}},\n"
        f"  year = {{{year}}},\n"
        f"  url = {{https://www.mapillary.com}},\n"
        f"  note = {{{note}. {manifest.licence}; streets {manifest.streets_licence}}}\n"
        "}"
    )


def citation_file(manifest: Manifest) -> dict[str, Any]:
    """Return the dataset's CITATION.cff."""
    return {
        "cff-version": "1.2.0",
        "message": "Cite this dataset as below, and name the photographs' creators.",
        "type": "dataset",
        "title": _title(manifest),
        "authors": [{"name": "Mapillary contributors", "website": "https://www.mapillary.com"}],
        "date-released": manifest.frozen_at.date(),
        "version": manifest.table.sha256[:12],
        "license": "CC-BY-SA-4.0",
        "abstract": abstract(manifest),
        "references": [
            {
                "type": "software",
                "title": "vsvi-assets",
                "version": manifest.software["vsvi-assets"],
                "url": PROJECT_PAGE,
                "authors": [{"name": "The authors of vsvi-assets"}],
            }
        ],
    }


def croissant(manifest: Manifest, schema: pa.Schema) -> dict[str, Any]:
    """Return the dataset's description in Croissant 1.0: the table and its columns."""
    return {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{manifest.city}-street-view",
        "description": abstract(manifest),
        "license": manifest.licence_page,
        "url": "https://www.mapillary.com",
        "creator": {"@type": "sc:Organization", "name": "Mapillary contributors"},
        "version": f"1.0.0+{manifest.table.sha256[:12]}",
        "datePublished": manifest.frozen_at.date().isoformat(),
        "citeAs": citation(manifest),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": manifest.table.file,
                "name": manifest.table.file,
                "contentUrl": manifest.table.file,
                "encodingFormat": "application/x-parquet",
                "sha256": manifest.table.sha256,
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "description": "One row per street point and image, gaps included.",
                # Croissant has no type for the geometry, which is binary.
                "field": [
                    _croissant_field(manifest, field)
                    for field in schema
                    if not pa.types.is_binary(field.type)
                ],
            }
        ],
    }


def _croissant_field(manifest: Manifest, field: pa.Field) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"rows/{field.name}",
        "name": field.name,
        "description": (field.metadata or {}).get(b"description", b"").decode(),
        "dataType": _croissant_type(field.type),
        "source": {
            "fileObject": {"@id": manifest.table.file},
            "extract": {"column": field.name},
        },
    }


def _croissant_type(type_: pa.DataType) -> str:
    if pa.types.is_boolean(type_):
        return "sc:Boolean"
    if pa.types.is_integer(type_):
        return "sc:Integer"
    if pa.types.is_floating(type_):
        return "sc:Float"
    return "sc:DateTime" if pa.types.is_timestamp(type_) else "sc:Text"


def attribution(manifest: Manifest) -> str:
    """Return the licences and whom they name: the text of ATTRIBUTION.txt."""
    creators = "".join(
        f"  {name or '(unknown)'}: {photographs:,}\n"
        for name, photographs in manifest.creators.items()
    )
    return (
        f"{ATTRIBUTION}\n"
        f"Street points and street names are from OpenStreetMap: {manifest.streets_licence},\n"
        f"{STREETS_LICENCE_PAGE}.\n\n"
        f"The photographs' creators, with the number of their photographs:\n{creators}"
    )


def _title(manifest: Manifest) -> str:
    return f"Street-view photographs of {manifest.city.replace('_', ' ')} from Mapillary"


def abstract(manifest: Manifest) -> str:
    """Return in one sentence what the dataset holds."""
    counts = manifest.counts
    named = len(manifest.creators.keys() - {""})
    return (
        f"{counts.street_points:,} points along streets, {counts.gaps:,} of them without an image, "
        f"and {counts.photographs:,} photographs of {named:,} named Mapillary "
        f"contributors, selected on {manifest.frozen_at:%Y-%m-%d}."
    )
