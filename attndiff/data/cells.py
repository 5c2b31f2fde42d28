"""What cells say: captions and classes."""

import unicodedata
from collections.abc import Iterable

from attndiff.data.tables.table import ImageTable, require_column
from attndiff.errors import UserError


def captioned(table: ImageTable, rows: list[int], column: str | None) -> tuple[list[int], list[tuple[str, str]]]:
    """The rows that have a caption, and name and reason of the others; in a table an empty cell is no condition."""
    if column is None or table.root is None or column not in table.columns:
        return rows, []
    values = table.column(column)
    kept = [row for row in rows if values[row] is not None]
    silent = [(table.names[row], f"has no caption ({column!r} is missing)") for row in rows if values[row] is None]
    if not kept:
        raise UserError(f"{table.root / silent[0][0]}: {silent[0][1]}, like all {len(silent)} images; write one")
    return kept, silent


def read_captions(table: ImageTable, rows: list[int], column: str) -> list[list[str]]:
    """Captions of rows that have one; raises `UserError` if the column is missing or says nothing."""
    require_column("caption_column", column, table.columns, table.origin)
    values = table.column(column)
    captions = [clean_captions(values[row]) for row in rows]
    if not any(any(texts) for texts in captions):
        raise UserError(f"{table.origin}: every caption in column {column!r} is empty, name another caption_column")
    return captions


def clean_captions(value: str | list[str] | None) -> list[str]:
    """The captions of a row: at least one; an empty one stands for no condition."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    texts = [unicodedata.normalize("NFC", str(text)).replace("\0", "").strip() for text in texts if text is not None]
    return [text for text in texts if text] or [""]


def read_labels(
    table: ImageTable, passing: list[int], rows: list[int], column: str, class_names: list[str] | None
) -> tuple[list[int], list[str]]:
    """Class numbers of the rows and the names of the classes, which all passing rows decide unless they are given."""
    require_column("label_column", column, table.columns, table.origin)
    values = table.column(column)
    for row in passing:
        if values[row] is None or values[row] == "":
            raise UserError(f"{table.origin} {table.names[row]}: has no class in column {column!r}, give it one")
    if class_names is None:
        present = {str(values[row]) for row in passing}
        given = getattr(table.rows.features[column], "names", None)
        class_names = [name for name in given if name in present] if given else class_order(present)
    numbers = {name: number for number, name in enumerate(class_names)}
    for row in rows:
        if str(values[row]) not in numbers:
            raise UserError(f"{table.origin} {table.names[row]}: class {values[row]!r} is not among those trained on")
    return [numbers[str(values[row])] for row in rows], class_names


def class_order(values: Iterable[object]) -> list[str]:
    """Names of the classes among label values: sorted, by number if they are numbers."""
    names = {str(value) for value in values}
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int if numeric else str)
