"""Paths as city files write them."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag


def _user_path(path: Path) -> Path:
    if b"\0" in os.fsencode(path):
        raise ValueError("must be a path that a file can have, without a null character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"must begin with a home folder that exists ({error})") from error


UserPath = Annotated[Path, AfterValidator(_user_path)]
"""A path in which `~` is the home folder."""


class FileLayer(BaseModel):
    """One of a file's layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: UserPath
    layer: str = Field(min_length=1)


def _kind_of_file(value: object) -> str:
    return "layer" if isinstance(value, dict | FileLayer) else "file"


FileKey = Annotated[
    Annotated[UserPath, Tag("file")] | Annotated[FileLayer, Tag("layer")],
    Discriminator(_kind_of_file),
]
"""A file, or one of its layers."""


def file_of(value: Path | FileLayer) -> Path:
    """Return the path of a file, whether a layer is named with it or not."""
    return value if isinstance(value, Path) else value.file


def layer_of(value: Path | FileLayer | None) -> str | None:
    """Return the layer that is named with a file; None where none is."""
    return value.layer if isinstance(value, FileLayer) else None
