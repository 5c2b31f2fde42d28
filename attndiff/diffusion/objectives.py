"""What the network learns to predict of a noisy image, and at which noise levels it is trained.

An objective is a path from image to noise and a kind of prediction on it. Whatever the objective, the network is
handed one coordinate of noise, ``ln(noise / signal) / 4``.

| name      | path                | network predicts             |
|-----------|---------------------|------------------------------|
| `flow`    | straight            | velocity ``n - x0``          |
| `x0`      | straight            | image ``x0``                 |
| `edm`     | variance exploding  | preconditioned ``F``         |
| `epsilon` | variance preserving | noise ``n``                  |
| `v`       | variance preserving | ``(n - s x0)/sqrt(1 + s^2)`` |

Sources: flow matching arXiv 2210.02747 Eq. 22 and 2403.03206 Eq. 19 (logit-normal times); x0 arXiv 2511.13720,
section 4; EDM arXiv 2206.00364 Table 1; epsilon arXiv 2006.11239 Eq. 14; v arXiv 2202.00512 appendix D; min-SNR arXiv
2303.09556 Eq. 7.

Shapes: x (B, C, H, W), levels (B,).
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from attndiff.diffusion.paths import (
    NoisePath,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    expand,
)

LEAST_LEVEL = 0.05  # by which an error of the image is divided, as in arXiv 2511.13720


@dataclass
class Objective(ABC):
    """What all objectives share.

    Args:
        sigma_data: Standard deviation of the normalised training images.
        noise_mean: Mean of ``ln(noise / signal)`` over training samples.
        noise_std: Its standard deviation.
        min_snr_gamma: Cap of the signal-to-noise weight (arXiv 2303.09556), or None for the objective's own weight.
    """

    sigma_data: float = 0.5
    noise_mean: float = 0.0
    noise_std: float = 1.4
    min_snr_gamma: float | None = None

    name: ClassVar[str]
    path: ClassVar[NoisePath]

    def to_config(self) -> dict:
        """The objective as JSON, the contract that a pipeline folder stores."""
        return {"name": self.name, **asdict(self)}

    # The path

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        """Native level of ``ln(noise / signal)``."""
        return self.path.level_from_log_ratio(log_ratio)

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        """``ln(noise / signal)`` of a native level, float32 and clamped to a finite range."""
        return self.path.log_ratio(level)

    def draw_levels(self, standard_normal: torch.Tensor) -> torch.Tensor:
        """Training levels ``(B,)`` from standard normal numbers ``(B,)``."""
        return self.level_from_log_ratio(self.noise_mean + self.noise_std * standard_normal)

    def coordinate(self, level: torch.Tensor) -> torch.Tensor:
        """The network's noise coordinate of a native level."""
        return self.log_ratio(level) / 4

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noisy image at ``level``."""
        return self.path.add_noise(x0, noise, level)

    def scale_input(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """A noisy image scaled to about unit variance, as the network takes it."""
        return self.path.to_unit_variance(x, level, self.sigma_data)

    # The prediction

    @abstractmethod
    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What the network should predict."""

    @abstractmethod
    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The clean image that a prediction at a noisy image implies."""

    @abstractmethod
    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        """``|d denoised / d prediction|``: turns an error of the prediction into one of the clean image."""

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        """Loss weight ``(B,)`` of the squared error of the prediction."""
        if self.min_snr_gamma is None:
            return torch.ones_like(level, dtype=torch.float32)
        snr = (-2 * self.log_ratio(level)).exp()
        return snr.clamp(max=self.min_snr_gamma) * self._error_scale(level) ** 2


class FlowMatching(Objective):
    """The velocity from image to noise; the default."""

    name = "flow"
    path = StraightPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return noise - x0

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x - expand(level, x) * prediction

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return level.float()


class ImagePrediction(Objective):
    """The image itself, its error weighed as that of the velocity it implies (arXiv 2511.13720).

    For images of which a token of the network holds more values than it has channels: noise has no structure, so that
    a velocity, in which it is contained, does not pass through.
    """

    name = "x0"
    path = StraightPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x0

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return prediction

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(level, dtype=torch.float32)

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        if self.min_snr_gamma is not None:
            return super().weight(level)
        return level.float().clamp(min=LEAST_LEVEL) ** -2


class EDM(Objective):
    """Preconditioned denoising of Karras et al. (arXiv 2206.00364): unit-variance input, target and loss weight."""

    name = "edm"
    path = VarianceExplodingPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = self._skip_out(x0, level)
        return (x0 - c_skip * self.add_noise(x0, noise, level)) / c_out

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = self._skip_out(x, level)
        return c_skip * x + c_out * prediction

    def _skip_out(self, x: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``c_skip`` and ``c_out`` of arXiv 2206.00364, Table 1."""
        s, sd = expand(level, x), self.sigma_data
        return sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        s, sd = level.float(), self.sigma_data
        return s * sd / (s**2 + sd**2).sqrt()


class Epsilon(Objective):
    """The noise itself."""

    name = "epsilon"
    path = VariancePreservingPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return noise

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x)
        return x * (1 + s**2).sqrt() - s * prediction

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return level.float()


class VPrediction(Objective):
    """Salimans and Ho's velocity."""

    name = "v"
    path = VariancePreservingPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x0)
        return (noise - s * x0) / (1 + s**2).sqrt()

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x)
        return (x - s * prediction) / (1 + s**2).sqrt()

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        s = level.float()
        return s / (1 + s**2).sqrt()


OBJECTIVES = {cls.name: cls for cls in (FlowMatching, ImagePrediction, EDM, Epsilon, VPrediction)}


def make_objective(config: dict) -> Objective:
    """The objective of a stored config ``{"name": ..., ...}``.

    Raises:
        ValueError: If the name is none of `OBJECTIVES`, or a setting is unknown.
    """
    settings = dict(config)
    name = settings.pop("name", "flow")
    if name not in OBJECTIVES:
        raise ValueError(f"objective {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}.")
    try:
        return OBJECTIVES[name](**settings)
    except TypeError as error:
        raise ValueError(f"objective {name!r}: {error}") from None
