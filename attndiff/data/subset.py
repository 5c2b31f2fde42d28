"""Some of the images of a set, as a set."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from attndiff.data.sources import ImageSet


class Subset:
    """Chosen images of a set, in the order given.

    Args:
        images: The set.
        indices: Which of them.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int]):
        self.images, self.indices = images, [int(i) for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, i: int) -> np.ndarray:
        """Image ``(C, H, W)`` float32 in [-1, 1]."""
        return self.images.pixels(self.indices[i])

    def captions(self, i: int) -> list[str]:
        """Captions of an image."""
        return self.images.captions(self.indices[i])

    def label(self, i: int) -> int | None:
        """Number of an image's class."""
        return self.images.label(self.indices[i])

    def texts(self) -> dict[str, list[str]]:
        """What columns say of each image; see `ImageSet.texts`."""
        return {name: [values[i] for i in self.indices] for name, values in self.images.texts().items()}

    def tensor(self, side: int | None = None) -> torch.Tensor:
        """All images ``(N, C, H, W)`` float32 in [-1, 1], averaged down to at most ``side`` pixels a side."""
        images = (torch.from_numpy(self.pixels(i)) for i in range(len(self)))
        return torch.stack([image if side is None else shrink(image[None], side)[0] for image in images])

    def labels(self) -> torch.Tensor | None:
        """All classes ``(N,)`` int64, or None if the set has none."""
        values = [self.label(i) for i in range(len(self))]
        return None if None in values else torch.tensor(values)


def spread_over(images: ImageSet, n: int) -> Subset:
    """``n`` images spread evenly over a set."""
    return Subset(images, np.linspace(0, len(images) - 1, n).round())


def shrink(images: torch.Tensor, side: int) -> torch.Tensor:
    """``(N, C, H, W)`` averaged down to at most ``side`` pixels a side."""
    size = [min(side, length) for length in images.shape[-2:]]
    return images if size == list(images.shape[-2:]) else F.interpolate(images, size=size, mode="area")
