"""What the peers' authors train on, in terms of attndiff's objectives, so that one held-out error compares all.

Each is the kind of prediction with the noise levels of its schedule, its loss weight, and as the network's noise
coordinate whatever that network was made for.
"""

import math
from dataclasses import dataclass

import torch

from attndiff.diffusion.objectives import EDM, Epsilon, Objective, VPrediction
from attndiff.diffusion.paths import StraightPath

STEPS = 1000


def noise_over_signal(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """``sqrt((1 - a) / a)`` of a variance-preserving schedule, float32, ascending."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()


def linear(low: float, high: float) -> torch.Tensor:
    """Levels of betas that grow linearly (arXiv 2006.11239, section 4)."""
    return noise_over_signal((1 - torch.linspace(low, high, STEPS, dtype=torch.float64)).cumprod(0))


def scaled_linear(low: float, high: float) -> torch.Tensor:
    """Levels of betas whose square roots grow linearly (Stable Diffusion 1)."""
    betas = torch.linspace(low**0.5, high**0.5, STEPS, dtype=torch.float64).square()
    return noise_over_signal((1 - betas).cumprod(0))


def sigmoid(start: float = -3.0, end: float = 3.0) -> torch.Tensor:
    """Levels of the sigmoid schedule (arXiv 2212.11972, section 2.1), betas at most 0.999."""
    t = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    low, high = torch.tensor([start, end], dtype=torch.float64).sigmoid()
    alphas = (high - (t * (end - start) + start).sigmoid()) / (high - low)
    return noise_over_signal((alphas[1:] / alphas[:-1]).clamp(0.001, 1).cumprod(0))


class Timesteps:
    """Noise levels drawn from a table of 1,000 timesteps, which are also the network's coordinate."""

    table: torch.Tensor  # (1000,) noise over signal, ascending

    def draw_levels(self, standard_normal: torch.Tensor) -> torch.Tensor:
        """Levels of uniform timesteps."""
        uniform = torch.special.ndtr(standard_normal.float())
        steps = (uniform * STEPS).long().clamp(max=STEPS - 1)
        return self.table.to(standard_normal.device)[steps]

    def coordinate(self, level: torch.Tensor) -> torch.Tensor:
        """The timestep of a level, between two entries of the table a fraction."""
        logs, log = self.table.log().to(level.device), level.float().log()
        above = torch.searchsorted(logs, log).clamp(1, STEPS - 1)
        share = (log - logs[above - 1]) / (logs[above] - logs[above - 1])
        return above - 1 + share.clamp(0, 1)


class LinearEpsilon(Timesteps, Epsilon):
    """DDPM's own, and diffusers' train_unconditional.py's."""

    table = linear(1e-4, 0.02)


class ScaledLinearEpsilon(Timesteps, Epsilon):
    """Stable Diffusion's."""

    table = scaled_linear(0.00085, 0.012)


class SigmoidVelocity(Timesteps, VPrediction):
    """The defaults of denoising-diffusion-pytorch's `GaussianDiffusion`: loss weight ``snr / (snr + 1)``."""

    table = sigmoid()

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + level.float().square())


class KarrasSoftMinSNR(EDM):
    """k-diffusion's for its transformers: soft-min-SNR weight, cosine density of levels (arXiv 2401.11605, 4.5)."""

    def draw_levels(self, standard_normal: torch.Tensor) -> torch.Tensor:
        low, high = (math.atan(value / self.sigma_data) for value in (1e-3, 1e3))
        uniform = torch.special.ndtr(standard_normal.float())
        return self.sigma_data * torch.tan(low + uniform * (high - low))

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        s, sd = level.float(), self.sigma_data
        return (s * sd) ** 2 / (s**2 + sd**2) ** 2


@dataclass
class EDM2(EDM):
    """EDM2's for ImageNet at 64 px (arXiv 2312.02696, Table 6); a learned weight comes on top: `UncertaintyWeighted`.

    Its Adam has the beta values 0.9 and 0.99, as ours has; its rate falls with the inverse root of the step (Eq. 67),
    where all are constant here, and gradients are not clipped.
    """

    noise_mean: float = -0.8
    noise_std: float = 1.6


@dataclass
class CleanImage(Objective):
    """JiT's: the network predicts the image, and the error is that of the velocity (arXiv 2511.13720, Table 1).

    Its time is the share of the image, whose logit has mean -0.8 and standard deviation 0.8. Its Adam has the beta
    values 0.9 and 0.95, where ours has 0.9 and 0.99.
    """

    noise_mean: float = 0.8
    noise_std: float = 0.8

    name = "x"
    path = StraightPath()

    def coordinate(self, level: torch.Tensor) -> torch.Tensor:
        """The share of the image."""
        return 1 - level.float()

    def scale_input(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noisy image as it is."""
        return x

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x0

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return prediction

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        """Of ``v = (x0 - x) / level`` per error of the image; the divisor is 0.05 at least."""
        return 1 / level.float().clamp(min=0.05).square()

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(level, dtype=torch.float32)
