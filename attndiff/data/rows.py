"""Rows: what everything that reads a data set is given, whatever the data is stored in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attndiff.data.columns import Column
from attndiff.data.geometry import Shape, mirrored
from attndiff.data.sides import of_mirrored


class Rows(ABC):
    """A data set by index; ``rows[i]`` is a `Row`.

    Attributes:
        columns: What a row holds.
        class_names: Names of the classes in the order of their numbers, or None.
        fingerprint: A hash of all that training sees of the data; None where it is not known.
    """

    columns: tuple[Column, ...]
    class_names: list[str] | None = None
    fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, i: int, name: str) -> Any:
        """The value of a column, see `Column`.

        Raises:
            UserError: If it cannot be read.
        """

    @abstractmethod
    def name(self, i: int) -> str:
        """What messages call a row."""

    @abstractmethod
    def cells(self, i: int) -> dict:
        """What is stored of a row beside its images, by the data's own names."""

    @abstractmethod
    def by_shape(self) -> dict[Shape, np.ndarray]:
        """Which rows have images of each height and width that occurs, from the widest to the tallest."""

    @abstractmethod
    def describe(self) -> dict:
        """What a pipeline keeps about its data, see `Normalizer.describe`."""

    def texts(self) -> dict[str, list[str]]:
        """What each column of texts, whole numbers or truth values says of every row, as text, by the data's own names.

        Empty where the data is not read through.
        """
        return {}

    def __iter__(self) -> Iterator["Row"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> "Row":
        return Row(self, range(len(self))[i])  # which counts from the end, and ends

    def column(self, name: str) -> Column | None:
        """The column of a name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    def mirror(self, row: "Row", name: str) -> Any:
        """The value of a column in the mirrored row."""
        column = self.column(name)
        if column.kind == "text":
            return [of_mirrored(text) for text in row[name]]
        return mirrored(row[name]) if column.is_planar else row[name]


class Row(Mapping):
    """What one index of a data set gives, by column; a value is loaded when it is first asked for.

    Args:
        rows: The data set.
        index: Which row.
    """

    def __init__(self, rows: Rows, index: int):
        self.rows, self.index = rows, index
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            if name not in self:
                raise KeyError(f"{name}: a row has {', '.join(self)}")
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return any(column.name == name for column in self.rows.columns)

    def __iter__(self) -> Iterator[str]:
        return (column.name for column in self.rows.columns)

    def __len__(self) -> int:
        return len(self.rows.columns)

    def mirrored(self) -> "Row":
        """The row with all that it shows mirrored left to right."""
        return _Mirrored(self)

    def _load(self, name: str) -> Any:
        return self.rows.load(self.index, name)


class _Mirrored(Row):
    """A row mirrored, from what has been loaded of it."""

    def __init__(self, row: Row):
        super().__init__(row.rows, row.index)
        self._row = row

    def _load(self, name: str) -> Any:
        return self.rows.mirror(self._row, name)
