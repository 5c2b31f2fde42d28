"""What an image set asks of its rows, whenever they are decoded."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from attndiff.data.pixels.values import ValueRange
from attndiff.data.reading.encoded import EncodedRows
from attndiff.errors import UserError

Found = TypeVar("Found")


class DecodedRows(ABC):
    """What the rows of a set show, by position among those that count.

    Attributes:
        good: Positions, among all rows, of those that count; the others are known to be bad.
        bad: Name of each other row, and why.
        buckets: ``(N,)``, of each good row the number of its shape.
        bit_depth: Of the deepest image.
        ranges: What levels stand for, in any of the images.
        digest: A hash by which the rows are told from others.
        is_kept: Whether they are held in memory, decoded.
        found_later: Name of each good row that turned out bad at its visit, on whichever process, and why.
    """

    buckets: np.ndarray
    bit_depth: int
    ranges: set[ValueRange | None]
    digest: bytes
    is_kept: bool
    found_later: list[tuple[str, str]]

    def __init__(self):
        self.good: list[int] = []
        self.bad: list[tuple[str, str]] = []

    def sorted_out(self, encoded: EncodedRows, found: Iterable[Found | UserError], on_error: str) -> Iterator[Found]:
        """What was found of the rows that can be read, which fills `good` and `bad`.

        Args:
            encoded: All rows.
            found: Of each what was read, or why it cannot be.
            on_error: "skip" leaves the row out, "raise" raises why.

        Raises:
            UserError: If a row cannot be read and ``on_error`` says so.
        """
        for position, one in enumerate(found):
            if not isinstance(one, UserError):
                self.good.append(position)
                yield one
            elif on_error == "raise":
                raise one
            else:
                self.bad.append(encoded.reason(position, one))

    @abstractmethod
    def levels(self, i: int, name: str) -> np.ndarray:
        """What a good row shows in a planar column, at its own depth; raises `UserError` if it cannot be read."""

    @abstractmethod
    def stand_in(self, i: int) -> int:
        """The row itself, or if it has turned out bad the one that stands for it."""
