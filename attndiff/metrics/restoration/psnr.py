"""Peak signal-to-noise ratio, of luma and of a part of an image.

Shapes: N images, C channels, H rows, W columns; values in [-1, 1], rounded as 8-bit files hold them.
"""

import torch

from attndiff.tasks.resampling import LEVELS, to_8_bits

# Luma of ITU-R BT.601 from RGB in [0, 1]: 16 is black and 235 white.
LUMA, BLACK = torch.tensor([65.481, 128.553, 24.966]), 16.0
IDENTICAL = 100.0  # dB that stand for no difference at all


def luma(images: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` as ``(N, H, W)`` in 8-bit units: BT.601 of three channels, the mean of any other number."""
    share = to_8_bits(images).double().add(1).div(2)
    if images.shape[1] == 3:
        return torch.einsum("nchw,c->nhw", share, LUMA.double()) + BLACK
    return share.mean(1) * LEVELS


def shaved(images: torch.Tensor, border: int) -> torch.Tensor:
    """``(..., H, W)`` without its outermost pixels."""
    return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]


def decibels(squared_error: torch.Tensor) -> torch.Tensor:
    """PSNR of mean squared errors in 8-bit units."""
    return (20 * torch.log10(torch.tensor(float(LEVELS))) - 10 * squared_error.log10()).clamp(max=IDENTICAL)


def luma_psnr(images: torch.Tensor, real: torch.Tensor, border: int) -> torch.Tensor:
    """PSNR ``(N,)`` of luma in dB, without a border; a set's is the mean of its images'."""
    return decibels((shaved(luma(images), border) - shaved(luma(real), border)).square().mean((1, 2)))


def psnr(images: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """PSNR ``(N,)`` of all channels in dB."""
    error = (to_8_bits(images) - to_8_bits(real)).double() * LEVELS / 2
    return decibels(error.square().flatten(1).mean(1))


def hole_psnr(images: torch.Tensor, real: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """PSNR ``(N,)`` of all channels in the hole, where ``mask (N, 1, H, W)`` is 1."""
    error = ((to_8_bits(images) - to_8_bits(real)).double() * LEVELS / 2).square().mean(1, keepdim=True)
    return decibels((error * mask).sum((1, 2, 3)) / mask.double().sum((1, 2, 3)))
