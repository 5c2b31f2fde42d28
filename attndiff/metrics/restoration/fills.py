"""What fills a hole without having learned anything.

Shapes: N images, C channels, H rows, W columns; a mask ``(N, 1, H, W)`` is 1 in the hole.
"""

import torch
import torch.nn.functional as F

ENOUGH = 1e-4  # change of a value in [-1, 1] in a sweep at which the fill has settled
SWEEPS = 20_000  # at most


def mean_fill(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean colour of the given pixels in the hole."""
    known = 1 - mask
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    return images * known + mean * mask


def harmonic_fill(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The smoothest fill: in the hole every pixel is the mean of its four neighbours (Laplace's equation)."""
    filled = mean_fill(images, mask)
    for _ in range(SWEEPS):
        wide = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        mean = (wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:] + wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]) / 4
        step = (mean - filled) * mask
        filled = filled + step
        if step.abs().max() < ENOUGH:
            break
    return filled
