"""AttentionUNet2DModel, in one file that needs torch, diffusers and transformers only.

SPDX-License-Identifier: Apache-2.0
"""

import math
import torch
import torch.nn.functional as F
from dataclasses import dataclass
from diffusers.configuration_utils import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils import logging
from torch import nn


# attndiff.nn.rope

"""Axial rotary positions: each attention head rotates a part of its channels by row and a part by column.

RoFormer (arXiv 2104.09864, Eq. 34) applied per axis as in HDiT (arXiv 2401.11605, section 4.2).

Shapes: B batch, L tokens, H heads, D channels per head, F rotated pairs.
"""



def axial_angles(height: int, width: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Rotation angles of every token of a ``height x width`` grid.

    Half of the head's channels rotate: a quarter with the row, a quarter with the column; the other half
    carries content only.

    Returns:
        Float32 tensor ``(height * width, head_dim // 4)`` of angles in radians.
    """
    n_freqs = head_dim // 8
    freqs = 100.0 ** (-torch.arange(n_freqs, device=device, dtype=torch.float32) / n_freqs)
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] * freqs  # (h, F/2)
    cols = torch.arange(width, device=device, dtype=torch.float32)[:, None] * freqs  # (w, F/2)
    grid = torch.cat([rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)], dim=-1)  # (h, w, F)
    return grid.flatten(0, 1)


def sequence_angles(length: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Rotation angles of a one-dimensional sequence, ``(length, head_dim // 4)``, for text tokens."""
    n_freqs = head_dim // 4
    freqs = 1000.0 ** (-torch.arange(n_freqs, device=device, dtype=torch.float32) / n_freqs)
    return torch.arange(length, device=device, dtype=torch.float32)[:, None] * freqs


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the first ``2 F`` channels of every head of ``x`` by ``angles``.

    Args:
        x: Queries or keys ``(B, L, H, D)``.
        angles: ``(L, F)`` or ``(B, L, F)`` with ``2 F <= D``.
    """
    n = angles.shape[-1]
    cos, sin = angles.cos().unsqueeze(-2).to(x.dtype), angles.sin().unsqueeze(-2).to(x.dtype)  # (L, 1, F)
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


# attndiff.nn.attention

"""Self- and cross-attention over diffusers' backend dispatcher, with a plain-softmax reference.

Shapes: B batch, L query tokens, S key tokens, H heads, D channels per head, C = H * D.
"""




def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention written out (arXiv 1706.03762, Eq. 1): what every backend is tested against.

    Args:
        query: ``(B, L, H, D)``.
        key: ``(B, S, H, D)``.
        value: ``(B, S, H, D)``.
        mask: Boolean ``(B, S)``, true where a key may be attended to.

    Returns:
        ``(B, L, H, D)``.
    """
    weights = attention_weights(query, key, mask)  # (B, H, L, S)
    return torch.einsum("bhls,bshd->blhd", weights.to(value.dtype), value)


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention probabilities ``(B, H, L, S)`` in float32, of the tensors that ``reference_attention`` takes."""
    logits = torch.einsum("blhd,bshd->bhls", query.float(), key.float()) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], float("-inf"))
    return logits.softmax(dim=-1)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean ``(B, S)`` mask as ``(B, 1, 1, S)`` of 0 and -inf.

    The only form that all of diffusers' backends read alike: its xformers backend takes a 4-D boolean mask for
    additive zeros and ones, and its math backend does not broadcast a 2-D one.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    return align_rows(bias)[:, None, None]


def align_rows(bias: torch.Tensor) -> torch.Tensor:
    """The same values ``(..., S)`` with every row at a multiple of 8 values, as xformers' kernels demand of a mask."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 8))[..., :length]


def choose_backend(
    value: torch.Tensor, requested: AttentionBackendName | str | None
) -> AttentionBackendName | str | None:
    """The backend that computes this call: the one the user set, else torch's own, by where and why it runs.

    On CPU and in half precision, torch's fused kernel spends a multiple of the time of plain matmuls in the backward
    pass of the short sequences seen here (`attndiff bench --attention` prints both), so gradients take the plain path
    there. In float32 the fused kernel is the faster one.
    """
    plain_is_faster = value.device.type == "cpu" and value.dtype != torch.float32 and torch.is_grad_enabled()
    if requested is not None or not plain_is_faster:
        return requested
    if _AttentionBackendRegistry.get_active_backend()[0] is not AttentionBackendName.NATIVE:
        return None
    return AttentionBackendName._NATIVE_MATH


class AttnDiffAttnProcessor:
    """Computes one attention layer; ``set_attention_backend`` and the xformers switch act on it."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "Attention",
        hidden_states: torch.Tensor,  # (B, L, C)
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,  # 2 x (B, S, H, D)
        attention_mask: torch.Tensor | None = None,  # (B, 1, 1, S) additive
        angles: torch.Tensor | None = None,  # (L, F) or (B, L, F)
    ) -> torch.Tensor:
        if attn.is_cross_attention:
            query = attn.query(hidden_states)
            key, value = key_value
        else:
            query, key, value = attn.query_key_value(hidden_states)
            if angles is not None:
                query, key = rotate(query, angles), rotate(key, angles)
        if attention_mask is not None and attention_mask.dtype != query.dtype:
            attention_mask = align_rows(attention_mask.to(query.dtype))
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=choose_backend(value, self._attention_backend),
            parallel_config=self._parallel_config,
        )
        out = attn.to_out[0](out.flatten(2))  # (B, L, C)
        return attn.to_out[1](out)


class Attention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with normalised queries and keys (arXiv 2302.05442, section 2.2).

    The four projections are separate ``Linear`` modules because LoRA, Muon and diffusers' mixins look for
    them; joining them into one matmul saves no time on the CPU.

    Args:
        dim: Channels of the queries and of the result; a multiple of ``head_dim``.
        head_dim: Channels per head.
        cross_attention_dim: Channels of the condition tokens, or None for self-attention.
        dropout: Probability of zeroing a channel of the result in training.
    """

    _default_processor_cls = AttnDiffAttnProcessor
    _available_processors = [AttnDiffAttnProcessor]

    def __init__(self, dim: int, head_dim: int, cross_attention_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"width {dim} is not a multiple of head_dim {head_dim}; choose widths that are.")
        self.heads, self.head_dim = dim // head_dim, head_dim
        self.inner_dim = dim
        self.use_bias = False
        self.is_cross_attention = cross_attention_dim is not None
        source = cross_attention_dim or dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(source, dim, bias=False)
        self.to_v = nn.Linear(source, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False), nn.Dropout(dropout)])
        nn.init.zeros_(self.to_out[0].weight)
        self.norm_q = nn.LayerNorm(head_dim, bias=False)
        self.norm_k = nn.LayerNorm(head_dim, bias=False)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, **kwargs)

    def query(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalised queries ``(B, L, H, D)`` of tokens ``(B, L, C)``."""
        return self.norm_q(self._split(self.to_q(hidden_states)))

    def key_value(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised keys and values, each ``(B, S, H, D)``, of condition tokens ``(B, S, C_context)``."""
        if getattr(self, "fused_projections", False):
            key, value = self.to_kv(context).chunk(2, dim=-1)
        else:
            key, value = self.to_k(context), self.to_v(context)
        return self.norm_k(self._split(key)), self._split(value)

    def query_key_value(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of self-attention, each ``(B, L, H, D)``."""
        if getattr(self, "fused_projections", False):
            query, key, value = self.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states)
        return self.norm_q(self._split(query)), self.norm_k(self._split(key)), self._split(value)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))


# attndiff.nn.blocks

"""The two kinds of block of the U-Net, and how it changes resolution.

One memory layout throughout: images are ``(B, H, W, C)``, so that tokens, channel norms and linear layers need no
copy, and a convolution sees the same memory as a channels_last ``(B, C, H, W)`` tensor.

Norms are LayerNorm over the channels of a pixel. torch's CPU kernel for it is fused in both directions where
RMSNorm's is not (forward and backward of 64 x 256 x 128 values on 2 cores: 2.3 ms against 20-56 ms in float32,
2.1 against 9.0 in bfloat16).

Shapes: B batch, H rows, W columns, C channels, L = H * W tokens.
"""




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
    """

    scales_per_channel = 1

    def __init__(self, dim: int, dropout: float = 0.0, seamless: bool = False):
        super().__init__()
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
    """

    scales_per_channel = 2

    def __init__(
        self,
        dim: int,
        head_dim: int,
        self_attention: bool = True,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm_attn = nn.LayerNorm(dim, bias=False) if self_attention else None
        self.attn = Attention(dim, head_dim, dropout=dropout) if self_attention else None
        self.norm_cross = nn.LayerNorm(dim, bias=False) if cross_attention_dim else None
        self.cross_attn = Attention(dim, head_dim, cross_attention_dim, dropout) if cross_attention_dim else None
        self.norm_ff = nn.LayerNorm(dim, bias=False)
        self.ff = FeedForward(dim, dropout)

    def forward(
        self,
        x: torch.Tensor,  # (B, H, W, C)
        scale: torch.Tensor,  # (B, 2 C)
        angles: torch.Tensor,  # (L, F)
        window: tuple[int, int] | None = None,
        dilated: bool = False,
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,  # 2 x (B, S, heads, head_dim)
        mask: torch.Tensor | None = None,  # (B, 1, 1, S) additive
    ) -> torch.Tensor:
        scale_attn, scale_ff = scale[:, None].chunk(2, dim=-1)
        _, height, width, _ = x.shape
        x = x.flatten(1, 2)  # (B, L, C)
        if self.attn is not None:
            h = self.norm_attn(x) * (1 + scale_attn)
            if window is None:
                h = self.attn(h, angles=angles)
            else:
                h = window_attention(self.attn, h.unflatten(1, (height, width)), angles, window, dilated)
            x = x + h
        if self.cross_attn is not None and key_value is not None:
            x = x + self.cross_attn(self.norm_cross(x), key_value=key_value, attention_mask=mask)
        x = x + self.ff(self.norm_ff(x) * (1 + scale_ff))
        return x.unflatten(1, (height, width))


def window_attention(
    attn: Attention,
    x: torch.Tensor,
    angles: torch.Tensor,
    window: tuple[int, int],
    dilated: bool,
) -> torch.Tensor:
    """Self-attention inside windows, or on the dilated grid that joins them (MaxViT, arXiv 2204.01697, Fig. 3).

    Args:
        attn: The layer.
        x: ``(B, H, W, C)``.
        angles: ``(L, F)`` rotary angles of the whole grid.
        window: Rows and columns of a window; they divide H and W.
        dilated: Take every ``H / rows``-th pixel instead of neighbouring ones.

    Returns:
        ``(B, L, C)``.
    """
    batch, height, width, _ = x.shape
    x, angles = split_windows(x, window, dilated), angles.unflatten(0, (height, width))[None]
    angles = split_windows(angles, window, dilated).repeat(batch, 1, 1)
    return join_windows(attn(x, angles=angles), (height, width), window, dilated).flatten(1, 2)


def split_windows(x: torch.Tensor, window: tuple[int, int], dilated: bool) -> torch.Tensor:
    """``(B, H, W, C)`` to ``(B * windows, rows * columns, C)``."""
    rows, cols = window
    if dilated:
        x = x.unflatten(2, (cols, -1)).unflatten(1, (rows, -1))  # (B, rows, nh, cols, nw, C)
        x = x.permute(0, 2, 4, 1, 3, 5)
    else:
        x = x.unflatten(2, (-1, cols)).unflatten(1, (-1, rows))  # (B, nh, rows, nw, cols, C)
        x = x.permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3, 4).flatten(0, 2)


def join_windows(x: torch.Tensor, size: tuple[int, int], window: tuple[int, int], dilated: bool) -> torch.Tensor:
    """The inverse of ``split_windows``: back to ``(B, H, W, C)``."""
    (height, width), (rows, cols) = size, window
    x = x.unflatten(1, (rows, cols)).unflatten(0, (-1, height // rows, width // cols))  # (B, nh, nw, rows, cols, C)
    x = x.permute(0, 3, 1, 4, 2, 5) if dilated else x.permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3, 4).flatten(1, 2)


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


# attndiff.nn.unet

"""The network: an hourglass of convolution blocks where resolution is high and transformer blocks where it is low.

Shapes: B batch, C channels, H rows, W columns, S condition tokens. Images enter and leave as ``(B, C, H, W)``.
"""




logger = logging.get_logger(__name__)

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Level:
    """One resolution of the network; ``levels`` is a list of these, highest resolution first.

    Args:
        width: Channels; a multiple of ``head_dim`` where the level attends.
        depth: Blocks on the way down, and as many on the way up; the last level has them once.
        attention: ``"none"``, ``"window"`` or ``"global"`` self-attention.
        cross_attention: Whether the pixels attend to the condition tokens. A level with neither kind of attention is
            made of convolution blocks, any other of transformer blocks.
        max_tokens: Pixels up to which ``"global"`` attention is global; larger images attend in windows, with a
            warning.
        window: Side of an attention window in pixels of this level.
    """

    width: int
    depth: int = 2
    attention: str = "none"
    cross_attention: bool = False
    max_tokens: int = 1024
    window: int = 8

    def __post_init__(self):
        if self.attention not in ("none", "window", "global"):
            raise ValueError(f"levels: attention must be 'none', 'window' or 'global', not {self.attention!r}.")
        if self.width < 1 or self.depth < 0:
            raise ValueError(f"levels: width {self.width} and depth {self.depth} must be positive.")


@dataclass
class AttentionUNet2DOutput(BaseOutput):
    """``sample (B, out_channels, H, W)``: the network's prediction."""

    sample: torch.Tensor


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise coordinate, then a linear layer (arXiv 2006.09011, technique 2)."""

    def __init__(self, dim: int, n_freqs: int = 64):
        super().__init__()
        self.n_freqs = n_freqs
        self.proj = nn.Linear(2 * n_freqs, dim)

    def forward(self, noise_level: torch.Tensor) -> torch.Tensor:
        # From a quarter turn to 32 turns over the range of +-1.7 that ln(sigma) / 4 covers.
        octaves = torch.linspace(-2.0, 4.0, self.n_freqs, device=noise_level.device, dtype=torch.float32)
        angles = math.pi * noise_level.float()[:, None] * octaves.exp2()  # (B, n_freqs)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.proj(waves.to(self.proj.weight.dtype))


class AttentionUNet2DModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin):
    """Denoising U-Net with self- and cross-attention at several scales; the architecture is the list ``levels``.

    It predicts what its objective defines from a noisy image, one continuous noise coordinate and condition tokens.
    It knows nothing of schedulers: `attndiff.diffusion.objectives` scales its input and interprets its output.

    Args:
        sample_size: Side of the training images in pixels; other sizes work where the levels divide them.
        in_channels: Channels of the input, spatially aligned conditions included.
        out_channels: Channels of the prediction.
        patch_size: Pixels per side that the stem folds into channels.
        levels: Dicts with the fields of `Level`, highest resolution first.
        head_dim: Channels per attention head; a multiple of 8.
        embedding_dim: Channels of the noise (and pooled condition) embedding.
        cross_attention_dim: Channels of the condition tokens, or None without any.
        pooled_dim: Channels of the pooled condition, or None without one.
        dropout: Dropout probability inside blocks.
        seamless: Convolutions wrap around the borders, for tileable textures.

    Raises:
        ValueError: If a width does not fit ``head_dim`` or an attention kind is unknown.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ConvBlock", "TransformerBlock"]
    _repeated_blocks = ["ConvBlock", "TransformerBlock"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "head", "embedding", "modulation"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 2,
        levels: list[dict] | None = None,
        head_dim: int = 32,
        embedding_dim: int = 256,
        cross_attention_dim: int | None = None,
        pooled_dim: int | None = None,
        dropout: float = 0.0,
        seamless: bool = False,
    ):
        super().__init__()
        specs = [Level(**level) for level in levels or [{"width": 64}, {"width": 128, "attention": "global"}]]
        self.level_specs = specs
        widths = [spec.width for spec in specs]
        self.stem = Conv3x3(in_channels * patch_size**2, widths[0], seamless=seamless)
        self.noise_embedding = NoiseEmbedding(embedding_dim)
        self.pooled_embedding = nn.Linear(pooled_dim, embedding_dim, bias=False) if pooled_dim else None

        def stage(spec: Level) -> nn.ModuleList:
            return nn.ModuleList(self._block(spec) for _ in range(spec.depth))

        self.down_blocks = nn.ModuleList(stage(spec) for spec in specs[:-1])
        self.downsamplers = nn.ModuleList(Downsample(a, b) for a, b in zip(widths, widths[1:]))
        self.mid_block = stage(specs[-1])
        self.upsamplers = nn.ModuleList(Upsample(b, a) for a, b in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList(stage(spec) for spec in specs[:-1])
        self.norm_out = nn.LayerNorm(widths[0], bias=False)
        self.head = Conv3x3(widths[0], out_channels * patch_size**2, seamless=seamless)
        nn.init.zeros_(self.head.weight)

        # One matmul makes the scales of all blocks.
        self.scale_sizes = [
            block.scales_per_channel * spec.width for spec, blocks in self._stages() for block in blocks
        ]
        self.modulation = nn.Linear(embedding_dim, sum(self.scale_sizes))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.gradient_checkpointing = False

    def _block(self, spec: Level) -> nn.Module:
        config = self.config
        if spec.attention == "none" and not spec.cross_attention:
            return ConvBlock(spec.width, config.dropout, config.seamless)
        context = config.cross_attention_dim if spec.cross_attention else None
        return TransformerBlock(spec.width, config.head_dim, spec.attention != "none", context, config.dropout)

    def _stages(self) -> list[tuple[Level, nn.ModuleList]]:
        """Every run of blocks with its level, in the order of execution."""
        encoder = list(zip(self.level_specs, self.down_blocks))
        decoder = list(zip(self.level_specs, self.up_blocks))
        return [*encoder, (self.level_specs[-1], self.mid_block), *reversed(decoder)]

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this many pixels."""
        return self.config.patch_size * 2 ** (len(self.level_specs) - 1)

    def forward(
        self,
        sample: torch.Tensor | None,
        noise_level: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        pooled_projections: torch.Tensor | None = None,
        condition_cache: list[KeyValue] | None = None,
        return_condition_cache: bool = False,
        return_dict: bool = True,
    ) -> AttentionUNet2DOutput | tuple[torch.Tensor] | list[KeyValue]:
        """Predict from a noisy image.

        Args:
            sample: ``(B, in_channels, H, W)``, about unit variance; H and W multiples of `size_multiple`.
            noise_level: ``(B,)`` or scalar, the noise coordinate ``ln(sigma) / 4``, sigma = noise over signal.
            encoder_hidden_states: Condition tokens ``(B, S, cross_attention_dim)``.
            encoder_attention_mask: ``(B, S)`` bool, true for tokens that count.
            pooled_projections: Pooled condition ``(B, pooled_dim)``.
            condition_cache: What an earlier call with ``return_condition_cache`` gave for these tokens, used instead
                of them: keys and values never depend on the noise level.
            return_condition_cache: Only compute that cache from ``encoder_hidden_states`` and return it. It is a mode
                of ``forward`` because offloading hooks wrap nothing else.
            return_dict: Return `AttentionUNet2DOutput` rather than a tuple.

        Raises:
            ValueError: If the size is not a multiple of `size_multiple`.
        """
        if return_condition_cache:
            return self._condition_cache(encoder_hidden_states)
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"height {height} and width {width} must be multiples of {self.size_multiple} for this network."
            )
        if condition_cache is None and encoder_hidden_states is not None:
            condition_cache = self._condition_cache(encoder_hidden_states)
        mask = None if encoder_attention_mask is None else additive_mask(encoder_attention_mask, sample.dtype)
        scales = self._scales(noise_level, pooled_projections, sample.shape[0])
        keys = iter(condition_cache or [])

        patch = self.config.patch_size
        x = self.stem(space_to_depth(sample.permute(0, 2, 3, 1), patch))
        skips = []
        for spec, blocks, down in zip(self.level_specs, self.down_blocks, self.downsamplers):
            x = self._run(spec, blocks, x, scales, keys, mask)
            skips.append(x)
            x = down(x)
        x = self._run(self.level_specs[-1], self.mid_block, x, scales, keys, mask)
        for spec, blocks, up in reversed(list(zip(self.level_specs, self.up_blocks, self.upsamplers))):
            x = up(x, skips.pop())
            x = self._run(spec, blocks, x, scales, keys, mask)
        x = depth_to_space(self.head(self.norm_out(x)), patch).permute(0, 3, 1, 2)
        return AttentionUNet2DOutput(sample=x) if return_dict else (x,)

    def _condition_cache(self, tokens: torch.Tensor) -> list[KeyValue]:
        """Keys and values of every cross-attention layer, in the order of execution."""
        tokens = tokens.to(self.dtype)
        return [
            block.cross_attn.key_value(tokens)
            for spec, blocks in self._stages()
            if spec.cross_attention and self.config.cross_attention_dim
            for block in blocks
        ]

    def _scales(self, noise_level: torch.Tensor, pooled: torch.Tensor | None, batch: int):
        """Iterator over each block's modulation ``(B, scales_per_channel * width)``, in the order of execution."""
        emb = self.noise_embedding(noise_level.reshape(-1).expand(batch))
        if self.pooled_embedding is not None and pooled is not None:
            emb = emb + self.pooled_embedding(pooled.to(self.pooled_embedding.weight.dtype))
        return iter(self.modulation(F.silu(emb)).split(self.scale_sizes, dim=-1))

    def _run(self, spec: Level, blocks: nn.ModuleList, x, scales, keys, mask) -> torch.Tensor:
        """Apply the blocks of one level to ``x (B, H, W, C)``."""
        if spec.attention == "none" and not spec.cross_attention:
            for block in blocks:
                x = self._call(block, x, next(scales))
            return x
        height, width = x.shape[1:3]
        window = self._window(spec, height, width)
        angles = axial_angles(height, width, self.config.head_dim, x.device)
        for i, block in enumerate(blocks):
            key_value = next(keys, None) if block.cross_attn is not None else None
            x = self._call(block, x, next(scales), angles, window, i % 2 == 1, key_value, mask)
        return x

    def _call(self, block: nn.Module, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _window(self, spec: Level, height: int, width: int) -> tuple[int, int] | None:
        """Attention window of a level at this size, or None for global attention."""
        if spec.attention == "global" and height * width <= spec.max_tokens:
            return None
        if spec.attention == "global" and not torch.compiler.is_compiling():
            logger.warning_once(
                f"A level made for {spec.max_tokens} tokens of global attention got {height * width} and attends in "
                f"windows of {spec.window}; structure across the image may suffer."
            )
        return largest_divisor(height, spec.window), largest_divisor(width, spec.window)


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is no greater than ``at_most``."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)
