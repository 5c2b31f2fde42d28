"""What cells say: captions and classes."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from functools import partial

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
    """Captions of rows that have one; raises `UserError` if the column is missing, holds no text or says nothing."""
    stored = stored_column(column, table.columns)
    require_column("caption_column", stored, table.columns, table.origin)
    values, where = table.column(stored), partial(_where, table, column)
    captions = [clean_captions(value_in(values[row], column, stored), where(row)) for row in rows]
    if not any(any(texts) for texts in captions):
        raise UserError(f"{table.origin}: every caption in column {column!r} is empty, name another caption_column")
    return captions


def _where(table: ImageTable, column: str, row: int) -> str:
    return f"{table.origin} {table.names[row]}: column {column!r}"


def stored_column(column: str, columns: Iterable[str]) -> str:
    """The column in which one is stored that may be a member of it, as ``text.en`` is of structures in ``text``."""
    columns = set(columns)
    outer = column.partition(".")[0]
    return outer if column not in columns and outer in columns else column


def value_in(cell: object, column: str, stored: str) -> object:
    """What a cell says, or the member of it that the column's name asks for, of every entry of a list."""
    for name in column.removeprefix(stored).split(".")[1:]:
        if isinstance(cell, (list, tuple)):
            cell = [entry.get(name) if isinstance(entry, Mapping) else entry for entry in cell]
        elif isinstance(cell, Mapping):
            cell = cell.get(name)
    return cell


def clean_captions(value: object, where: str) -> list[str]:
    """The captions of a row: at least one; an empty one stands for no condition.

    Args:
        value: A text or a list of texts, UTF-8 bytes among them; None and NaN are no caption.
        where: What messages call the cell.

    Raises:
        UserError: If it is anything else.
    """
    texts = [_text(entry, where) for entry in (value if isinstance(value, (list, tuple)) else [value])]
    texts = [unicodedata.normalize("NFC", text).replace("\0", "").strip() for text in texts if text is not None]
    return [text for text in texts if text] or [""]


def _text(value: object, where: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where} holds bytes that are not UTF-8 text; store it as text") from None
    if isinstance(value, Mapping):
        names = ", ".join(map(str, value)) or "nothing"
        example = f" after a dot, as in caption_column=COLUMN.{next(iter(value), '')}"
        raise UserError(f"{where} holds structures of {names} and no text; name one{example}")
    if not isinstance(value, str):
        raise UserError(f"{where} holds {type(value).__name__} {value!r} and no text; name a column of captions")
    return value


def read_labels(
    table: ImageTable, passing: list[int], rows: list[int], column: str, class_names: list[str] | None
) -> tuple[list[int], list[str]]:
    """Class numbers of the rows and the names of the classes, which all passing rows decide unless they are given."""
    require_column("label_column", column, table.columns, table.origin)
    values, names = table.column(column), {}
    for row in passing:
        names[row] = class_name(values[row], _where(table, column, row))
        if not names[row]:
            raise UserError(f"{table.origin} {table.names[row]}: has no class in column {column!r}, give it one")
    if class_names is None:
        present = set(names.values())
        given = getattr(table.rows.features[column], "names", None)
        class_names = [name for name in given if name in present] if given else class_order(present)
    numbers = {name: number for number, name in enumerate(class_names)}
    for row in rows:
        if names[row] not in numbers:
            raise UserError(f"{table.origin} {table.names[row]}: class {names[row]!r} is not among those trained on")
    return [numbers[names[row]] for row in rows], class_names


def class_name(value: object, where: str) -> str | None:
    """The name of a class: a text in one Unicode form, or a number as text; None where there is none.

    Raises:
        UserError: If the value is a list or a structure.
    """
    if isinstance(value, (list, tuple, Mapping)):
        kind = "structures" if isinstance(value, Mapping) else "lists"
        raise UserError(f"{where} holds {kind} and no class; name a column with one class a row in label_column")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as which it was stored before a missing value made floats of its column
    text = _text(value, where) if isinstance(value, bytes) else str(value)
    return unicodedata.normalize("NFC", text).strip() or None


def class_order(values: Iterable[object]) -> list[str]:
    """Names of the classes among label values: sorted, by number if they are numbers."""
    names = {str(value) for value in values}
    return sorted(names, key=int if all(map(is_number, names)) else str)


def is_number(name: str) -> bool:
    """Whether a class is called by a whole number; digits of other scripts are text."""
    return name.isascii() and name.removeprefix("-").isdecimal()
