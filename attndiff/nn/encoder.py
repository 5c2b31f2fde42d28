"""The condition encoder: one Transformer that turns text, a class label or image patches into tokens for the U-Net.

Shapes: B batch, S condition tokens, T text tokens, C hidden channels.
"""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from attndiff.nn.attention import Attention, additive_mask
from attndiff.nn.blocks import FeedForward
from attndiff.nn.rope import WAVES, Rotation, axial_angles, cos_sin, place_waves, sequence_angles


@dataclass
class ConditionOutput(BaseOutput):
    """What the U-Net attends to.

    Args:
        tokens: ``(B, S, C)``.
        mask: ``(B, S)`` bool, true for tokens that count.
        pooled: ``(B, C)``, the mean of the tokens that count.
    """

    tokens: torch.Tensor
    # None is never seen: offloading hooks rebuild an output as type(output)(dict), which asks for defaults.
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


def pool_tokens(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean ``(B, C)`` of the tokens ``(B, S, C)`` that count by ``mask (B, S)``."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and gated feed-forward over condition tokens."""

    def __init__(self, dim: int, head_dim: int, dropout: float = 0.0):
        super().__init__()
        self.norm_attn = nn.LayerNorm(dim, bias=False)
        self.attn = Attention(dim, head_dim, dropout=dropout)
        self.norm_ff = nn.LayerNorm(dim, bias=False)
        self.ff = FeedForward(dim, dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = x + self.attn(self.norm_attn(x), attention_mask=mask, rotation=rotation)
        return x + self.ff(self.norm_ff(x))


class ConditionEncoder(ModelMixin, ConfigMixin, AttentionMixin):
    """Transformer encoder over up to four streams of condition tokens, each with its own embedding and learned null.

    Of images, for one:

    >>> encoder = ConditionEncoder(hidden_size=32, num_layers=1, head_dim=16, image_channels=3, image_patch_size=4)
    >>> told = encoder(pixel_values=torch.rand(2, 3, 16, 16) * 2 - 1)
    >>> told.tokens.shape, told.mask.shape, told.pooled.shape
    (torch.Size([2, 16, 32]), torch.Size([2, 16]), torch.Size([2, 32]))

    Streams that are configured but not given count as dropped: their learned null token stands for them.

    Args:
        hidden_size: Channels of the tokens.
        num_layers: Transformer blocks.
        head_dim: Channels per attention head; a multiple of 8.
        vocab_size: Size of the tokenizer's vocabulary, or None without text.
        max_length: Text tokens at most.
        num_classes: Number of classes, or None without labels.
        image_channels: Channels of a condition image, or None without one.
        image_patch_size: Side of its square patches in pixels.
        context_dim: Channels of a frozen pretrained encoder's hidden states, or None without one.
        dropout: Dropout probability inside blocks.
        token_dropout: Probability of a whole token to be left out of what is encoded (of patches, arXiv 2208.07220).
        grounded: Whether it has learned words from images before a network learned to draw by it, which would make it
            forget them in minutes: training leaves such an encoder as it is, unless told otherwise.
    """

    _no_split_modules = ["EncoderBlock"]
    _repeated_blocks = ["EncoderBlock"]
    _skip_layerwise_casting_patterns = ["norm", "embedding"]

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 192,
        num_layers: int = 3,
        head_dim: int = 32,
        vocab_size: int | None = None,
        max_length: int = 24,
        num_classes: int | None = None,
        image_channels: int | None = None,
        image_patch_size: int = 4,
        context_dim: int | None = None,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        grounded: bool = False,
    ):
        super().__init__()
        self.text_embedding = nn.Embedding(vocab_size, hidden_size) if vocab_size else None
        self.class_embedding = nn.Embedding(num_classes, hidden_size) if num_classes else None
        patch_dim = (image_channels or 0) * image_patch_size**2 + WAVES
        self.patch_embedding = nn.Linear(patch_dim, hidden_size) if image_channels else None
        self.context_embedding = nn.Linear(context_dim, hidden_size) if context_dim else None
        self.drop_tokens = nn.Dropout1d(token_dropout)
        self.null_embedding = nn.Parameter(torch.randn(len(self.streams), hidden_size) * 0.02)
        for table in (self.text_embedding, self.class_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(EncoderBlock(hidden_size, head_dim, dropout) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(hidden_size, bias=False)

    @property
    def streams(self) -> list[str]:
        """Names of the configured streams, in the order of their tokens."""
        modules = {
            "text": self.text_embedding,
            "class": self.class_embedding,
            "image": self.patch_embedding,
            "context": self.context_embedding,
        }
        return [name for name, module in modules.items() if module is not None]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        drop: torch.Tensor | None = None,
        batch_size: int | None = None,
        return_dict: bool = True,
    ) -> ConditionOutput | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode a batch of conditions.

        Args:
            input_ids: Text tokens ``(B, T)``, int64.
            attention_mask: ``(B, T)``, nonzero for tokens that count.
            class_labels: ``(B,)``, int64 in ``[0, num_classes)``.
            pixel_values: Condition images ``(B, image_channels, H, W)`` in [-1, 1].
            context: Hidden states of a pretrained encoder ``(B, S, context_dim)``.
            context_mask: ``(B, S)``, nonzero for states that count.
            drop: ``(B,)`` bool, true where the condition is replaced by the learned null (classifier-free guidance,
                arXiv 2207.12598).
            batch_size: Number of rows where no stream is given at all, to get the null condition.
            return_dict: Return `ConditionOutput` rather than a tuple.

        Raises:
            ValueError: If a stream is given that the encoder was not configured for.
        """
        given = {
            "text": (input_ids, attention_mask),
            "class": (class_labels, None),
            "image": (pixel_values, None),
            "context": (context, context_mask),
        }
        for name, (content, _) in given.items():
            if content is not None and name not in self.streams:
                raise ValueError(f"this model has no {name} condition; it was made with: {', '.join(self.streams)}.")
        batch = next((c.shape[0] for c, _ in given.values() if c is not None), batch_size)
        parts = [self._stream(i, name, *given[name], drop, batch) for i, name in enumerate(self.streams)]
        tokens, mask, angles = (torch.cat(column, dim=1) for column in zip(*parts))

        additive, rotation = additive_mask(mask, tokens.dtype), cos_sin(angles)
        for block in self.blocks:
            tokens = block(tokens, additive, rotation)
        tokens = self.norm_out(tokens)
        pooled = pool_tokens(tokens, mask)
        return ConditionOutput(tokens, mask, pooled) if return_dict else (tokens, mask, pooled)

    def _stream(self, index, name, content, mask, drop, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings ``(B, S, C)``, mask ``(B, S)`` and rotary angles ``(B, S, F)`` of one stream, nulls put in."""
        null = self.null_embedding[index]
        head_dim, device = self.config.head_dim, null.device
        if content is None:
            content = null.expand(batch, 1, -1)
            return content, torch.ones(batch, 1, dtype=torch.bool, device=device), self._angles(batch, 1)
        if name == "text":
            tokens, angles = self.text_embedding(content), None
        elif name == "class":
            tokens, angles = self.class_embedding(content)[:, None], None
        elif name == "image":
            tokens, (rows, cols) = self._patches(content)
            angles = axial_angles(rows, cols, head_dim, device).expand(batch, -1, -1)
        else:
            tokens, angles = self.context_embedding(content.to(self.context_embedding.weight.dtype)), None
        tokens, length = self.drop_tokens(tokens), tokens.shape[1]
        mask = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask.bool()
        if drop is not None:
            first = torch.arange(length, device=device) == 0
            tokens = torch.where(drop[:, None, None], null.to(tokens.dtype), tokens)
            mask = torch.where(drop[:, None], first, mask)
        return tokens, mask, self._angles(batch, length) if angles is None else angles

    def _angles(self, batch: int, length: int) -> torch.Tensor:
        return sequence_angles(length, self.config.head_dim, self.null_embedding.device).expand(batch, -1, -1)

    def _patches(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Patch embeddings ``(B, rows * cols, C)`` of images ``(B, channels, H, W)``, and the grid's size."""
        side = self.config.image_patch_size
        if pixels.shape[-2] % side or pixels.shape[-1] % side:
            raise ValueError(
                f"a condition image's height and width must be multiples of {side}, not {tuple(pixels.shape[-2:])}."
            )
        x = pixels.unfold(2, side, side).unfold(3, side, side)  # (B, channels, rows, cols, side, side)
        x = x.permute(0, 2, 3, 1, 4, 5)
        grid, x = x.shape[1:3], x.flatten(3).flatten(1, 2)  # (B, rows * cols, channels * side * side)
        places = place_waves(*grid, x.device).to(x.dtype).expand(len(x), -1, -1)
        return self.patch_embedding(torch.cat([x, places], dim=-1).to(self.patch_embedding.weight.dtype)), grid
