"""Columns of a data set: which rows to keep, captions, classes."""

import hashlib
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

from attndiff.errors import UserError


def require_column(argument: str, column: str, columns: Iterable[str], where: str) -> None:
    """Raise `UserError` with the nearest names if a data set has no such column."""
    columns = list(columns)
    if column not in columns:
        near = get_close_matches(column, columns, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{where}: has no column {column!r} ({argument}); {hint}it has {', '.join(columns) or 'none'}")


def is_kept(row: dict, where: dict[str, list] | None, exclude: list[dict] | None) -> bool:
    """Whether a row passes the filters; numbers and their text are the same, as in a CSV file."""
    if any(not _matches(row[column], allowed) for column, allowed in (where or {}).items()):
        return False
    return not any(all(_matches(row[column], value) for column, value in entry.items()) for entry in exclude or [])


def _matches(value: object, allowed: object) -> bool:
    allowed = allowed if isinstance(allowed, (list, tuple)) else [allowed]
    return value in allowed or str(value) in [str(entry) for entry in allowed]


def filter_columns(where: dict[str, list] | None, exclude: list[dict] | None) -> list[str]:
    """Columns that the filters name."""
    return list(dict.fromkeys([*(where or {}), *(column for entry in exclude or [] for column in entry)]))


def held_out(keys: list[str], fraction: float) -> list[bool]:
    """Which rows are held out: those whose key hashes below the fraction, and never none of them.

    The same key always falls on the same side, so that growing data keeps its split and a family is never divided.
    """
    scores = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 for key in keys]
    threshold = max(fraction, min(scores, default=0))
    return [score <= threshold for score in scores]


def clean_captions(value: str | list[str] | None) -> list[str]:
    """The captions of a row: at least one; an empty one stands for no condition."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    texts = [unicodedata.normalize("NFC", str(text)).replace("\0", "").strip() for text in texts if text is not None]
    return [text for text in texts if text] or [""]


def class_order(values: Iterable[object]) -> list[str]:
    """Names of the classes among label values: sorted, by number if they are numbers."""
    names = {str(value) for value in values}
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int if numeric else str)
