"""Attention at two scales in one softmax: inside windows, and from every pixel to a coarse grid of the whole image.

Shapes: B batch, H rows, W columns, C channels, M cells of the coarse grid, F rotated pairs.
"""

import torch
import torch.nn.functional as F

from attndiff.nn.kinds.arrangement import Arrangement
from attndiff.nn.kinds.window_attention import Windows
from attndiff.nn.rope import axial_angles

MOST_CELLS = 8  # a side


def coarse_window_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """Windows, then dilated grids, as `window_arrangements` has them, each with the coarse grid beside it."""
    return [CoarseWindows(height, width, window, dilated) for dilated in (False, True)]


class CoarseWindows(Windows):
    """`Windows` whose pixels attend to the means of all cells of the image too.

    Args:
        height: H.
        width: W.
        at_most: Side of a window, or a little less, by `window_side`.
        dilated: Take pixels as far from each other as there are windows.
    """

    kind = "window_coarse"

    def __init__(self, height: int, width: int, at_most: int, dilated: bool):
        super().__init__(height, width, at_most, dilated)
        self.cell = rows, cols = cell_side(height), cell_side(width)
        self.shared_length = -(-height // rows) * -(-width // cols)

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, C)`` to ``(B, M, C)``, the mean of each cell, row by row; cells at the end may be smaller."""
        cells = F.avg_pool2d(x.permute(0, 3, 1, 2), self.cell, ceil_mode=True, count_include_pad=False)
        return cells.flatten(2).transpose(1, 2)

    def shared_angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """``(1, M, F)``, those of the centres of the cells: angles grow evenly, so that their mean is the centre's."""
        angles = axial_angles(self.height, self.width, head_dim, device)
        return self.shared(angles.unflatten(0, (1, self.height, self.width)))


def cell_side(side: int) -> int:
    """Pixels of a cell along ``side`` pixels: two at least, or the grid would repeat the pixels."""
    return min(side, max(2, -(-side // MOST_CELLS)))
