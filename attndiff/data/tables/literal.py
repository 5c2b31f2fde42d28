"""Paths that mean what they say: an existing file or folder is never a pattern, whatever its name holds."""

import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path

from attndiff.errors import UserError

CHAIN = "::"  # what `datasets` takes for an address within an archive, and knows no escape for


def matching(pattern: Path) -> list[Path]:
    """Sorted files and folders that match a pattern, the folder of it that exists being none."""
    folder = next(parent for parent in pattern.parents if parent.exists())
    within = glob.glob(str(pattern.relative_to(folder)), root_dir=folder, recursive=True)
    return sorted(folder / name for name in within)


def literal_paths(files: Iterable[Path]) -> list[str]:
    """Files as `datasets` has to be given them, which takes what it is given for patterns or addresses.

    Raises:
        UserError: If a path cannot be written so that it is taken for one.
    """
    absolute = [file.absolute() for file in files]  # `a:b/c` would be an address
    return [glob.escape(str(_link(file) if CHAIN in str(file) else file)) for file in absolute]


def _link(file: Path) -> Path:
    """Another name of a file, always the same so that `datasets` finds again what it keeps of it."""
    from datasets import config

    name = hashlib.sha256(str(file).encode()).hexdigest() + file.suffix
    link = Path(config.HF_CACHE_HOME, "attndiff", name)
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(file)
    except FileExistsError:  # of another process, since
        pass
    except OSError as error:
        raise UserError(f"{file}: a path with {CHAIN} needs a link in {link.parent} ({error}), rename it") from None
    return link
