"""Exercises for images of which nothing is said: each one is its own teacher."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.metrics.extractors.pretext import Pretext, Result, features_of
from attndiff.metrics.retrieval import CANDIDATES, caption_ranks, contrastive_loss

DIM = 64  # of the space in which windows are compared
SHARE = 0.75  # of the side that a window shows
TINT = 0.3  # how much, at most, a window is brightened, darkened or tinted


class Turns(Pretext):
    """By how many quarter turns an image was rotated (Gidaris et al., arXiv 1803.07728)."""

    name = "quarter-turns"

    def __init__(self, images: torch.Tensor, held_out: torch.Tensor, features: int, generator: torch.Generator):
        super().__init__()
        self.images, self.held_out, self.generator = images, held_out, generator
        self.head = nn.Linear(features, 4)

    def loss(self, trunk: nn.Module, batch: torch.Tensor, seen: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of a turn drawn anew at each visit."""
        turns = torch.randint(4, (len(batch),), generator=self.generator)
        pairs = zip(self.images[batch], turns.tolist(), strict=True)
        return F.cross_entropy(self.head(trunk(torch.stack([image.rot90(n, (1, 2)) for image, n in pairs]))), turns)

    def result(self, trunk: nn.Module) -> Result:
        """How often it is right, over all four turns of every image."""
        turned = [self.head(features_of(trunk, self.held_out.rot90(n, (2, 3)))).argmax(1) == n for n in range(4)]
        return Result(torch.cat(turned), 1 / 4)


class SameImage(Pretext):
    """Which two windows, tinted apart, show parts of one image (instance discrimination, arXiv 2002.05709).

    Nothing is resized, blurred or made noisy: what a network learns to overlook, it cannot measure.
    """

    name = "windows"

    def __init__(self, images: torch.Tensor, held_out: torch.Tensor, features: int, generator: torch.Generator):
        super().__init__()
        self.images, self.held_out, self.generator = images, held_out, generator
        self.project = nn.Linear(features, DIM)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def loss(self, trunk: nn.Module, batch: torch.Tensor, seen: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Contrast of the images of a batch, two windows of each."""
        one, two = (F.normalize(self.project(trunk(self._window(self.images[batch]))), dim=1) for _ in range(2))
        same = torch.eye(len(batch), dtype=torch.bool)
        return contrastive_loss(self.log_scale.exp().clamp(max=100) * one @ two.T, same)

    @torch.no_grad()
    def result(self, trunk: nn.Module) -> Result:
        """How often the other window of the same image is the nearest among 50, or as many as there are."""
        views = [features_of(trunk, self._window(self.held_out)) for _ in range(2)]
        one, two = (F.normalize(self.project(view), dim=1) for view in views)
        among = min(CANDIDATES, len(one))
        return Result(caption_ranks(one @ two.T, torch.arange(len(one)), among) == 1, 1 / among)

    def _window(self, images: torch.Tensor) -> torch.Tensor:
        """A window of each image, in other brightness and tint."""
        sides = [max(8, int(SHARE * side)) for side in images.shape[-2:]]
        room = [max(0, side - part) + 1 for side, part in zip(images.shape[-2:], sides, strict=True)]
        corners = [torch.randint(most, (len(images),), generator=self.generator).tolist() for most in room]
        places = zip(images, *corners, strict=True)
        shown = torch.stack([image[:, y : y + sides[0], x : x + sides[1]] for image, y, x in places])
        gain = 1 + TINT * self._signed(len(images), 1)
        return shown * gain + TINT * self._signed(len(images), images.shape[1])

    def _signed(self, n: int, channels: int) -> torch.Tensor:
        """Numbers from -1 to 1, one an image and channel."""
        return 2 * torch.rand(n, channels, 1, 1, generator=self.generator) - 1
