"""The Transformer generator: a decoder over the patches of an image, a small one over the values of each, and its head.

The decoder of patches says of each, from all before it and the condition, what it may be; the small one draws its
values one after another (as in arXiv 2305.07185, section 2). Values are classes, so that their likelihood is exact.

Shapes: B images, C channels, H rows, W columns, N patches, K = patch * patch * C values of a patch, J neighbours,
M condition tokens, D channels of a patch, E channels of a value, V levels.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import Cache

from attndiff.nn.decoder import KeyValue, TransformerDecoder
from attndiff.nn.raster.order import NEIGHBOURS, patch_neighbours, to_sequence, value_neighbours
from attndiff.nn.rope import axial_angles

LARGEST = 2**18  # values of an image, which are drawn one after another
SEEN = 16  # channels of a value as the decoder of patches sees it


class PixelTransformerModel(ModelMixin, ConfigMixin, AttentionMixin):
    """Images drawn value by value, or how likely given ones are.

    >>> model = PixelTransformerModel(sample_size=8, hidden_size=32, num_layers=1, head_dim=16, value_size=32)
    >>> images = torch.randint(256, (2, 3, 8, 8))
    >>> logits = model(images)
    >>> logits.shape
    torch.Size([2, 16, 12, 256])
    >>> [round(bits, 3) for bits in model.bits_per_value(logits, images).tolist()]  # fresh: all are equally likely
    [8.0, 8.0]

    Args:
        channels: C.
        sample_size: H and W of the images.
        patch_size: Side of a patch; divides ``sample_size``.
        num_values: V, values that a channel can have.
        hidden_size: D.
        num_layers: Blocks of the decoder of patches.
        head_dim: Channels per attention head; a multiple of 8.
        value_size: E.
        value_layers: Blocks of the decoder of values.
        cross_attention_dim: Channels of the condition tokens, or None without a condition.
        dropout: Dropout probability inside blocks.

    Raises:
        ValueError: If patches do not divide the image, or it has more than `LARGEST` values.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]
    _repeated_blocks = ["DecoderBlock"]
    _skip_layerwise_casting_patterns = ["norm", "embedding", "head"]

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        sample_size: int = 32,
        patch_size: int = 2,
        num_values: int = 256,
        hidden_size: int = 192,
        num_layers: int = 6,
        head_dim: int = 32,
        value_size: int = 96,
        value_layers: int = 2,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if sample_size % patch_size:
            raise ValueError(f"patches of {patch_size} do not divide images of {sample_size}: choose another size.")
        if channels * sample_size**2 > LARGEST:
            raise ValueError(
                f"images of {channels} x {sample_size} x {sample_size} values are too large: {LARGEST} at most."
            )
        values = patch_size * patch_size * channels
        self.patch_embedding = nn.Embedding(num_values + 1, SEEN)  # one more for what is outside
        self.patch_in = nn.Linear(len(NEIGHBOURS) * values * SEEN, hidden_size)
        self.patch_decoder = TransformerDecoder(hidden_size, num_layers, head_dim, cross_attention_dim, dropout)
        self.patch_out = nn.Linear(hidden_size, value_size)
        self.value_embeddings = nn.ModuleList(
            nn.Embedding(num_values + 1, value_size) for _ in range(len(NEIGHBOURS) + 1)
        )
        self.place_embedding = nn.Parameter(torch.randn(values, value_size) * 0.02)
        self.value_decoder = TransformerDecoder(value_size, value_layers, head_dim, dropout=dropout)
        self.head = nn.Linear(value_size, num_values)
        self.head_of_neighbours = nn.Linear(value_size, len(NEIGHBOURS))
        # No buffers: they follow from the sizes, and a folder holds nothing but weights.
        self.places_of_patches = patch_neighbours(self.grid, self.grid)  # (N, J)
        self.places_of_values = value_neighbours(channels, sample_size, sample_size, patch_size)  # (N, K, J)
        for table in self.value_embeddings:
            nn.init.normal_(table.weight, std=0.02)
        for layer in (self.head, self.head_of_neighbours):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    # Sizes

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.config.sample_size // self.config.patch_size

    @property
    def size_multiple(self) -> int:
        """The side of its images, which it knows no others of."""
        return self.config.sample_size

    @property
    def values_of_patch(self) -> int:
        """K."""
        return self.config.patch_size**2 * self.config.channels

    @property
    def absent(self) -> int:
        """What stands for a value that is not there."""
        return self.config.num_values

    # The two decoders, over all of an image or a step

    def key_values(self, encoder_hidden_states: torch.Tensor) -> list[KeyValue]:
        """As of `TransformerDecoder.key_values`."""
        return self.patch_decoder.key_values(encoder_hidden_states.to(self.dtype))

    def read_patches(
        self,
        seen: torch.Tensor,
        key_values: list[KeyValue] | None = None,
        condition_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        first: int = 0,
    ) -> torch.Tensor:
        """What the decoder of patches says of patches, ``(B, N, E)``.

        Args:
            seen: Values of their neighbours ``(B, N, J, K)``.
            key_values: Of the condition.
            condition_mask: ``(B, M)`` bool.
            cache: Of the patches before.
            first: Number of the first of these patches.
        """
        x = self.patch_in(self.patch_embedding(seen).flatten(2))  # (B, N, D)
        angles = axial_angles(self.grid, self.grid, self.config.head_dim, x.device)[None, first : first + x.shape[1]]
        x = self.patch_decoder(x, None, key_values, condition_mask, cache, angles)
        return self.patch_out(x)

    def read_values(
        self,
        said: torch.Tensor,
        before: torch.Tensor,
        beside: torch.Tensor,
        cache: Cache | None = None,
        first: int = 0,
    ) -> torch.Tensor:
        """Logits of values, ``(R, L, V)`` of R patches.

        Args:
            said: Of the patches by `read_patches`, ``(R, E)``.
            before: The value before each in its patch, ``(R, L)``; `absent` for the first.
            beside: Values of the neighbours of each, ``(R, L, J)``.
            cache: Of the values before, in these patches.
            first: Number of the first of these values in its patch.
        """
        x = said[:, None] + self.place_embedding[first : first + before.shape[1]]
        for table, known in zip(self.value_embeddings, (before, *beside.unbind(-1)), strict=True):
            x = x + table(known)
        x = self.value_decoder(x, cache=cache)  # (R, L, E)
        logits = F.pad(self.head(x), (0, 1))  # (R, L, V + 1)
        # What a neighbour has is the likeliest of all in drawings; a value that is not there adds to none.
        logits = logits.scatter_add(-1, beside, self.head_of_neighbours(x).to(logits.dtype))
        return logits[..., :-1]

    # An image

    def forward(
        self,
        images: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of every value given those before it, ``(B, N, K, V)``.

        Args:
            images: ``(B, C, H, W)`` int64 in [0, V).
            encoder_hidden_states: Condition tokens ``(B, M, cross_attention_dim)``.
            encoder_attention_mask: ``(B, M)``, nonzero for condition tokens that count.
        """
        sequence = to_sequence(images, self.config.patch_size)  # (B, N, K)
        key_values = None if encoder_hidden_states is None else self.key_values(encoder_hidden_states)
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        said = self.read_patches(self.neighbours_of_patches(sequence), key_values, mask)
        before = F.pad(sequence, (1, 0), value=self.absent)[..., :-1]
        beside = self.neighbours_of_values(sequence)
        logits = self.read_values(said.flatten(0, 1), before.flatten(0, 1), beside.flatten(0, 1))
        return logits.unflatten(0, sequence.shape[:2])

    def bits_per_value(self, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Bits per value and image, ``(B,)`` float32: "bits per dimension" of the literature."""
        sequence = to_sequence(images, self.config.patch_size)
        nats = F.cross_entropy(logits.float().flatten(0, 2), sequence.flatten(), reduction="none")
        return nats.view(len(images), -1).mean(1) / math.log(2)

    def neighbours_of_patches(self, sequence: torch.Tensor, patches: slice = slice(None)) -> torch.Tensor:
        """Values of the neighbours of some patches ``(B, N, J, K)``, of sequences ``(B, N, K)``."""
        table = self.places_of_patches[patches].to(sequence.device)
        return F.pad(sequence, (0, 0, 0, 1), value=self.absent)[:, table]

    def neighbours_of_values(self, sequence: torch.Tensor, patches: slice = slice(None)) -> torch.Tensor:
        """Values of the neighbours of the values of some patches ``(B, N, K, J)``, of sequences ``(B, N, K)``."""
        table = self.places_of_values[patches].to(sequence.device)
        return F.pad(sequence.flatten(1), (0, 1), value=self.absent)[:, table]
