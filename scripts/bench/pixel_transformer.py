"""A plain Transformer on pixels in the layout of JiT, written from the paper: Li and He 2025, arXiv 2511.13720.

Kept of its JiT-B: 12 blocks; patches embedded through a bottleneck of 128 channels; fixed sine positions, and rotary
ones by row and column in every attention; RMSNorm, normalised queries and keys, heads of about 64 channels; SwiGLU of
two thirds of four times the width; adaLN-Zero from the sum of time and class; from the fifth block on, 32 tokens in
front that all are the class, each with a learned position; prediction of the clean image. What is different here:

- An image of 32 px has 64 tokens. Patches are of 4 x 4 pixels, as in the paper at 64 px, where they make 256 tokens as
  in its other configurations. Patches of 2 x 2 would make 256 of an image of 32 px too, but cost three and a half times
  the operations and learned less in as many: this is the stronger rival.
- The bottleneck, a sixth of the 768 values of the paper's patches of 16 x 16, is wider than the 48 of these.
- The class is the pooled condition through a linear layer, in both its places.

Shapes: B batch, L tokens, C channels, H heads, D channels of a head, F = D / 2 rotated pairs.
"""

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.nn.rope import Rotation, cos_sin, rotate

PATCH, DEPTH, BOTTLENECK = 4, 12, 128
CONTEXT, CONTEXT_FROM = 32, 4  # tokens of the condition, and before which block they come
TIME_FEATURES, LONGEST_PERIOD = 256, 10000.0


def frequencies(count: int, device: torch.device) -> torch.Tensor:
    """``(count,)``, from 1 down to nearly ``1 / LONGEST_PERIOD`` at equal ratios."""
    return LONGEST_PERIOD ** (-torch.arange(count, device=device, dtype=torch.float32) / count)


def sinusoids(x: torch.Tensor, channels: int) -> torch.Tensor:
    """Cosines and sines of numbers ``(N,)`` at falling frequencies, ``(N, channels)``."""
    angles = x.float()[:, None] * frequencies(channels // 2, x.device)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def grid(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every patch, each ``(rows * columns,)``."""
    axes = (torch.arange(size, device=device, dtype=torch.float32) for size in (rows, columns))
    return tuple(places.flatten() for places in torch.meshgrid(*axes, indexing="ij"))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x (B, L, C)`` scaled by ``1 + scale (B, C)`` and shifted."""
    return x * (1 + scale[:, None]) + shift[:, None]


class RMSNorm(nn.RMSNorm):
    """Of the channels, in the precision of what it is given: torch has no fast one where that is not its weight's."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Self-attention with normalised and rotated queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_query, self.norm_key = (RMSNorm(width // heads) for _ in range(2))

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        query, key, value = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).unbind(2)  # (B, L, H, D)
        query, key = rotate(self.norm_query(query), rotation), rotate(self.norm_key(key), rotation)
        attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
        return self.out(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated feed-forward layer (arXiv 2002.05202, Eq. 6)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 8 * width // 3
        self.gate_and_value, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """A Transformer block with adaLN-Zero (arXiv 2212.09748, section 3.2)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_attention, self.norm_feed_forward = (RMSNorm(width) for _ in range(2))
        self.attention, self.feed_forward = Attention(width, heads), SwiGLU(width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, told: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(told)).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm_attention(x), shift1, scale1), rotation)
        return x + gate2[:, None] * self.feed_forward(modulate(self.norm_feed_forward(x), shift2, scale2))


class PixelTransformer(nn.Module):
    """Predicts the clean image.

    Args:
        width: Channels; a multiple of 4, and of 4 times the heads.
        heads: Of every attention.
        pooled_dim: Channels of the pooled condition.
        channels: Of the image.
    """

    def __init__(self, width: int, heads: int, pooled_dim: int, channels: int = 3):
        super().__init__()
        self.width, self.head_dim = width, width // heads
        self.patches = nn.Conv2d(channels, BOTTLENECK, PATCH, PATCH, bias=False)
        self.embed = nn.Linear(BOTTLENECK, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Linear(pooled_dim, width)
        self.context_positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(DEPTH))
        self.norm_out, self.modulation_out = RMSNorm(width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * PATCH**2)
        self._initialise()

    def _initialise(self) -> None:
        """As DiT begins (arXiv 2212.09748): every block the identity, the prediction zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.view(BOTTLENECK, -1))
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.modulation_out, self.out):
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor, time: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """The clean image ``(B, channels, height, width)``.

        Args:
            x: Noisy images of the same shape, both sides multiples of `PATCH`.
            time: Share of the image in them, 0 to 1, ``(B,)``.
            pooled: Of the condition, ``(B, pooled_dim)``.
        """
        condition = self.pooled(pooled)
        told = self.time(sinusoids(time, TIME_FEATURES)) + condition  # (B, C)
        patches = self.patches(x)
        places = grid(*patches.shape[2:], x.device)
        tokens = self.embed(patches.flatten(2).transpose(1, 2)) + self._positions(places)  # (B, L, C)
        angles = self._angles(places)
        for i, block in enumerate(self.blocks):
            if i == CONTEXT_FROM:
                tokens = torch.cat([condition[:, None] + self.context_positions, tokens], dim=1)
                angles = F.pad(angles, (0, 0, CONTEXT, 0))  # the condition's tokens do not turn
            tokens = block(tokens, told, cos_sin(angles[None]))
        shift, scale = self.modulation_out(F.silu(told)).chunk(2, dim=1)
        values = self.out(modulate(self.norm_out(tokens[:, CONTEXT:]), shift, scale))
        return F.pixel_shuffle(values.transpose(1, 2).unflatten(2, patches.shape[2:]), PATCH)

    def _positions(self, places: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """``(L, C)``: half the channels for the row, half for the column."""
        return torch.cat([sinusoids(axis, self.width // 2) for axis in places], dim=1)

    def _angles(self, places: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Rotary angles ``(L, F)``: half the pairs turn with the row, half with the column."""
        each = frequencies(self.head_dim // 4, places[0].device)
        return torch.cat([axis[:, None] * each for axis in places], dim=1)
