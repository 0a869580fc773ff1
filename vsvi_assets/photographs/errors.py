"""What can be wrong with photographs and their folders."""

from vsvi_assets.mapillary.errors import MapillaryError


class InvalidImageError(MapillaryError):
    """The bytes are no whole JPEG."""


class OversizedImageError(InvalidImageError):
    """An image of more pixels or bytes than can be used."""


class OtherFormatError(InvalidImageError):
    """A picture in another format than JPEG, or a JPEG of a kind that Pillow does not read."""


class InvalidSidecarError(MapillaryError):
    """An images.geojson that cannot be read."""


class UnusableFolderError(Exception):
    """A sequence's folder in which nothing can be, or may be, done."""
