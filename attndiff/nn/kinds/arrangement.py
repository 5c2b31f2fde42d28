"""How the pixels of an image stand in sequences, each attending to itself: all that a kind of self-attention says.

Shapes: B batch, H rows, W columns, C channels, N sequences of an image, L pixels of a sequence, M tokens that all
sequences of an image attend to beside their own, F rotated pairs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from attndiff.nn.attention import Attention, additive_mask
from attndiff.nn.rope import Rotation, cos_sin


class Arrangement(ABC):
    """Pixels of images of one size as sequences.

    Attributes:
        kind: Its name in tables.
        sequences: N.
        length: L, padding included.
        shared_length: M.
        routes: Sequences of the image that each attends to, chosen by `best_sequences`; None for itself alone.
    """

    kind: str
    sequences: int
    length: int
    shared_length: int = 0
    routes: int | None = None

    @property
    def keys(self) -> int:
        """Tokens that a pixel attends to, padding included."""
        return self.length * (self.routes or 1) + self.shared_length

    @abstractmethod
    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, H, W, C)`` to sequences ``(B * N, L, C)``, padded with zeros."""

    @abstractmethod
    def join(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse: ``(B * N, L, C)`` to ``(B, H, W, C)``, without the padding."""

    @abstractmethod
    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """Rotary angles ``(N, L, F)`` of the pixels."""

    def pixels(self, device: torch.device) -> torch.Tensor | None:
        """``(N, L)`` bool, false for padding; None without any."""
        return None

    def shared(self, x: torch.Tensor) -> torch.Tensor | None:
        """Of images ``(B, H, W, C)`` the tokens ``(B, M, C)`` that all sequences attend to; None without any."""
        return None

    def shared_angles(self, head_dim: int, device: torch.device) -> torch.Tensor | None:
        """Rotary angles ``(1, M, F)`` of those tokens; None without any."""
        return None


@dataclass
class Sequences:
    """An arrangement with the tensors that all blocks share in one call of the network.

    Args:
        arrangement: Of the pixels.
        rotation: Of queries and keys, 2 x ``(N, L, 1, F)``, the same for every image.
        mask: ``(B * N, 1, 1, L + M)`` additive, where there is padding.
        shared_rotation: Of the keys of shared tokens, 2 x ``(1, M, 1, F)``, where there are any.
    """

    arrangement: Arrangement
    rotation: Rotation
    mask: torch.Tensor | None
    shared_rotation: Rotation | None = None


def make_sequences(arrangement: Arrangement, batch: int, head_dim: int, like: torch.Tensor) -> Sequences:
    """The tensors of an arrangement for a batch, in the precision and on the device of ``like``."""
    pixels, mask = arrangement.pixels(like.device), None
    if pixels is not None:
        counting = F.pad(pixels, (0, arrangement.shared_length), value=True)
        mask = additive_mask(counting.repeat(batch, 1), like.dtype)
    angles = arrangement.angles(head_dim, like.device), arrangement.shared_angles(head_dim, like.device)
    rotation, shared_rotation = (None if one is None else cos_sin(one) for one in angles)
    return Sequences(arrangement, rotation, mask, shared_rotation)


def attend(
    attn: Attention, x: torch.Tensor, sequences: Sequences, temperature: torch.Tensor | None = None
) -> torch.Tensor:
    """Self-attention of the pixels of images, as they are arranged.

    Args:
        attn: The layer, of H heads.
        x: ``(B, H, W, C)``.
        sequences: How its pixels are arranged.
        temperature: ``(B, heads)``, a factor of each image's logits, above 0.

    Returns:
        ``(B, H, W, C)``.
    """
    arrangement, shared, routing = sequences.arrangement, None, None
    if arrangement.routes is not None:
        routing = (arrangement.sequences, arrangement.routes)
    if sequences.shared_rotation is not None:
        shared = (arrangement.shared(x), sequences.shared_rotation)
    if temperature is not None:
        temperature = temperature.repeat_interleave(arrangement.sequences, 0)[:, None, :, None]
    out = attn(
        arrangement.split(x),
        rotation=sequences.rotation,
        attention_mask=sequences.mask,
        shared=shared,
        temperature=temperature,
        routing=routing,
    )
    return arrangement.join(out)
