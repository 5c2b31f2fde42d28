"""The code files that lie beside a pipeline's weights, one for each class that stock diffusers does not have."""

import importlib
import sys
from pathlib import Path

from attndiff.folder.code_names import CODE_FILE, code_hash
from attndiff.folder.index import VERSION_KEY


def own_code_file(cls: type) -> tuple[str, str] | None:
    """Name and source of the code file that a class came out of, if it did and the file is as it was."""
    path = Path(sys.modules[cls.__module__].__file__)
    match = CODE_FILE.fullmatch(path.name)
    if not match:
        return None
    source = path.read_text(encoding="utf-8")
    return (path.name, source) if code_hash(source) == match[2] else None


def code_file(cls: type) -> tuple[str, str]:
    """Name and source of the self-contained file that defines a class.

    A class that came out of such a file keeps it; for any other, attndiff bundles one.
    """
    return own_code_file(cls) or importlib.import_module("attndiff").bundle_component(cls)


def written_by(cls: type) -> dict[str, str]:
    """What an index says of the attndiff that a class is of; nothing if it came out of a code file."""
    return {} if own_code_file(cls) else {VERSION_KEY: importlib.import_module("attndiff").__version__}


def write_code(folder: Path, cls: type) -> None:
    """Put the code file of a class into a folder, in place of earlier versions of it."""
    name, source = code_file(cls)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):
        match = CODE_FILE.fullmatch(old.name)
        if match and match[1] == CODE_FILE.fullmatch(name)[1]:
            old.unlink()
    (folder / name).write_text(source, encoding="utf-8", newline="\n")
