"""``metadata.csv`` and ``metadata.jsonl``: what is said of a folder's images, a row each."""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from attndiff.data.tables.pointers import refuse_pointer
from attndiff.errors import UserError

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Windows' "Unicode"
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
DELIMITERS = (",", ";", "\t")  # the second is a spreadsheet's where the comma is in numbers
DELIMITER_HINT = re.compile(r'"?sep=(.)"?\n', re.IGNORECASE)  # a first line that is for spreadsheets


def metadata_rows(path: Path) -> list[dict]:
    """Rows of a metadata.csv or metadata.jsonl, with ``file_name`` checked to stay in the folder.

    Raises:
        UserError: If it cannot be read as what it is called, or a row names no file.
    """
    text = read_text(path)
    rows = list(_csv_rows(text, path) if path.suffix.lower() == ".csv" else _json_rows(text, path))
    if not rows:
        raise UserError(f"{path}: has no rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            columns = ", ".join(str(column) for column in row)
            raise UserError(f"{path}: row {number} has no file_name, only {columns}")
        row["file_name"] = safe_relative(row["file_name"], path)
    return rows


def _csv_rows(text: str, path: Path) -> Iterator[dict]:
    """Rows of a CSV, which ends outside of quotes and has as many cells in a row as the header has names."""
    hint = DELIMITER_HINT.match(text)
    text = text[hint.end() :] if hint else text
    header = text.split("\n", 1)[0]
    delimiter = next((d for d in DELIMITERS if "file_name" in (cell.strip('"\r ') for cell in header.split(d))), ",")
    delimiter = hint[1] if hint else delimiter
    above = 1 if hint else 0  # lines
    before = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = above + 1
    try:
        names = [name.strip() for name in next(reader, [])]
        _refuse_twice(names, path)
        while True:
            line = above + reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if len(cells) > len(names):
                raise UserError(
                    f"{path}: line {line} has more cells than the header, put quotes around commas in a cell"
                )
            if cells:
                yield dict(zip(names, cells + [None] * (len(names) - len(cells)), strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}: the row that begins on line {line} is no CSV ({error}); a quote in a cell is written twice, "
            "and the cell between quotes"
        ) from None
    finally:
        csv.field_size_limit(before)


def _refuse_twice(names: list[str], path: Path) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: has two columns called {twice!r}, rename one of them")


def _json_rows(text: str, path: Path) -> Iterator[dict]:
    if text.lstrip().startswith("["):
        raise UserError(
            f"{path}: holds one JSON list; write each of its objects on a line of its own, without brackets"
        )
    # Only these end a line of JSON; the other ends of lines that Python knows may stand in a text.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json_row(line, number, path)


def _json_row(line: str, number: int, path: Path) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "brackets in brackets without end" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: line {number} is not JSON ({reason})") from None
    if not isinstance(row, dict):
        raise UserError(f'{path}: line {number} is not a JSON object such as {{"file_name": ..., "text": ...}}')
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UserError(f"{path}: line {number} holds {half}, which is half of a character, take it out") from None
    return row


def safe_relative(name: str, where: Path) -> str:
    """A file name of a metadata file, normalised; raises `UserError` if it leads, or may lead, out of the folder."""
    outside = name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name)
    if outside or "\\" in name or "\0" in name:
        raise UserError(f"{where}: file_name {name!r} is not a path inside the folder, give one with / and without ..")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def read_text(path: Path) -> str:
    """A file's text, UTF-8 or what its byte order mark says, ends of lines as one newline; raises `UserError`."""
    try:
        data = path.read_bytes()
        refuse_pointer(data, path)
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise UserError(f"{path}: is not UTF-8 text (byte 0x{byte:02x} in line {line}), save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
