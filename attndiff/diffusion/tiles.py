"""A prediction for images of any size, put together of those for overlapping tiles of the size that a network knows.

Every step averages what the tiles that hold a pixel say of it (MultiDiffusion, arXiv 2302.08113, section 4), each the
less the nearer the pixel is to its edge: there is no place where one tile ends and another begins.

Shapes: B images, C channels, H and W of the images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from attndiff.diffusion.sampler import Predict

Tile = tuple  # ``(..., rows, columns)``, an index of images ``(B, C, H, W)``


@dataclass(frozen=True)
class Tiles:
    """Tiles over images, as evenly as their grid allows.

    Args:
        height, width: H and W, multiples of ``multiple``.
        side: Of a tile, another multiple; a shorter side of the images is taken whole.
        overlap: Pixels that neighbours share at least, less than ``side``.
        multiple: Where tiles begin.
    """

    height: int
    width: int
    side: int
    overlap: int
    multiple: int = 1

    def __iter__(self) -> Iterator[Tile]:
        """The tiles, row by row."""
        for rows, columns in product(self._along(self.height), self._along(self.width)):
            yield ..., rows, columns

    def __len__(self) -> int:
        """How many there are."""
        return len(self._along(self.height)) * len(self._along(self.width))

    def _along(self, length: int) -> list[slice]:
        """Parts of one dimension."""
        if length <= self.side:
            return [slice(0, length)]
        rest, stride = (length - self.side) // self.multiple, (self.side - self.overlap) // self.multiple
        count = -(-rest // max(stride, 1))
        starts = [rest * i // count * self.multiple for i in range(count + 1)]
        return [slice(start, start + self.side) for start in starts]

    def weights(self, tile: Tile) -> torch.Tensor:
        """How much is made of a tile's pixels ``(h, w)``: all of it inside, less and less towards its edges."""
        rows, columns = (self._ramp(*pair) for pair in zip(tile[1:], (self.height, self.width), strict=True))
        return rows[:, None] * columns

    def _ramp(self, part: slice, length: int) -> torch.Tensor:
        """The weights along one dimension; none fades out at the edge of the images."""
        place = torch.arange(part.start, part.stop) + 0.5
        after = place - part.start if part.start > 0 else torch.full_like(place, torch.inf)
        before = part.stop - place if part.stop < length else torch.full_like(place, torch.inf)
        return (torch.minimum(after, before) / max(self.overlap, 1)).clamp(max=1)


class TiledNetwork:
    """Predicts for whole images by a prediction a tile.

    Args:
        tiles: Over the images.
        of_tile: A tile to what predicts for that part of the images.
    """

    def __init__(self, tiles: Tiles, of_tile: Callable[[Tile], Predict]):
        self.tiles, self.of_tile = tiles, of_tile

    def __call__(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The prediction ``(B, C, H, W)`` for noisy images at one level."""
        total, share = torch.zeros_like(x), torch.zeros(x.shape[-2:], device=x.device)
        for tile in self.tiles:
            weights = self.tiles.weights(tile).to(x.device)
            total[tile] += weights * self.of_tile(tile)(x[tile], level)
            share[tile] += weights
        return total / share
