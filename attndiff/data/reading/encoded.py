"""The rows of a set as they are stored, read one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from attndiff.data.columns import IMAGE, Column
from attndiff.data.geometry import Shape
from attndiff.data.pixels.header import Header, read_header
from attndiff.data.pixels.normalize import Normalized, Normalizer
from attndiff.data.pixels.row_images import read_planar, read_row
from attndiff.data.tables.table import ImageTable


@dataclass
class EncodedRows:
    """Chosen rows of a table, counted from 0.

    Args:
        table: Where they are stored.
        rows: Which of its rows.
        normalizer: Decides what images become.
        columns: What a row holds.
    """

    table: ImageTable
    rows: list[int]
    normalizer: Normalizer
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def planar(self) -> list[Column]:
        """The columns that show something, the image first."""
        return [IMAGE, *(column for column in self.columns if column.is_planar and column != IMAGE)]

    @property
    def channels(self) -> int:
        """Of an image."""
        channels = self.normalizer.channels
        return channels if isinstance(channels, int) else len(channels)

    def chosen(self, positions: list[int]) -> "EncodedRows":
        """Some of the rows, in the order given."""
        return replace(self, rows=[self.rows[position] for position in positions])

    def name(self, i: int) -> str:
        """What messages call a row."""
        return self.table.names[self.rows[i]]

    def reason(self, i: int, error: Exception) -> tuple[str, str]:
        """Name of a row, and why it cannot be read."""
        return self.name(i), str(error).removeprefix(f"{self.name(i)}: ")

    def read(self, i: int) -> tuple[Normalized, list[np.ndarray]]:
        """A row's image, and what each further planar column becomes; raises `UserError` if one cannot be read."""
        return read_row(self.normalizer, self.columns, partial(self.table.image, self.rows[i]), self.name(i))

    def read_column(self, i: int, column: Column, size: Shape) -> np.ndarray:
        """One planar column of a row, whose image is of a size; raises `UserError` if it cannot be read."""
        source = self.table.image(self.rows[i], None if column == IMAGE else column.name)
        return read_planar(self.normalizer, column, source, self.normalizer.geometry(size), self.name(i))

    def header(self, i: int) -> Header:
        """What a row's image says of itself; raises `UserError` if it is none."""
        source, normalizer = self.table.image(self.rows[i]), self.normalizer
        return read_header(source, normalizer.channels, self.name(i), normalizer.value_range)

    def decoded_bytes(self) -> int:
        """Memory of all rows with 8 bits a value."""
        return len(self) * self.normalizer.size**2 * (self.channels + len(self.planar) - 1)

    def encoded_bytes(self) -> int:
        """About how much is stored of them, from sizes of files and columns."""
        return self.table.encoded_bytes(self.rows)

    def spread(self, n: int) -> Iterator[int]:
        """Some of the rows, from all over the set."""
        return iter(range(0, len(self), max(1, len(self) // n)))
