"""What can be wrong with photographs and their folders."""

from vsvi_assets.mapillary.errors import InvalidImageError


class OtherFormatError(InvalidImageError):
    """A picture in another format than JPEG, or a JPEG of a kind that Pillow does not read."""


class UnusableFolderError(Exception):
    """A sequence's folder in which nothing can be, or may be, done."""
