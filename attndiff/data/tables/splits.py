"""The parts that data has, train, validation and test, by the names of its files, folders or a column."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from attndiff.errors import UserError

# What each part is called in the data sets that people have.
NAMES = {
    "train": ("train", "training", "trn"),
    "validation": (
        *("validation", "valid", "val", "dev", "eval", "evaluation"),
        *("heldout", "held_out", "holdout", "hold_out"),
    ),
    "test": ("test", "testing", "tst"),
}
PARTS = tuple(NAMES)
COLUMNS = ("split", "partition", "subset")


class MissingPart(UserError):
    """The data has no part of the name asked for."""


def part_of(name: str) -> str | None:
    """The part that a folder, a split or a cell of this name is, or None."""
    word = re.sub(r"[\s-]+", "_", name.strip().casefold())
    return next((part for part, names in NAMES.items() if word in names), None)


def part_of_file(name: str) -> str | None:
    """The part that a file's name speaks of, as in ``train-00000-of-00002.parquet`` and ``icons_val.tar``."""
    stem = re.sub(r"(held|hold)[\W_]+out", r"\1out", PurePosixPath(name).stem.casefold())
    found = {part_of(word) for word in re.split(r"[\W\d_]+", stem)} - {None}
    return found.pop() if len(found) == 1 else None


def require_part(parts: Iterable[str], part: str, path: str | Path, whole: bool) -> str:
    """The key of a part; data without parts has the one key ''.

    Raises:
        MissingPart: If there is none of that name.
    """
    parts = list(parts)
    if part in parts:
        return part
    if "" in parts and (whole or part == "train"):
        return ""
    there = ", ".join(parts) if "" not in parts else "no parts: set validation to a path or a fraction"
    raise MissingPart(f"{path}: has no part called {part!r}, it has {there}")


def divide(found: dict[str, str | None], where: str | Path, named_parts: bool | None) -> dict[str, list[str]]:
    """Files by part, those in none under ``""``.

    Args:
        found: Of each file the part that its name or its folders say, or None.
        where: What a message calls the data.
        named_parts: Whether such names mean parts; None: they do if all files have one.

    Raises:
        UserError: If some files have such a name and others do not, and nobody said what that means.
    """
    named = [name for name, part in found.items() if part is not None]
    if not named or named_parts is False:
        return {"": list(found)}
    unnamed = [name for name, part in found.items() if part is None]
    if unnamed and named_parts is None:
        raise UserError(
            f"{where}: {named[0]} is called a part of the data and {unnamed[0]} is not; are train, validation and test "
            f"its parts? Set data.named_parts=true, which leaves {len(unnamed)} files out that are in none, or "
            "data.named_parts=false, which takes all together"
        )
    parts: dict[str, list[str]] = {}
    for name, part in found.items():
        parts.setdefault(part or "", []).append(name)
    return parts


def shard_parts(files: list[Path], root: Path, named_parts: bool | None) -> dict[str, list[Path]]:
    """Parquet files or other shards by the part that their name speaks of, or a folder below ``root`` is called.

    Raises:
        UserError: See `divide`.
    """
    found = {}
    for file in files:
        relative = file.relative_to(root)
        folder = next(filter(None, map(part_of, relative.parts[:-1])), None)
        found[relative.as_posix()] = part_of_file(file.name) or folder
    parts = divide(found, root, named_parts)
    if set(parts) != {""}:
        parts.pop("", None)
    return {part: [root / name for name in names] for part, names in parts.items()}


def split_column(columns: dict[str, list]) -> dict[str, list[int]]:
    """Rows by part, where a column called ``split`` or the like holds nothing but names of parts; else none.

    Args:
        columns: Values by name of the columns, see `COLUMNS`.
    """
    for values in columns.values():
        parts = [part_of(value) if isinstance(value, str) else None for value in values]
        if parts and None not in parts:
            return {part: [row for row, of in enumerate(parts) if of == part] for part in sorted(set(parts))}
    return {}
