"""The parts that data has, train, validation and test, by the names of its files or folders."""

import re
from pathlib import Path

from attndiff.errors import UserError

PARTS = ("train", "validation", "test")


class MissingPart(UserError):
    """The data has no part of the name asked for."""


def require_part(parts: dict[str, object], part: str, path: Path, whole: bool) -> str:
    """The key of a part; data without parts has the one key ''."""
    if part in parts:
        return part
    if "" in parts and (whole or part == "train"):
        return ""
    there = ", ".join(parts) if "" not in parts else "no parts: set validation to a path or a fraction"
    raise MissingPart(f"{path}: has no part called {part!r}, it has {there}")


def parquet_parts(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the part that begins their name, as in train-00000-of-00002.parquet."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        match = re.match(rf"({'|'.join(PARTS)})(?![a-zA-Z])", file.name)
        parts.setdefault(match[1] if match else "", []).append(file)
    return parts if "" not in parts else {"": files}


def folder_parts(root: Path) -> dict[str, Path]:
    """Subfolders that are parts, if all of them are."""
    folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if folders and all(name in PARTS for name in folders):
        return {name: root / name for name in sorted(folders)}
    return {"": root}
