"""Attention inside windows, and in every other block on the dilated grids that join them (MaxViT, arXiv 2204.01697).

Shapes: B batch, H rows, W columns, C channels, N windows of an image, L pixels of a window, F rotated pairs.
"""

import torch
import torch.nn.functional as F

from attndiff.nn.kinds.arrangement import Arrangement
from attndiff.nn.rope import axial_angles


def window_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """Windows, then dilated grids, of about ``window`` pixels a side; ``max_tokens`` does not matter."""
    return [Windows(height, width, window, dilated) for dilated in (False, True)]


class Windows(Arrangement):
    """Neighbouring pixels, or with ``dilated`` every n-th pixel of the n windows of an axis (MaxViT, Fig. 3).

    Where windows do not divide the image, it is padded at both ends, so that every window is at least half full and no
    dilated grid has more than one row and one column of padding.

    Args:
        height: H.
        width: W.
        at_most: Side of a window, or a little less, by `window_side`.
        dilated: Take pixels as far from each other as there are windows.
    """

    kind = "window"

    def __init__(self, height: int, width: int, at_most: int, dilated: bool):
        self.height, self.width, self.dilated = height, width, dilated
        self.window = rows, cols = window_side(height, at_most), window_side(width, at_most)
        self.counts = down, across = -(-height // rows), -(-width // cols)
        self.sequences, self.length = down * across, rows * cols
        self.padded_size = down * rows, across * cols
        self.top, self.left = (down * rows - height) // 2, (across * cols - width) // 2

    @property
    def is_padded(self) -> bool:
        """Whether windows do not divide the image."""
        return self.padded_size != (self.height, self.width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, C)`` to ``(B * N, L, C)``."""
        if self.is_padded:
            bottom, right = (self.padded_size[0] - self.height - self.top, self.padded_size[1] - self.width - self.left)
            x = F.pad(x, (0, 0, self.left, right, self.top, bottom))
        return split_windows(x, self.window, self.dilated)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """``(B * N, L, C)`` to ``(B, H, W, C)``."""
        x = join_windows(x, self.padded_size, self.window, self.dilated)
        return x[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """``(N, L, F)``, those of the whole image's grid."""
        angles = axial_angles(self.height, self.width, head_dim, device)
        return self.split(angles.unflatten(0, (1, self.height, self.width)))

    def pixels(self, device: torch.device) -> torch.Tensor | None:
        """``(N, L)`` bool, false for padding; None without any."""
        if not self.is_padded:
            return None
        ones = torch.ones(1, self.height, self.width, 1, dtype=torch.uint8, device=device)
        return self.split(ones)[..., 0].bool()


def window_side(side: int, at_most: int) -> int:
    """Side of the windows along ``side`` pixels.

    The largest divisor of ``side`` that is no greater than ``at_most``, if it is at least half of that: no padding.
    Else that of the fewest windows that cover ``side``, as small as they may be, so that little is padded.
    """
    divisor = next(d for d in range(min(side, at_most), 0, -1) if side % d == 0)
    if divisor > 1 and 2 * divisor >= at_most:
        return divisor
    count = -(-side // at_most)
    return -(-side // count)


def split_windows(x: torch.Tensor, window: tuple[int, int], dilated: bool) -> torch.Tensor:
    """``(B, H, W, C)`` to ``(B * windows, rows * columns, C)``; rows and columns divide H and W."""
    rows, cols = window
    if dilated:
        x = x.unflatten(2, (cols, -1)).unflatten(1, (rows, -1))  # (B, rows, nh, cols, nw, C)
        x = x.permute(0, 2, 4, 1, 3, 5)
    else:
        x = x.unflatten(2, (-1, cols)).unflatten(1, (-1, rows))  # (B, nh, rows, nw, cols, C)
        x = x.permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3, 4).flatten(0, 2)


def join_windows(x: torch.Tensor, size: tuple[int, int], window: tuple[int, int], dilated: bool) -> torch.Tensor:
    """The inverse of ``split_windows``: back to ``(B, H, W, C)``."""
    (height, width), (rows, cols) = size, window
    x = x.unflatten(1, (rows, cols)).unflatten(0, (-1, height // rows, width // cols))  # (B, nh, nw, rows, cols, C)
    x = x.permute(0, 3, 1, 4, 2, 5) if dilated else x.permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3, 4).flatten(1, 2)
