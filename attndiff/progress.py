"""Progress of work that may take a while: what is being done, how fast, and the time left."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

# Of a bar of `tqdm`: what is done within two seconds shows none, and without a terminal a line every ten is enough.
SETTINGS = {"leave": False, "delay": 2, "mininterval": 0.2 if sys.stderr.isatty() else 10}


def progress(of: Iterable | None, doing: str, total: int | None = None, unit: str = "it", shown: bool = True) -> tqdm:
    """A bar over what is gone through, which is taken away at its end.

    Args:
        of: What is gone through; None where the bar is told by its ``update``.
        doing: What is being done, for people.
        total: How many there are, where ``of`` does not say so.
        unit: Of what is counted.
        shown: Whether to show anything.
    """
    return tqdm(of, doing, total, unit=unit, disable=not shown, **SETTINGS)
