"""What can be wrong with photographs and their folders."""

import errno

from vsvi_assets.mapillary.errors import MapillaryError


class InvalidImageError(MapillaryError):
    """The bytes are no whole JPEG."""


class OversizedImageError(InvalidImageError):
    """An image of more pixels or bytes than can be used."""


class OtherFormatError(InvalidImageError):
    """A picture in another format than JPEG, or a JPEG of a kind that Pillow does not read."""


class InvalidSidecarError(MapillaryError):
    """An images.geojson that cannot be read."""


LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
"""Errors of a folder that stay until someone sees to it."""


class UnusableFolderError(Exception):
    """A sequence's folder in which nothing can be, or may be, done.

    `may_pass` says whether the same may succeed minutes later, with nothing changed.
    """

    def __init__(self, message: str, cause: OSError | None = None) -> None:
        super().__init__(message)
        self.may_pass = cause is not None and cause.errno not in LASTING
