"""Names as people read them: the same letters are the same name, however they are stored."""

import unicodedata
from collections.abc import Iterable


def folded(name: str) -> str:
    """A name without what the eye does not tell apart: Unicode forms, case, spaces at the ends."""
    return unicodedata.normalize("NFC", name).strip().casefold()


class NameIndex:
    """Finds a name among others: exactly so written, else the only one that reads the same.

    Args:
        names: All there are.
    """

    def __init__(self, names: Iterable[str]):
        self._names: set[str] = set()
        self._alike: dict[str, list[str]] = {}
        for name in names:
            self._names.add(name)
            self._alike.setdefault(folded(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The name as it is stored, or None."""
        if name in self._names:
            return name
        alike = self._alike.get(folded(name), [])
        return alike[0] if len(alike) == 1 else None


def printable(name: str) -> str:
    """A file name that can be written to any terminal and file, on one line.

    Bytes that are no UTF-8 and characters that command a terminal become escapes.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text)


def is_text(name: str) -> bool:
    """Whether a file name is UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
