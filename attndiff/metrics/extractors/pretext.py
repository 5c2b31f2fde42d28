"""What a network may learn so that its features measure images: an exercise whose success can be counted."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from attndiff.metrics.shares import is_clear_of_chance, odds_over_chance, share


@dataclass
class Material:
    """Images with what is said of them.

    Args:
        images: ``(N, C, H, W)`` in [-1, 1].
        captions: Of each image, the first one its name; None where there are none.
        columns: Other things said of every image, by name; values are compared as texts.
    """

    images: torch.Tensor
    captions: list[list[str]] | None
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Result:
    """How well an exercise is done on images that were not learned from.

    Args:
        hits: ``(N,)`` bool.
        chance: Share of hits that knows nothing of the images.
    """

    hits: torch.Tensor
    chance: float

    @property
    def odds(self) -> float:
        """Times the odds of chance, at the lower end of the interval."""
        return odds_over_chance(share(self.hits)["interval"][0], self.chance)

    @property
    def is_learned(self) -> bool:
        """Whether it is clear of chance."""
        return is_clear_of_chance(share(self.hits), self.chance)

    def to_json(self) -> dict:
        """``value``, ``interval``, ``n``, and chance as ``floor``."""
        return {**share(self.hits), "floor": self.chance}


class Pretext(nn.Module, ABC):
    """An exercise on a trunk's features.

    A subclass has a ``name`` and two methods; what it learns beside the trunk are its parameters.
    """

    name: str

    @abstractmethod
    def loss(self, trunk: nn.Module, batch: torch.Tensor, seen: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Loss of some training images.

        Args:
            trunk: Images to features ``(B, F)``.
            batch: Their numbers ``(B,)`` int64.
            seen: Gives the trunk's features of these images, shifted and made noisy.
        """

    @abstractmethod
    def result(self, trunk: nn.Module) -> Result:
        """How well it is done on held-out images."""


@torch.no_grad()
def features_of(trunk: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features ``(N, F)`` of any number of images."""
    return torch.cat([trunk(part) for part in images.split(256)])
