"""Structural similarity (Wang et al. 2004, Eq. 13) of luma.

Shapes: N images, H rows, W columns.
"""

import torch
import torch.nn.functional as F

from attndiff.metrics.restoration.psnr import luma, shaved

WINDOW, SIGMA = 11, 1.5  # pixels
K1, K2, RANGE = 0.01, 0.03, 255.0


def luma_ssim(images: torch.Tensor, real: torch.Tensor, border: int) -> torch.Tensor:
    """SSIM ``(N,)`` of images ``(N, C, H, W)`` in [-1, 1], without a border."""
    x, y = (shaved(luma(each), border)[:, None] for each in (images, real))
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = (-offsets.square() / (2 * SIGMA**2)).exp()
    kernel = (bell[:, None] * bell)[None, None] / bell.sum() ** 2

    def local(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, kernel)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))
