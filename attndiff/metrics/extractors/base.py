"""What an image is measured by: a network whose features stand for it, with the name that every number carries."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from attndiff.errors import UserError
from attndiff.metrics.extractors.pretext import Result
from attndiff.metrics.frechet import frechet_needs

BATCH = 64


@dataclass
class Extractor:
    """A network as a measuring instrument.

    Args:
        name: Part of every number; two numbers compare only under one name.
        features: Maps images ``(B, C, H, W)`` float in [-1, 1] to ``(B, F)``.
        standard: Whether this is Inception with its standard resizing, under which the distances are FID and KID.
        accuracy: How well it does what it does best on held-out images, as ``value``, ``interval``, ``n``, ``floor``
            (chance) and ``pretext``; and everything that it was to learn in ``pretexts``.
        own: For ``"text"`` and ``"class"``, where it has learned that: maps images and as many captions or numbers of
            classes to which of them are the images' own; of captions, those of an image's group where ``groups`` are
            given.
    """

    name: str
    features: Callable[[torch.Tensor], torch.Tensor]
    standard: bool = False
    accuracy: dict | None = None
    own: dict[str, Callable[..., Result]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features ``(N, F)`` of ``(N, C, H, W)`` float in [-1, 1]."""
        return torch.cat([self.features(batch) for batch in images.split(BATCH)])


class NothingLearned(UserError):
    """No extractor could be trained.

    Args:
        results: What was tried, by name.
    """

    def __init__(self, results: dict[str, Result]):
        self.results = {name: result.to_json() for name, result in results.items()}
        tried = [f"{name} {r['value']:.2f} where chance is {r['floor']:.2f}" for name, r in self.results.items()]
        super().__init__(
            f"no distance can be measured: the network that is trained on the images has learned nothing that tells "
            f"them apart (right on held-out images: {', '.join(tried)}); give more images, a column of captions or "
            "classes, or --extractor with a vision model."
        )


def check_enough(n: int, features: int, name: str, what: str) -> None:
    """Raise `UserError` where ``n`` images (as ``what`` decides) do not suffice for the Fréchet distance."""
    if n < frechet_needs(features):
        raise UserError(
            f"{what}: {n} images are too few for the Frechet distance with the {features} features of {name}; it needs "
            f"at least {frechet_needs(features)} held-out images and as many training images: give more data."
        )


def rgb_levels(images: torch.Tensor, name: str) -> torch.Tensor:
    """Images in [-1, 1] as uint8 ``(B, 3, H, W)``: grey repeated.

    Raises:
        UserError: If they are not of 1 or 3 channels.
    """
    channels = images.shape[1]
    if channels not in (1, 3):
        raise UserError(f"--extractor {name} sees RGB images, not {channels} channels; use --extractor classifier.")
    return (images.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
