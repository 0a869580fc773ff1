"""What may be wrong with a dataset. Each message says what to do."""

from pathlib import Path


class DatasetError(Exception):
    """A dataset cannot be written or read as it is."""


class MissingPhotographError(DatasetError):
    """A photograph that is said to be on disk is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is listed as stored, but is not there. "
            "Run `vsvi materialize` for this city: it fetches what is missing."
        )


class ChangedPhotographError(DatasetError):
    """A photograph is not the one that was downloaded."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} has another SHA-256 than when it was downloaded. Delete it and run "
            "`vsvi materialize` for this city, which fetches it again."
        )


class FolderExistsError(DatasetError):
    """A folder that is to be made is there already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is there already: choose another name, or remove it")


class ManifestError(DatasetError):
    """A manifest, or the table beside it, that cannot be used."""
