"""Some of the images of a set, as a set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attndiff.data.columns import IMAGE, LABEL
from attndiff.data.geometry import Shape
from attndiff.data.rows import Row, Rows
from attndiff.progress import progress


class Subset(Rows):
    """Chosen rows of a set, in the order given.

    Args:
        images: The set.
        indices: Which of them.
    """

    def __init__(self, images: Rows, indices: Sequence[int]):
        self.images, self.indices = images, [int(i) for i in indices]
        self.columns, self.class_names = images.columns, images.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, i: int, name: str) -> Any:
        return self.images.load(self.indices[i], name)

    def mirror(self, row: Row, name: str) -> Any:
        return self.images.mirror(self.images[self.indices[row.index]], name)

    def name(self, i: int) -> str:
        return self.images.name(self.indices[i])

    def cells(self, i: int) -> dict:
        return self.images.cells(self.indices[i])

    def by_shape(self) -> dict[Shape, np.ndarray]:
        found = {shape: np.flatnonzero(np.isin(self.indices, of)) for shape, of in self.images.by_shape().items()}
        return {shape: rows for shape, rows in found.items() if len(rows)}

    def describe(self) -> dict:
        return self.images.describe()

    def texts(self) -> dict[str, list[str]]:
        return {name: [values[i] for i in self.indices] for name, values in self.images.texts().items()}

    def tensor(self, side: int | None = None, doing: str | None = None) -> torch.Tensor:
        """All images ``(N, C, H, W)`` float32 in [-1, 1].

        Args:
            side: Average them down to at most so many pixels a side.
            doing: What a progress bar says of it; None: there is none.
        """
        rows = progress(self, doing or "", len(self), shown=doing is not None)
        images = (torch.from_numpy(row[IMAGE.name]) for row in rows)
        return torch.stack([image if side is None else shrink(image[None], side)[0] for image in images])

    def labels(self) -> torch.Tensor | None:
        """All classes ``(N,)`` int64, or None if the set has none."""
        return torch.tensor([row[LABEL.name] for row in self]) if LABEL in self.columns else None


def spread_over(images: Rows, n: int) -> Subset:
    """``n`` images spread evenly over a set."""
    return Subset(images, np.linspace(0, len(images) - 1, n).round())


def shrink(images: torch.Tensor, side: int) -> torch.Tensor:
    """``(N, C, H, W)`` averaged down to at most ``side`` pixels a side."""
    size = [min(side, length) for length in images.shape[-2:]]
    return images if size == list(images.shape[-2:]) else F.interpolate(images, size=size, mode="area")
