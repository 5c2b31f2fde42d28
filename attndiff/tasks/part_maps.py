"""Maps of parts: a number for every pixel, as channels that a network learns, and as pictures that hold the numbers.

Shapes: N maps, K parts, H rows, W columns.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

MOST_PARTS = 256  # parts: what a picture of 8 bits holds


def as_channels(numbers: torch.Tensor, parts: int) -> torch.Tensor:
    """Numbers ``(..., H, W)`` int64 as ``(..., K, H, W)`` float32: 1 for a pixel's own part, -1 for every other.

    A number that is none of the K parts gets -1 everywhere.
    """
    known = (numbers >= 0) & (numbers < parts)
    one_hot = F.one_hot(torch.where(known, numbers, 0), parts) * known[..., None]  # (..., H, W, K)
    return one_hot.movedim(-1, -3).float() * 2 - 1


def as_shares(channels: torch.Tensor) -> torch.Tensor:
    """Channels ``(..., K, H, W)`` that were predicted as how likely each part is: from 0 to 1, and 1 in all."""
    shares = ((channels + 1) / 2).clamp_min(0)
    return shares / shares.sum(-3, keepdim=True).clamp_min(1e-6)


def entropy(shares: torch.Tensor) -> torch.Tensor:
    """How uncertain shares ``(..., K, H, W)`` are, ``(..., H, W)``: 0 if one part has all, 1 if all have the same."""
    return -torch.xlogy(shares, shares).sum(-3) / np.log(max(2, shares.shape[-3]))


def as_pictures(numbers: torch.Tensor) -> list[Image.Image]:
    """Maps ``(N, H, W)`` as pictures of palette colours, whose pixels are the numbers."""
    pictures = []
    for one in numbers.cpu().numpy().astype(np.uint8):
        picture = Image.fromarray(one, "P")
        picture.putpalette(colours(MOST_PARTS).tobytes())
        pictures.append(picture)
    return pictures


def colours(count: int) -> np.ndarray:
    """Colours ``(count, 3)`` uint8 that are easily told apart, black first: those of the PASCAL VOC challenge.

    Bit i of a number goes to channel i mod 3, the lowest bits to the highest.
    """
    numbers = np.arange(count)
    return np.stack(
        [sum(((numbers >> (3 * i + channel)) & 1) << (7 - i) for i in range(8)) for channel in range(3)], axis=-1
    ).astype(np.uint8)


def as_numbers(maps: Any, parts: int, void: int | None = None) -> torch.Tensor:
    """Maps as ``(N, H, W)`` int64.

    Args:
        maps: A picture or a list of them, or whole numbers ``(N, H, W)`` or ``(H, W)`` as array or tensor.
        parts: K.
        void: A number that is allowed beside those from 0 to K - 1.

    Raises:
        ValueError: If they are none of these, differ in size, or hold other numbers.
    """
    several = list(maps) if isinstance(maps, (list, tuple)) else [maps]
    if several and all(isinstance(one, Image.Image) for one in several):
        wrong = [one.mode for one in several if one.mode not in ("P", "L", "1")]
        if wrong:
            raise ValueError(f"image: a map has a palette or one channel of 8 bits, and this picture is {wrong[0]}.")
        if len({one.size for one in several}) > 1:
            raise ValueError("image has maps of different sizes: give those of one size.")
        numbers = torch.from_numpy(np.stack([np.asarray(one, np.uint8) for one in several]))
    elif isinstance(maps, (np.ndarray, torch.Tensor)):
        numbers = torch.from_numpy(np.array(maps)) if isinstance(maps, np.ndarray) else maps
    else:
        raise ValueError("image must be pictures of maps, or whole numbers as an array or tensor.")
    numbers = numbers[None] if numbers.ndim == 2 else numbers
    if numbers.ndim != 3 or not numbers.numel() or numbers.is_floating_point() or numbers.is_complex():
        shape = tuple(numbers.shape)
        raise ValueError(f"image must hold whole numbers (N, H, W), not {numbers.dtype} of the shape {shape}.")
    numbers = numbers.long()
    known = (
        (numbers >= 0) & (numbers < parts) if void is None else (numbers < parts) & (numbers >= 0) | (numbers == void)
    )
    if not known.all():
        raise ValueError(f"image holds {int(numbers[~known][0])}, and this model knows parts from 0 to {parts - 1}.")
    return numbers
