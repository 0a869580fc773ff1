"""Paths as city files write them."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _user_path(path: Path) -> Path:
    if b"\0" in os.fsencode(path):
        raise ValueError("must be a path that a file can have, without a null character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"must begin with a home folder that exists ({error})") from error


UserPath = Annotated[Path, AfterValidator(_user_path)]
"""A path in which `~` is the home folder."""
