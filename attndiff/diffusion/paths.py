"""How an image turns into noise: the paths between the two, each with its own noise level ``s``.

| path                 | noisy image                     | level ``s``       |
|----------------------|---------------------------------|-------------------|
| straight             | ``(1 - s) x0 + s n``            | time in [0, 1]    |
| variance exploding   | ``x0 + s n``                    | noise std         |
| variance preserving  | ``(x0 + s n) / sqrt(1 + s^2)``  | noise over signal |

Shapes: images x0, noise n and noisy images x (B, C, H, W), levels (B,) or scalar.
"""

import math
from typing import Protocol

import torch

LOG_RATIO_LIMIT = math.log(1000.0)  # |ln(noise / signal)| that levels are clamped to


def expand(level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``(B,)`` as ``(B, 1, 1, 1)`` in the dtype of ``like``."""
    return level.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class NoisePath(Protocol):
    """What every path knows."""

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        """The level of ``ln(noise / signal)``."""

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        """``ln(noise / signal)`` of a level, float32 and clamped to a finite range."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noisy image at a level."""

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        """A noisy image scaled to about unit variance; ``sigma_data`` is the standard deviation of clean ones."""


class StraightPath:
    """At an even pace from image to noise: rectified flow."""

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(log_ratio)

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        level = level.float()
        return (level.log() - (-level).log1p()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x0)
        return (1 - s) * x0 + s * noise

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        s = expand(level, x)
        return x / ((1 - s) ** 2 * sigma_data**2 + s**2).sqrt()


class NoiseOverSignal:
    """Levels that are the ratio of noise to signal, as on both paths below."""

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        return log_ratio.exp()

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        return level.float().log().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


class VarianceExplodingPath(NoiseOverSignal):
    """Noise added to the image as it is."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x0 + expand(level, x0) * noise

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        return x / (expand(level, x) ** 2 + sigma_data**2).sqrt()


class VariancePreservingPath(NoiseOverSignal):
    """Noise that replaces the image: of images of unit variance, every mixture has it too."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x0)
        return (x0 + s * noise) / (1 + s**2).sqrt()

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        return x
