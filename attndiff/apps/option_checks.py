"""How options are read, and checks of arguments that are cheap enough to come before anything is loaded."""

import os
import re
from pathlib import Path

from attndiff.errors import UserError
from attndiff.paths import expand

PATH = {"parser": expand, "metavar": "PATH"}  # for typer, of an option or argument that is a file or folder
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_output_file(option: str, path: Path) -> None:
    """Raise `UserError` unless a picture can be written to ``path``."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{option} {path} is no picture's name: let it end in one of {', '.join(PICTURES)}.")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it.")
    check_output_folder(option, path.parent)


def check_output_folder(option: str, folder: Path | None) -> None:
    """Raise `UserError` unless ``folder`` is, or can be made, one to write in."""
    if folder is None:
        return
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{option}: {existing} is a file, not a folder; choose another place.")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option}: {existing} is not writable; choose another place.")


def check_json_file(path: Path | None) -> None:
    """Raise `UserError` unless ``path``, given by ``--json``, is or can be a file."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json {path} is a folder: name a file in it.")
    check_output_folder("--json", path.parent)


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Height and width of ``"32"`` or ``"32x48"``, both None where nothing is given."""
    if text is None:
        return None, None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.strip())
    if not match:
        raise UserError(f"--size {text} must be a number of pixels such as 32, or a height and width such as 32x48.")
    return int(match[1]), int(match[2] or match[1])
