"""How likely a diffusion model holds images to be: a bound in bits per value, by its probability flow.

With ``z = x + r e``, the ratio ``r`` of noise to signal, ``u = ln r`` and the denoised image ``D``, the flow that
carries noise into images and its density follow

    dz/du = z - D(z, r)                               (arXiv 2206.00364, Eq. 1)
    d ln p(z)/du = -(d - tr dD/dz)                    (arXiv 2011.13456, Eq. 39)

from a normal distribution at `MOST_NOISE` to ``z0`` at `LEAST_NOISE`, where an image of 8 bits is read off its noisy
values one by one. The image is then worth at most (arXiv 2107.00630, Eq. 11 and appendix B)

    -ln p(z0) - ln P(x | z0) + ln q(z0 | x) nats,     q(z0 | x) = N(x, r0^2).

The trace is estimated with random signs (arXiv 2011.13456, Eq. 40), which is right on average; the flow is followed in
steps of Heun, so that the figure is a bound up to their error: twice as many steps show how large that is.

Shapes: B images, C channels, H rows, W columns, d = C * H * W; images in [-1, 1] with 256 levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attndiff.diffusion.objectives import Objective
from attndiff.metrics.denoising.told import Denoise

LEVELS = 256
STEPS = 40
LEAST_NOISE = 1 / (LEVELS - 1)  # half the distance of two levels; networks denoise less of less noise badly
MOST_NOISE = 80.0  # as in arXiv 2206.00364
# Noisy images z (B, C, H, W) at a ratio of noise to signal to denoised ones.
DenoiseAt = Callable[[torch.Tensor, float], torch.Tensor]


def denoiser_at(denoise: Denoise, objective: Objective) -> DenoiseAt:
    """A model's denoiser as one of ``image + ratio * noise``, whatever its path from image to noise."""

    def denoised(z: torch.Tensor, ratio: float) -> torch.Tensor:
        level = objective.level_from_log_ratio(torch.full((len(z),), math.log(ratio), device=z.device))
        return denoise(objective.add_noise(z, torch.zeros_like(z), level), level)

    return denoised


def bits_at_most(
    denoise: DenoiseAt,
    images: torch.Tensor,
    generator: torch.Generator,
    sigma_data: float = 0.5,
    steps: int = STEPS,
    advance: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """A bound of the bits per value of every image, ``(B,)`` float64.

    Args:
        denoise: The model; it is differentiated.
        images: ``(B, C, H, W)`` float32.
        generator: Of noise and signs, on the CPU.
        sigma_data: Standard deviation of images, by which the noisiest are wider than their noise.
        steps: Of Heun, each of two calls.
        advance: Called after every step.
    """
    noise = torch.randn(images.shape, generator=generator).to(images)
    signs = torch.randint(2, images.shape, generator=generator).to(images) * 2 - 1
    flow = _Flow(denoise, sigma_data, signs)
    z = images + LEAST_NOISE * noise
    added = _log_normal(noise) - images[0].numel() * math.log(LEAST_NOISE)
    logs = torch.linspace(math.log(LEAST_NOISE), math.log(MOST_NOISE), steps + 1).tolist()
    w, spread = z / flow.width(logs[0]), torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for before, after in zip(logs, logs[1:]):
        du = after - before
        velocity, divergence = flow(w, before)
        at_end, divergence_at_end = flow(w + du * velocity, after)
        w, spread = w + du / 2 * (velocity + at_end), spread + du / 2 * (divergence + divergence_at_end)
        advance()
    likely = _log_normal(w) + spread - images[0].numel() * math.log(flow.width(logs[0]))
    nats = added - likely - _log_read(z, images)
    return nats / (images[0].numel() * math.log(2))


@dataclass
class _Flow:
    """The flow of ``w = z / width``, which stands still where images are normal."""

    denoise: DenoiseAt
    sigma_data: float
    signs: torch.Tensor

    def width(self, log_ratio: float) -> float:
        """Standard deviation of noisy images."""
        return math.hypot(self.sigma_data, math.exp(log_ratio))

    def __call__(self, w: torch.Tensor, log_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
        """``dw/du`` and an estimate ``(B,)`` of its divergence."""
        ratio, width = math.exp(log_ratio), self.width(log_ratio)
        with torch.enable_grad():
            z = (w * width).detach().requires_grad_()
            denoised = self.denoise(z, ratio)
            along = torch.autograd.grad((denoised * self.signs).sum(), z)[0]
        trace = (along * self.signs).double().flatten(1).sum(1)
        widening = (ratio / width) ** 2  # d ln(width) / du
        velocity = (z - denoised).detach() / width - widening * w
        return velocity, (1 - widening) * w[0].numel() - trace


def _log_normal(w: torch.Tensor) -> torch.Tensor:
    """Logarithm ``(B,)`` of the density of the standard normal distribution."""
    return -(w.double().square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2


def _log_read(z: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Logarithm ``(B,)`` of the probability that the levels of images are read off their noisy values."""
    levels = torch.linspace(-1, 1, LEVELS, device=z.device)
    chances = (-((z[..., None] - levels) ** 2) / (2 * LEAST_NOISE**2)).log_softmax(-1)  # (B, C, H, W, 256)
    own = images.add(1).mul((LEVELS - 1) / 2).round().long()
    return chances.gather(-1, own[..., None]).double().flatten(1).sum(1)
