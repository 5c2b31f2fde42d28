"""Images made smaller and larger as Pillow does it, and made to agree with what they were enlarged from.

Shapes: B images, C channels, H and W of the large images, h and w of the small ones.
"""

import torch
import torch.nn.functional as F

from attndiff.alpha import clipped

LEVELS = 255  # of 8 bits


def shrink_by(images: torch.Tensor, scale: int) -> torch.Tensor:
    """``(B, C, H, W)`` at ``1 / scale`` of the size by bicubic interpolation with antialiasing (a = -0.5, Pillow's)."""
    size = [side // scale for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def enlarge_by(images: torch.Tensor, scale: int) -> torch.Tensor:
    """``(B, C, h, w)`` at ``scale`` times the size by bicubic interpolation (a = -0.5, Pillow's)."""
    size = [side * scale for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def to_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Values in [-1, 1], clipped and rounded as an 8-bit file holds them."""
    return images.clamp(-1, 1).add(1).mul(LEVELS / 2).round().mul(2 / LEVELS).sub(1)


def back_project(large: torch.Tensor, small: torch.Tensor, rounds: int, alpha: bool | None = None) -> torch.Tensor:
    """``large`` with what it lacks of ``small`` when it is made small again (iterative back-projection, Irani and Peleg
    1991, Eq. 2).

    Args:
        large: ``(B, C, H, W)`` in [-1, 1].
        small: ``(B, C, h, w)``, of a size that divides that.
        rounds: How often; each leaves about a fifth of the difference.
        alpha: Whether the last channel is alpha, and the images premultiplied.
    """
    scale = large.shape[-1] // small.shape[-1]
    for _ in range(rounds):
        large = clipped(large + enlarge_by(small - shrink_by(large, scale), scale), alpha)
    return large
