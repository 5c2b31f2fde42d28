"""Paths as people write them."""

import os
from pathlib import Path

from attndiff.errors import UserError


def expand(path: str | os.PathLike) -> Path:
    """The path, ``~`` at its beginning being the home folder."""
    return Path(os.path.expanduser(path))


def expand_setting(value: object) -> object:
    """A setting that names a file or folder, as text, ``~`` at its beginning being the home folder.

    Args:
        value: A path or the id of a repository; anything else is returned as it is.

    Raises:
        UserError: If it can be no path.
    """
    if not isinstance(value, (str, os.PathLike)):
        return value
    text = os.path.expanduser(os.fspath(value))
    if not text or "\0" in text:
        raise UserError(f"{text!r} is no path: name a file or a folder")
    return text
