"""Holes to be filled: thick strokes, boxes, and everything.

Shapes: H rows, W columns; a mask is 1 where the image is unknown.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw

STROKES = (1, 4)  # of a mask
CORNERS = (2, 6)  # of a stroke
WIDTHS = (0.08, 0.25)  # of a stroke, in sides of the image
BOX_SIDES = (0.3, 0.75)  # of a box, likewise


def draw_strokes(height: int, width: int, generator: np.random.Generator) -> torch.Tensor:
    """Some thick polygonal lines with round ends, ``(1, H, W)`` float32."""
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    side = min(height, width)
    for _ in range(generator.integers(STROKES[0], STROKES[1] + 1)):
        corners = generator.random((generator.integers(CORNERS[0], CORNERS[1] + 1), 2)) * (width, height)
        thick = max(1, round(side * generator.uniform(*WIDTHS)))
        pen.line([tuple(corner) for corner in corners], fill=255, width=thick, joint="curve")
        for x, y in corners:
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return torch.from_numpy((np.asarray(image) > 127).astype(np.float32))[None]


def draw_box(height: int, width: int, generator: np.random.Generator) -> torch.Tensor:
    """A box somewhere, ``(1, H, W)`` float32."""
    rows, columns = (max(1, round(side * generator.uniform(*BOX_SIDES))) for side in (height, width))
    top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
    mask = torch.zeros(1, height, width)
    mask[:, top : top + rows, left : left + columns] = 1
    return mask


def draw_mask(height: int, width: int, generator: np.random.Generator) -> torch.Tensor:
    """Half of the time strokes, a quarter a box, a quarter everything; ``(1, H, W)`` float32.

    Everything makes plain generation a part of the task.
    """
    kind = generator.integers(4)
    if kind == 3:
        return torch.ones(1, height, width)
    return draw_box(height, width, generator) if kind == 2 else draw_strokes(height, width, generator)
