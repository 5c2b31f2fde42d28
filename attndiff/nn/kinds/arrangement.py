"""How the pixels of an image stand in sequences, each attending to itself: all that a kind of self-attention says.

Shapes: B batch, H rows, W columns, C channels, N sequences of an image, L pixels of a sequence, F rotated pairs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from attndiff.nn.attention import additive_mask
from attndiff.nn.rope import Rotation, cos_sin


class Arrangement(Protocol):
    """Pixels of images of one size as sequences.

    Attributes:
        kind: Its name in tables.
        sequences: N.
        length: L, padding included.
    """

    kind: str
    sequences: int
    length: int

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, H, W, C)`` to sequences ``(B * N, L, C)``, padded with zeros."""

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse: ``(B * N, L, C)`` to ``(B, H, W, C)``, without the padding."""

    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """Rotary angles ``(N, L, F)`` of the pixels."""

    def pixels(self, device: torch.device) -> torch.Tensor | None:
        """``(N, L)`` bool, false for padding; None without any."""


@dataclass
class Sequences:
    """An arrangement with the tensors that all blocks share in one call of the network.

    Args:
        arrangement: Of the pixels.
        rotation: Of queries and keys, 2 x ``(N, L, 1, F)``, the same for every image.
        mask: ``(B * N, 1, 1, L)`` additive, where there is padding.
    """

    arrangement: Arrangement
    rotation: Rotation
    mask: torch.Tensor | None


def make_sequences(arrangement: Arrangement, batch: int, head_dim: int, like: torch.Tensor) -> Sequences:
    """The tensors of an arrangement for a batch, in the precision and on the device of ``like``."""
    pixels = arrangement.pixels(like.device)
    mask = None if pixels is None else additive_mask(pixels.repeat(batch, 1), like.dtype)
    return Sequences(arrangement, cos_sin(arrangement.angles(head_dim, like.device)), mask)
