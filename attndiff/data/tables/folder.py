"""Folders of images to rows: class folders, a metadata file, or captions beside the images."""

import csv
import json
import os
import re
from pathlib import Path

from attndiff.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"}
# Files that lie beside images and are no mistake.
OTHER_SUFFIXES = {".txt", ".csv", ".json", ".jsonl", ".md", ".parquet", ""}
METADATA_FILES = ("metadata.csv", "metadata.jsonl")


def list_images(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Images under a folder, as sorted paths relative to it, and other files with the reason they are left out.

    Raises:
        UserError: A link leads out of the folder.
    """
    images, others = [], []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in [*subfolders, *files]:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise UserError(f"{path}: a link out of {root}, copy what it points to into the folder or remove it")
        for name in files:
            suffix, relative = Path(name).suffix.lower(), Path(folder, name).relative_to(root).as_posix()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                images.append(relative)
            elif suffix not in OTHER_SUFFIXES and not name.startswith("."):
                others.append((relative, f"{suffix} files are not read, convert it to PNG"))
    return sorted(images), sorted(others)


def folder_rows(root: Path) -> tuple[list[dict], list[tuple[str, str]]]:
    """A row for every image of a folder, and files left out with their reasons.

    With a metadata file the rows are its rows. Otherwise they have "label", the name of the class folder, if the
    images lie in folders, and "text", the content of `name.txt` beside `name.png`, if there are such files.

    Raises:
        UserError: There are no images, or metadata cannot be used.
    """
    images, left_out = list_images(root)
    metadata = [root / name for name in METADATA_FILES if (root / name).is_file()]
    if not images and not metadata:
        raise UserError(f"{root}: there are no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if len(metadata) > 1:
        raise UserError(f"{root}: has both metadata.csv and metadata.jsonl, remove one of them")
    if metadata:
        rows = metadata_rows(metadata[0])
        listed, present = {cell for row in rows for cell in row.values() if isinstance(cell, str)}, set(images)
        unlisted = [(name, f"not listed in {metadata[0].name}") for name in images if name not in listed]
        absent = [(row["file_name"], f"listed in {metadata[0].name}, but not there") for row in rows]
        absent = [entry for entry in absent if entry[0] not in present]
        return [row for row in rows if row["file_name"] in present], left_out + unlisted + absent
    rows = [{"file_name": name} for name in images]
    if any("/" in name for name in images):
        for row in rows:
            row["label"] = row["file_name"].split("/")[0] if "/" in row["file_name"] else None
    captions = [(root / name).with_suffix(".txt") for name in images]
    if any(path.is_file() for path in captions):
        for row, path in zip(rows, captions, strict=True):
            row["text"] = _read_text(path) if path.is_file() else None
    return rows, left_out


def metadata_rows(path: Path) -> list[dict]:
    """Rows of a metadata.csv or metadata.jsonl, with `file_name` checked to stay in the folder."""
    if path.suffix == ".csv":
        rows = [dict(row) for row in csv.DictReader(_read_text(path).splitlines(keepends=True))]
    else:
        rows = [_json_row(line, i, path) for i, line in enumerate(_read_text(path).split("\n"), 1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: has no rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            columns = ", ".join(str(column) for column in row)
            raise UserError(f"{path}: row {number} has no file_name, only {columns}")
        row["file_name"] = safe_relative(row["file_name"], path)
        if None in row:  # csv puts surplus cells there
            raise UserError(f"{path}: row {number} has more cells than the header, put quotes around commas in a cell")
    return rows


def _json_row(line: str, number: int, path: Path) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error})") from None
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


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text, save it as UTF-8") from None
