"""The two kinds of block of the U-Net, and how it changes resolution.

One memory layout throughout: images are ``(B, H, W, C)``, so that tokens, channel norms and linear layers need no
copy, and a convolution sees the same memory as a channels_last ``(B, C, H, W)`` tensor.

Norms are LayerNorm over the channels of a pixel. torch's CPU kernel for it is fused in both directions where
RMSNorm's is not (forward and backward of 64 x 256 x 128 values on 2 cores: 2.3 ms against 20-56 ms in float32,
2.1 against 9.0 in bfloat16).

Shapes: B batch, H rows, W columns, C channels, S condition tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.nn.attention import Attention
from attndiff.nn.kinds.arrangement import Sequences, attend


class Conv3x3(nn.Conv2d):
    """3x3 convolution of ``(B, H, W, C)`` images; ``seamless`` wraps around the borders."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, seamless: bool = False):
        super().__init__(
            in_channels, out_channels, 3, padding=1, bias=bias, padding_mode="circular" if seamless else "zeros"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """Residual pair of 3x3 convolutions; the condition scales the middle (DiC, arXiv 2501.00603, section 3.3).

    Args:
        dim: Channels.
        dropout: Probability of zeroing a channel between the convolutions in training.
        seamless: Wrap convolutions around the borders.

    Attributes:
        scale_size: Values that the modulation gives the block for an image.
    """

    def __init__(self, dim: int, dropout: float = 0.0, seamless: bool = False):
        super().__init__()
        self.scale_size = dim
        self.norm = nn.LayerNorm(dim, bias=False)
        self.conv_in = Conv3x3(dim, dim, seamless=seamless)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = Conv3x3(dim, dim, seamless=seamless)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``x (B, H, W, C)``, ``scale (B, C)``."""
        h = self.conv_in(self.norm(x)) * (1 + scale[:, None, None])
        return x + self.conv_out(self.dropout(F.silu(h)))


class FeedForward(nn.Module):
    """Gated feed-forward, SwiGLU (arXiv 2002.05202, Eq. 6)."""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        hidden = (dim * 8 // 3 + 31) // 32 * 32
        self.proj_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.proj_out = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(self.dropout(F.silu(gate) * value))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the condition and feed-forward over the pixels of one level.

    Args:
        dim: Channels.
        head_dim: Channels per attention head.
        self_attention: Whether the pixels attend to each other.
        cross_attention_dim: Channels of the condition tokens; None leaves cross-attention out.
        dropout: Dropout probability of both the attention's and the feed-forward's output.
        gated: Self-attention has a gate a head.
        noise_temperature: The modulation sets a temperature of self-attention's logits for every head too.

    Attributes:
        scale_size: Values that the modulation gives the block for an image.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        self_attention: bool = True,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
        gated: bool = False,
        noise_temperature: bool = False,
    ):
        super().__init__()
        self.scale_sizes = [dim, dim, dim // head_dim] if noise_temperature else [dim, dim]
        self.scale_size = sum(self.scale_sizes)
        self.norm_attn = nn.LayerNorm(dim, bias=False) if self_attention else None
        self.attn = Attention(dim, head_dim, dropout=dropout, gated=gated) if self_attention else None
        self.norm_cross = nn.LayerNorm(dim, bias=False) if cross_attention_dim else None
        self.cross_attn = Attention(dim, head_dim, cross_attention_dim, dropout) if cross_attention_dim else None
        self.norm_ff = nn.LayerNorm(dim, bias=False)
        self.ff = FeedForward(dim, dropout)

    def forward(
        self,
        x: torch.Tensor,  # (B, H, W, C)
        scale: torch.Tensor,  # (B, scale_size)
        sequences: Sequences | None = None,
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,  # 2 x (B, S, heads, head_dim)
        mask: torch.Tensor | None = None,  # (B, 1, 1, S) additive
    ) -> torch.Tensor:
        scale_attn, scale_ff, *log_temperature = scale[:, None].split(self.scale_sizes, dim=-1)
        temperature = log_temperature[0][:, 0].exp() if log_temperature else None  # (B, heads)
        _, height, width, _ = x.shape
        x = x.flatten(1, 2)  # (B, H * W, C)
        if self.attn is not None:
            h = self.norm_attn(x) * (1 + scale_attn)
            x = x + attend(self.attn, h.unflatten(1, (height, width)), sequences, temperature).flatten(1, 2)
        if self.cross_attn is not None and key_value is not None:
            x = x + self.cross_attn(self.norm_cross(x), key_value=key_value, attention_mask=mask)
        x = x + self.ff(self.norm_ff(x) * (1 + scale_ff))
        return x.unflatten(1, (height, width))


class Downsample(nn.Module):
    """Halve the resolution: every 2x2 pixels become one by a linear layer."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(space_to_depth(x, 2))


class Upsample(nn.Module):
    """Double the resolution and add the encoder's features; a learned lerp of the two was no better (ablation.md)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 4 * out_dim, bias=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """``x (B, H/2, W/2, C)`` and ``skip (B, H, W, C_out)`` to ``(B, H, W, C_out)``."""
        return skip + depth_to_space(self.proj(x), 2)


def space_to_depth(x: torch.Tensor, factor: int) -> torch.Tensor:
    """``(B, H, W, C)`` to ``(B, H / factor, W / factor, factor^2 C)``."""
    x = x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (B, h, f, w, f, C)
    return x.transpose(2, 3).flatten(3)


def depth_to_space(x: torch.Tensor, factor: int) -> torch.Tensor:
    """The inverse of ``space_to_depth``."""
    x = x.unflatten(3, (factor, factor, -1)).transpose(2, 3)  # (B, h, f, w, f, C)
    return x.flatten(3, 4).flatten(1, 2)
