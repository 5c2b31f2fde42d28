"""Attention of every pixel to every other, as long as there are not too many.

Shapes: B batch, H rows, W columns, C channels, F rotated pairs.
"""

import torch
from diffusers.utils import logging

from attndiff.nn.kinds.arrangement import Arrangement
from attndiff.nn.kinds.window_attention import window_arrangements
from attndiff.nn.rope import axial_angles

logger = logging.get_logger(__name__)


def global_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """The whole image, or beyond ``max_tokens`` pixels windows of about ``window`` a side, with a warning."""
    if height * width <= max_tokens:
        return [WholeImage(height, width)]
    windows = window_arrangements(height, width, window, max_tokens)
    if not torch.compiler.is_compiling():
        rows, columns = windows[0].window
        logger.warning_once(
            f"A level made for {max_tokens} tokens of global attention got {height * width} and attends in windows of "
            f"{rows} x {columns}; structure across the image may suffer."
        )
    return windows


class WholeImage(Arrangement):
    """All pixels as one sequence, row by row."""

    kind = "global"
    sequences = 1

    def __init__(self, height: int, width: int):
        self.height, self.width, self.length = height, width, height * width

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, C)`` to ``(B, H * W, C)``."""
        return x.flatten(1, 2)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H * W, C)`` to ``(B, H, W, C)``."""
        return x.unflatten(1, (self.height, self.width))

    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """``(1, H * W, F)``."""
        return axial_angles(self.height, self.width, head_dim, device)[None]
