"""Files that stand for others, which a download left behind."""

from collections.abc import Iterable
from pathlib import Path

from attndiff.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(data: bytes, name: str | Path) -> None:
    """Raise `UserError` if this is what Git LFS puts in place of a file."""
    if data.startswith(LFS_POINTER):
        raise UserError(f"{name}: a pointer of Git LFS, not the file it stands for, fetch it with git lfs pull")


def refuse_pointers(files: Iterable[Path]) -> None:
    """Raise `UserError` if one of these is what Git LFS puts in place of a file."""
    for path in files:
        with path.open("rb") as file:
            refuse_pointer(file.read(len(LFS_POINTER)), path)
