"""AttentionUNet2DModel, in one file that needs torch, diffusers and transformers only.

SPDX-License-Identifier: Apache-2.0
"""

import math
import torch
import torch.nn.functional as F
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
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

"""Positions: axial rotary ones, by which each attention head rotates a part of its channels, and waves over an image.

RoFormer (arXiv 2104.09864, Eq. 34) applied per axis as in HDiT (arXiv 2401.11605, section 4.2).

Shapes: B batch, N kinds of sequence, L tokens, H heads, D channels per head, F rotated pairs.
"""



Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines
WAVES = 8  # of `place_waves`


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
    return angles_at(torch.arange(length, device=device), head_dim)


def angles_at(places: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rotation angles ``(..., head_dim // 4)`` of tokens at places ``(...)`` of a one-dimensional sequence."""
    n_freqs = head_dim // 4
    freqs = 1000.0 ** (-torch.arange(n_freqs, device=places.device, dtype=torch.float32) / n_freqs)
    return places.to(torch.float32).unsqueeze(-1) * freqs


def cos_sin(angles: torch.Tensor) -> Rotation:
    """Cosines and sines of angles ``(N, L, F)``, each ``(N, L, 1, F)``."""
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Rotate the first ``2 F`` channels of every head.

    Args:
        x: Queries or keys ``(B * N, L, H, D)``.
        by: 2 x ``(N, L, 1, F)`` with ``2 F <= D``; every N-th sequence turns alike.
    """
    cos, sin = (part.to(x.dtype) for part in by)
    n = cos.shape[-1]
    x = x.unflatten(0, (-1, cos.shape[0]))  # (B, N, L, H, D)
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).flatten(0, 1)


def place_waves(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Where in an image every place of a grid is, ``(height * width, WAVES)`` float32 in [-1, 1].

    Cosines and sines of half a turn and of one over the rows, and likewise over the columns (arXiv 1706.03762, section
    3.5, with the image for the longest wave): rotary positions tell tokens only how far they are from each other.
    """
    axes = []
    for length in (height, width):
        centre = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
        angles = math.pi * centre[:, None] * torch.tensor([1.0, 2.0], device=device)  # (length, 2)
        axes.append(torch.cat([angles.cos(), angles.sin()], dim=-1))  # (length, 4)
    rows, columns = axes
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)


# attndiff.nn.routing

"""Which sequences of an image attend to which, by what is in them (BiFormer, arXiv 2303.08810, section 3.2).

Shapes: B images, N sequences of an image, L tokens of a sequence, K sequences attended to, H heads, D channels a head.
"""



@torch.no_grad()
def best_sequences(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, sequences: int, routes: int
) -> torch.Tensor:
    """The sequences of its image whose mean key fits each sequence's mean query best (Eq. 3 to 5), heads together.

    Args:
        query: ``(B * N, L, H, D)``.
        key: ``(B * N, L, H, D)``.
        mask: ``(B * N, 1, 1, L)`` additive, -inf for tokens that do not count; or None.
        sequences: N.
        routes: K, at most N.

    Returns:
        ``(B * N * K,)``, their places among all ``B * N``, the best first.
    """
    query, key = (_means(x.flatten(2), mask).unflatten(0, (-1, sequences)) for x in (query, key))  # (B, N, H * D)
    best = (query @ key.transpose(1, 2)).topk(routes, dim=-1).indices  # (B, N, K)
    first = sequences * torch.arange(len(best), device=best.device)
    return (best + first[:, None, None]).flatten()


def _means(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of tokens ``(B * N, L, C)`` those that count, ``(B * N, C)``."""
    if mask is None:
        return x.float().mean(1)
    counts = (mask[:, 0, 0] == 0).float()[..., None]  # (B * N, L, 1)
    return (x.float() * counts).sum(1) / counts.sum(1)


def gather_sequences(x: torch.Tensor, places: torch.Tensor, routes: int, dim: int) -> torch.Tensor:
    """For every sequence the tokens of those at ``places (B * N * K,)``, one after the other along ``dim``.

    ``x`` is ``(B * N, ...)`` with L tokens at ``dim``, and the result has K * L there.
    """
    gathered = x.index_select(0, places).unflatten(0, (-1, routes))  # (B * N, K, ..., L, ...)
    return gathered.movedim(1, dim).flatten(dim, dim + 1)


# attndiff.nn.attention

"""Self- and cross-attention over diffusers' backend dispatcher, with a plain-softmax reference.

Shapes: B batch, L query tokens, S key tokens, H heads, D channels per head, C = H * D.
"""




# Keys and values (B, L, H, D) of new tokens to those of all tokens so far (B, S, H, D).
Remember = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


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
        mask: Boolean ``(B, S)``, or ``(B, L, S)``, true where a key may be attended to.

    Returns:
        ``(B, L, H, D)``.
    """
    weights = attention_weights(query, key, mask)  # (B, H, L, S)
    return torch.einsum("bhls,bshd->blhd", weights.to(value.dtype), value)


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention probabilities ``(B, H, L, S)`` in float32, of the tensors that ``reference_attention`` takes."""
    logits = torch.einsum("blhd,bshd->bhls", query.float(), key.float()) * query.shape[-1] ** -0.5
    if mask is not None:
        mask = mask if mask.ndim == 3 else mask[:, None]
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
    return logits.softmax(dim=-1)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean ``(B, S)`` mask as ``(B, 1, 1, S)`` of 0 and -inf, or ``(B, L, S)`` as ``(B, 1, L, S)``.

    The only form that all of diffusers' backends read alike: its xformers backend takes a 4-D boolean mask for
    additive zeros and ones, and its math backend does not broadcast a 2-D one.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    return align_rows(bias if mask.ndim == 3 else bias[:, None])[:, None]


def causal_mask(counting: torch.Tensor, length: int) -> torch.Tensor:
    """Which tokens each of the last ones may attend to: those before it that count, and itself.

    A token that does not count attends to itself alone, so that no row of a softmax is empty.

    Args:
        counting: ``(B, S)`` bool, false for padding.
        length: L, how many of the last tokens ask.

    Returns:
        ``(B, L, S)`` bool.
    """
    total = counting.shape[1]
    key, query = (
        torch.arange(total, device=counting.device),
        torch.arange(total - length, total, device=counting.device),
    )
    before, own = key < query[:, None], key == query[:, None]  # (L, S)
    return counting[:, None] & before | own


def align_rows(bias: torch.Tensor) -> torch.Tensor:
    """The same values ``(..., S)`` with every row at a multiple of 8 values, as xformers' kernels demand of a mask."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 8))[..., :length]


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """`reference_attention` by two matmuls in the tensors' own precision.

    Args:
        query: ``(B, L, H, D)``.
        key: ``(B, S, H, D)``.
        value: ``(B, S, H, D)``.
        mask: Additive, ``(B, 1, 1, S)`` or ``(B, 1, L, S)``.
        causal: Without a mask, and with S = L: every token attends to itself and those before it.
    """
    logits = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)  # (B, H, L, S)
    if causal:
        mask = logits.new_full(logits.shape[2:], float("-inf")).triu(1)
    if mask is not None:
        logits = logits + mask
    return (logits.softmax(dim=-1) @ value.transpose(1, 2)).transpose(1, 2)


def is_plain_faster(value: torch.Tensor, requested: AttentionBackendName | str | None) -> bool:
    """Whether a call is computed by `plain_attention`: where nobody has set a backend and torch's own would lose.

    On CPU and in half precision, torch's fused kernel spends a multiple of the time of plain matmuls in the backward
    pass of the short sequences seen here (`attndiff bench --attention` prints both), and torch's unfused one converts
    to float32 and, under autocast, back. In float32 the fused kernel is the faster one.
    """
    on_cpu = value.device.type == "cpu" and value.dtype != torch.float32 and torch.is_grad_enabled()
    return (
        on_cpu
        and requested is None
        and _AttentionBackendRegistry.get_active_backend()[0] is AttentionBackendName.NATIVE
    )


def with_shared(
    attn: "Attention", key: torch.Tensor, value: torch.Tensor, tokens: torch.Tensor, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of sequences, each with those of the tokens that all N sequences of an image attend to.

    Args:
        attn: The layer, which projects the tokens once an image.
        key: ``(B * N, L, H, D)``, rotated.
        value: ``(B * N, L, H, D)``.
        tokens: ``(B, M, C)``.
        rotation: Of their keys, 2 x ``(1, M, 1, F)``.

    Returns:
        Keys and values ``(B * N, L + M, H, D)``.
    """
    shared_key, shared_value = attn.key_value(tokens)  # (B, M, H, D)
    times = len(key) // len(tokens)
    pairs = ((key, rotate(shared_key, rotation)), (value, shared_value))
    key, value = (torch.cat([own, of_all.repeat_interleave(times, 0)], dim=1) for own, of_all in pairs)
    return key, value


class AttnDiffAttnProcessor:
    """Computes one attention layer; ``set_attention_backend`` and the xformers switch act on it."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "Attention",
        hidden_states: torch.Tensor,  # (B, L, C)
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,  # 2 x (B, S, H, D)
        attention_mask: torch.Tensor | None = None,  # (B, 1, 1 | L, S) additive
        rotation: Rotation | None = None,  # 2 x (N, L, 1, F), where N divides B
        causal: bool = False,  # without a mask: of self-attention, to itself and what is before it
        remember: Remember | None = None,
        shared: tuple[torch.Tensor, Rotation] | None = None,  # (B / N, M, C) and 2 x (1, M, 1, F)
        temperature: torch.Tensor | None = None,  # (B, 1, H, 1), a factor of the logits
        routing: tuple[int, int] | None = None,  # N, and to how many of these sequences each attends
    ) -> torch.Tensor:
        if attn.is_cross_attention:
            query = attn.query(hidden_states)
            key, value = key_value
        else:
            query, key, value = attn.query_key_value(hidden_states)
            places = None if routing is None else best_sequences(query, key, attention_mask, *routing)
            if rotation is not None:
                query, key = rotate(query, rotation), rotate(key, rotation)
            if remember is not None:
                key, value = remember(key, value)
            if places is not None:
                key, value = (gather_sequences(x, places, routing[1], dim=1) for x in (key, value))
                if attention_mask is not None:
                    attention_mask = align_rows(gather_sequences(attention_mask, places, routing[1], dim=3))
            if shared is not None:
                key, value = with_shared(attn, key, value, *shared)
        if temperature is not None:  # on the queries, so that every backend computes it
            query = query * temperature.to(query.dtype)
        if attention_mask is not None and attention_mask.dtype != query.dtype:
            attention_mask = align_rows(attention_mask.to(query.dtype))
        if is_plain_faster(value, self._attention_backend):
            out = plain_attention(query, key, value, attention_mask, causal)
        else:
            out = dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=attention_mask,
                is_causal=causal,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        if attn.to_gate is not None:
            out = out * (2 * attn.to_gate(hidden_states).sigmoid()).unsqueeze(-1).to(out.dtype)
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
        gated: Multiply what each head gives a token by a factor from 0 to 2 that the token sets; 1 in a fresh layer.
    """

    _default_processor_cls = AttnDiffAttnProcessor
    _available_processors = [AttnDiffAttnProcessor]

    def __init__(
        self,
        dim: int,
        head_dim: int,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
        gated: bool = False,
    ):
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
        self.to_gate = nn.Linear(dim, self.heads) if gated else None
        if gated:
            nn.init.zeros_(self.to_gate.weight)
            nn.init.zeros_(self.to_gate.bias)
        self.norm_q = nn.LayerNorm(head_dim, bias=False)
        self.norm_k = nn.LayerNorm(head_dim, bias=False)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, **kwargs)

    def query(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalised queries ``(B, L, H, D)`` of tokens ``(B, L, C)``."""
        return self.norm_q(self._split(self.to_q(hidden_states)))

    def key_value(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised keys and values, each ``(B, S, H, D)``, of condition tokens ``(B, S, C_context)``.

        Of self-attention they are those of tokens ``(B, S, C)`` that have no queries.
        """
        if self.is_cross_attention and getattr(self, "fused_projections", False):
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


# attndiff.nn.kinds.arrangement

"""How the pixels of an image stand in sequences, each attending to itself: all that a kind of self-attention says.

Shapes: B batch, H rows, W columns, C channels, N sequences of an image, L pixels of a sequence, M tokens that all
sequences of an image attend to beside their own, F rotated pairs.
"""





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


# attndiff.nn.blocks

"""The two kinds of block of the U-Net, and how it changes resolution.

One memory layout throughout: images are ``(B, H, W, C)``, so that tokens, channel norms and linear layers need no
copy, and a convolution sees the same memory as a channels_last ``(B, C, H, W)`` tensor.

Norms are LayerNorm over the channels of a pixel. torch's CPU kernel for it is fused in both directions where
RMSNorm's is not (forward and backward of 64 x 256 x 128 values on 2 cores: 2.3 ms against 20-56 ms in float32,
2.1 against 9.0 in bfloat16).

Shapes: B batch, H rows, W columns, C channels, S condition tokens.
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


# attndiff.nn.kinds.window_attention

"""Attention inside windows, and in every other block on the dilated grids that join them (MaxViT, arXiv 2204.01697).

Shapes: B batch, H rows, W columns, C channels, N windows of an image, L pixels of a window, F rotated pairs.
"""




def window_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """Windows, then dilated grids, of about ``window`` pixels a side; ``max_tokens`` does not matter."""
    return [Windows(height, width, window, dilated) for dilated in (False, True)]


class Windows(Arrangement):
    """Neighbouring pixels, or with ``dilated`` every n-th pixel of the n windows of an axis (MaxViT, Fig. 3).

    Where windows do not divide the image, it is padded at both ends, so that every window is at least half full and no
    dilated grid has more than one row and one column of padding.

    Args:
        height: H.
        width: W.
        at_most: Side of a window, or a little less, by `window_side`.
        dilated: Take pixels as far from each other as there are windows.
    """

    kind = "window"

    def __init__(self, height: int, width: int, at_most: int, dilated: bool):
        self.height, self.width, self.dilated = height, width, dilated
        self.window = rows, cols = window_side(height, at_most), window_side(width, at_most)
        self.counts = down, across = -(-height // rows), -(-width // cols)
        self.sequences, self.length = down * across, rows * cols
        self.padded_size = down * rows, across * cols
        self.top, self.left = (down * rows - height) // 2, (across * cols - width) // 2

    @property
    def is_padded(self) -> bool:
        """Whether windows do not divide the image."""
        return self.padded_size != (self.height, self.width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, C)`` to ``(B * N, L, C)``."""
        if self.is_padded:
            bottom, right = (self.padded_size[0] - self.height - self.top, self.padded_size[1] - self.width - self.left)
            x = F.pad(x, (0, 0, self.left, right, self.top, bottom))
        return split_windows(x, self.window, self.dilated)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """``(B * N, L, C)`` to ``(B, H, W, C)``."""
        x = join_windows(x, self.padded_size, self.window, self.dilated)
        return x[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """``(N, L, F)``, those of the whole image's grid."""
        angles = axial_angles(self.height, self.width, head_dim, device)
        return self.split(angles.unflatten(0, (1, self.height, self.width)))

    def pixels(self, device: torch.device) -> torch.Tensor | None:
        """``(N, L)`` bool, false for padding; None without any."""
        if not self.is_padded:
            return None
        ones = torch.ones(1, self.height, self.width, 1, dtype=torch.uint8, device=device)
        return self.split(ones)[..., 0].bool()


def window_side(side: int, at_most: int) -> int:
    """Side of the windows along ``side`` pixels.

    The largest divisor of ``side`` that is no greater than ``at_most``, if it is at least half of that: no padding.
    Else that of the fewest windows that cover ``side``, as small as they may be, so that little is padded.
    """
    divisor = next(d for d in range(min(side, at_most), 0, -1) if side % d == 0)
    if divisor > 1 and 2 * divisor >= at_most:
        return divisor
    count = -(-side // at_most)
    return -(-side // count)


def split_windows(x: torch.Tensor, window: tuple[int, int], dilated: bool) -> torch.Tensor:
    """``(B, H, W, C)`` to ``(B * windows, rows * columns, C)``; rows and columns divide H and W."""
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


# attndiff.nn.kinds.coarse_window_attention

"""Attention at two scales in one softmax: inside windows, and from every pixel to a coarse grid of the whole image.

Shapes: B batch, H rows, W columns, C channels, M cells of the coarse grid, F rotated pairs.
"""



MOST_CELLS = 8  # a side


def coarse_window_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """Windows, then dilated grids, as `window_arrangements` has them, each with the coarse grid beside it."""
    return [CoarseWindows(height, width, window, dilated) for dilated in (False, True)]


class CoarseWindows(Windows):
    """`Windows` whose pixels attend to the means of all cells of the image too.

    Args:
        height: H.
        width: W.
        at_most: Side of a window, or a little less, by `window_side`.
        dilated: Take pixels as far from each other as there are windows.
    """

    kind = "window_coarse"

    def __init__(self, height: int, width: int, at_most: int, dilated: bool):
        super().__init__(height, width, at_most, dilated)
        self.cell = rows, cols = cell_side(height), cell_side(width)
        self.shared_length = -(-height // rows) * -(-width // cols)

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, C)`` to ``(B, M, C)``, the mean of each cell, row by row; cells at the end may be smaller."""
        cells = F.avg_pool2d(x.permute(0, 3, 1, 2), self.cell, ceil_mode=True, count_include_pad=False)
        return cells.flatten(2).transpose(1, 2)

    def shared_angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """``(1, M, F)``, those of the centres of the cells: angles grow evenly, so that their mean is the centre's."""
        angles = axial_angles(self.height, self.width, head_dim, device)
        return self.shared(angles.unflatten(0, (1, self.height, self.width)))


def cell_side(side: int) -> int:
    """Pixels of a cell along ``side`` pixels: two at least, or the grid would repeat the pixels."""
    return min(side, max(2, -(-side // MOST_CELLS)))


# attndiff.nn.kinds.global_attention

"""Attention of every pixel to every other, as long as there are not too many.

Shapes: B batch, H rows, W columns, C channels, F rotated pairs.
"""



logger = logging.get_logger(__name__)


def global_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """The whole image, or beyond ``max_tokens`` pixels windows of about ``window`` a side, with a warning."""
    if height * width <= max_tokens:
        return [WholeImage(height, width)]
    windows = window_arrangements(height, width, window, max_tokens)
    if not torch.compiler.is_compiling():
        rows, columns = windows[0].window
        logger.warning_once(
            f"A level made for {max_tokens} tokens of global attention got {height * width} and attends in windows of "
            f"{rows} x {columns}; structure across the image may suffer."
        )
    return windows


class WholeImage(Arrangement):
    """All pixels as one sequence, row by row."""

    kind = "global"
    sequences = 1

    def __init__(self, height: int, width: int):
        self.height, self.width, self.length = height, width, height * width

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, C)`` to ``(B, H * W, C)``."""
        return x.flatten(1, 2)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H * W, C)`` to ``(B, H, W, C)``."""
        return x.unflatten(1, (self.height, self.width))

    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """``(1, H * W, F)``."""
        return axial_angles(self.height, self.width, head_dim, device)[None]


# attndiff.nn.kinds.routed_attention

"""Attention of every window to the few whole windows that fit it best (BiFormer, arXiv 2303.08810)."""


ROUTES = 2


def routed_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """Windows of about ``window`` pixels a side, in every block; ``max_tokens`` does not matter."""
    return [RoutedWindows(height, width, window)]


class RoutedWindows(Windows):
    """`Windows` that attend to `ROUTES` windows of their image, which may or may not be they themselves.

    Args:
        height: H, rows of the image.
        width: W, its columns.
        at_most: Side of a window, or a little less, by `window_side`.
    """

    kind = "routed"

    def __init__(self, height: int, width: int, at_most: int):
        super().__init__(height, width, at_most, dilated=False)
        self.routes = min(ROUTES, self.sequences)


# attndiff.nn.level

"""A level of the network, and the kinds of self-attention that it may have."""



# Gives the arrangements that the blocks of a level take in turn, for a height, a width, and a level's ``window`` and
# ``max_tokens``; None where pixels do not attend to each other.
AttentionKind = Callable[[int, int, int, int], list[Arrangement]]
ATTENTION_KINDS: dict[str, AttentionKind | None] = {
    "none": None,
    "window": window_arrangements,
    "window_coarse": coarse_window_arrangements,
    "routed": routed_arrangements,
    "global": global_arrangements,
}
SIDES = ("encoder", "decoder")


@dataclass
class Level:
    """One resolution of the network; ``levels`` is a list of these, highest resolution first.

    Args:
        width: Channels; a multiple of ``head_dim`` where the level attends.
        depth: Blocks on the way down, and as many on the way up; the last level has them once.
        attention: Kind of self-attention, a key of `ATTENTION_KINDS`: ``"none"``; ``"window"``, in windows and in every
            other block in the dilated grids that join them; ``"window_coarse"``, the same with a coarse grid of the
            whole image, 8 x 8 at most, in the same softmax; ``"routed"``, of every window to the two windows that fit
            it best; ``"global"``, of every pixel to every other.
        cross_attention: Whether the pixels attend to the condition tokens. A level with neither kind of attention is
            made of convolution blocks, any other of transformer blocks.
        max_tokens: Pixels up to which ``"global"`` attention is global; larger images attend in windows, with a
            warning.
        window: Side of an attention window in pixels of this level; where it does not divide the image, windows are a
            little smaller, down to half.
        gated: Every pixel sets how much of what each head of self-attention gives it counts, from none to twice.
        noise_temperature: The noise level, and what is pooled of the condition, set how sharply each head of
            self-attention looks.
        attention_side: Which of its blocks have self-attention: those on the way down, ``"encoder"``, on the way up,
            ``"decoder"``, or ``"both"``. The others are as with ``attention`` ``"none"``. The last level has no sides.

    Raises:
        ValueError: If the kind or the side is unknown, the level has no channels, or a setting of self-attention is
            given to a level that has none.
    """

    width: int
    depth: int = 2
    attention: str = "none"
    cross_attention: bool = False
    max_tokens: int = 1024
    window: int = 8
    gated: bool = False
    noise_temperature: bool = False
    attention_side: str = "both"

    def __post_init__(self):
        if self.attention not in ATTENTION_KINDS:
            *names, last = map(repr, ATTENTION_KINDS)
            raise ValueError(f"levels: attention must be {', '.join(names)} or {last}, not {self.attention!r}.")
        if self.width < 1 or self.depth < 0:
            raise ValueError(f"levels: width {self.width} and depth {self.depth} must be positive.")
        if self.attention_side not in ("both", *SIDES):
            raise ValueError(
                f"levels: attention_side must be 'both', 'encoder' or 'decoder', not {self.attention_side!r}."
            )
        if not self.self_attention and (self.gated or self.noise_temperature or self.attention_side != "both"):
            raise ValueError(
                "levels: gated, noise_temperature and attention_side are of self-attention, and attention is "
                f"{self.attention!r}: choose a kind of attention, or leave them out."
            )

    @property
    def self_attention(self) -> bool:
        """Whether pixels attend to each other."""
        return ATTENTION_KINDS[self.attention] is not None

    @property
    def attends(self) -> bool:
        """Whether pixels attend to anything, which makes its blocks transformer blocks."""
        return self.self_attention or self.cross_attention

    def on(self, side: str) -> "Level":
        """What its blocks on one of the `SIDES` are made of."""
        if self.attention_side in ("both", side):
            return self
        return replace(self, attention="none", gated=False, noise_temperature=False, attention_side="both")

    def arrangements(self, height: int, width: int) -> list[Arrangement]:
        """The arrangements that the blocks of a level with self-attention take in turn, at one size in its pixels."""
        return ATTENTION_KINDS[self.attention](height, width, self.window, self.max_tokens)


# attndiff.nn.unet

"""The network: an hourglass of convolution blocks where resolution is high and transformer blocks where it is low.

Shapes: B batch, C channels, H rows, W columns, S condition tokens. Images enter and leave as ``(B, C, H, W)``.
"""




KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass
class AttentionUNet2DOutput(BaseOutput):
    """``sample (B, out_channels, H, W)``: the network's prediction."""

    sample: torch.Tensor


@dataclass
class Stage:
    """A run of blocks at one resolution.

    Args:
        name: Of its list of blocks in the network, such as ``"down_blocks.0"``.
        level: Its level; 0 has the highest resolution.
        spec: What the level is made of on its side of the network.
        blocks: Its blocks.
    """

    name: str
    level: int
    spec: Level
    blocks: nn.ModuleList

    def named_blocks(self) -> list[tuple[str, nn.Module]]:
        """Blocks by the names that they have in the network, such as ``"down_blocks.0.1"``."""
        return [(f"{self.name}.{i}", block) for i, block in enumerate(self.blocks)]


@dataclass
class BlockInputs:
    """What blocks take beside the pixels in one call of the network.

    Args:
        scales: ``(B, scale_size)`` by name of the block.
        keys: Keys and values of the condition, 2 x ``(B, S, heads, head_dim)``, by name of the block.
        mask: Of the condition, ``(B, 1, 1, S)`` additive.
        sequences: By level, what its blocks take in turn; nothing without self-attention.
    """

    scales: dict[str, torch.Tensor]
    keys: dict[str, KeyValue]
    mask: torch.Tensor | None
    sequences: list[list[Sequences]]


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
        ValueError: If a width does not fit ``head_dim``, or a level is none (see `Level`).
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
        if specs[-1].attention_side != "both":
            raise ValueError("levels: the last one is neither encoder nor decoder; leave out its attention_side.")
        self.level_specs = specs
        widths = [spec.width for spec in specs]
        self.stem = Conv3x3(in_channels * patch_size**2, widths[0], seamless=seamless)
        self.noise_embedding = NoiseEmbedding(embedding_dim)
        self.pooled_embedding = nn.Linear(pooled_dim, embedding_dim, bias=False) if pooled_dim else None

        def stage(spec: Level) -> nn.ModuleList:
            return nn.ModuleList(self._block(spec) for _ in range(spec.depth))

        self.down_blocks = nn.ModuleList(stage(spec.on("encoder")) for spec in specs[:-1])
        self.downsamplers = nn.ModuleList(Downsample(a, b) for a, b in zip(widths, widths[1:]))
        self.mid_block = stage(specs[-1])
        self.upsamplers = nn.ModuleList(Upsample(b, a) for a, b in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList(stage(spec.on("decoder")) for spec in specs[:-1])
        self.norm_out = nn.LayerNorm(widths[0], bias=False)
        self.head = Conv3x3(widths[0], out_channels * patch_size**2, seamless=seamless)
        nn.init.zeros_(self.head.weight)

        # One matmul makes the scales of all blocks, in the order of execution.
        self.scale_sizes = {name: block.scale_size for stage in self.stages() for name, block in stage.named_blocks()}
        self.modulation = nn.Linear(embedding_dim, sum(self.scale_sizes.values()))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.gradient_checkpointing = False

    def _block(self, spec: Level) -> nn.Module:
        config = self.config
        if not spec.attends:
            return ConvBlock(spec.width, config.dropout, config.seamless)
        context = config.cross_attention_dim if spec.cross_attention else None
        return TransformerBlock(
            spec.width,
            config.head_dim,
            spec.self_attention,
            context,
            config.dropout,
            spec.gated,
            spec.noise_temperature,
        )

    def stages(self) -> list[Stage]:
        """Every run of blocks, in the order of execution."""
        specs = self.level_specs
        last = len(specs) - 1
        down, up = (
            [Stage(f"{name}.{i}", i, specs[i].on(side), blocks) for i, blocks in enumerate(self.get_submodule(name))]
            for name, side in zip(("down_blocks", "up_blocks"), SIDES)
        )
        return [*down, Stage("mid_block", last, specs[last], self.mid_block), *reversed(up)]

    def cross_attending(self) -> dict[str, int]:
        """Names of the blocks that attend to the condition, and the level of each, in the order of execution."""
        return {
            name: stage.level
            for stage in self.stages()
            if stage.spec.cross_attention and self.config.cross_attention_dim
            for name, _ in stage.named_blocks()
        }

    def grid_size(self, level: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that a level has of an image of ``height`` and ``width``."""
        stride = self.config.patch_size * 2**level
        return height // stride, width // stride

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
            ValueError: If the size is not a multiple of `size_multiple`, or the cache is of another network.
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
        x = self.stem(space_to_depth(sample.permute(0, 2, 3, 1), self.config.patch_size))  # (B, H, W, C)
        inputs = BlockInputs(
            scales=self._scales(noise_level, pooled_projections, sample.shape[0]),
            keys={} if condition_cache is None else self._keys(condition_cache),
            mask=None if encoder_attention_mask is None else additive_mask(encoder_attention_mask, sample.dtype),
            sequences=[self._sequences(level, height, width, x) for level in range(len(self.level_specs))],
        )
        stages, last = self.stages(), len(self.down_blocks)
        skips = []
        for stage, down in zip(stages[:last], self.downsamplers):
            x = self._run(stage, x, inputs)
            skips.append(x)
            x = down(x)
        x = self._run(stages[last], x, inputs)
        for stage in stages[last + 1 :]:
            x = self.upsamplers[stage.level](x, skips.pop())
            x = self._run(stage, x, inputs)
        x = depth_to_space(self.head(self.norm_out(x)), self.config.patch_size).permute(0, 3, 1, 2)
        return AttentionUNet2DOutput(sample=x) if return_dict else (x,)

    def _condition_cache(self, tokens: torch.Tensor) -> list[KeyValue]:
        """Keys and values, 2 x ``(B, S, heads, head_dim)``, of the `cross_attending` blocks."""
        tokens = tokens.to(self.dtype)
        return [self.get_submodule(name).cross_attn.key_value(tokens) for name in self.cross_attending()]

    def _keys(self, cache: list[KeyValue]) -> dict[str, KeyValue]:
        """The same by name of the block."""
        names = self.cross_attending()
        if len(cache) != len(names):
            raise ValueError(
                f"condition_cache has {len(cache)} entries for {len(names)} blocks with cross-attention: pass what "
                "this network gave with return_condition_cache."
            )
        return dict(zip(names, cache))

    def _scales(self, noise_level: torch.Tensor, pooled: torch.Tensor | None, batch: int) -> dict[str, torch.Tensor]:
        """Each block's modulation ``(B, scale_size)`` by its name.

        Args:
            noise_level: ``(B,)``, ``(1,)`` or scalar.
            pooled: ``(B, pooled_dim)`` or None.
            batch: B.
        """
        emb = self.noise_embedding(noise_level.reshape(-1).expand(batch))  # (B, embedding_dim)
        if self.pooled_embedding is not None and pooled is not None:
            emb = emb + self.pooled_embedding(pooled.to(self.pooled_embedding.weight.dtype))
        scales = self.modulation(F.silu(emb)).split(list(self.scale_sizes.values()), dim=-1)
        return dict(zip(self.scale_sizes, scales))

    def _sequences(self, level: int, height: int, width: int, like: torch.Tensor) -> list[Sequences]:
        """What the blocks of a level take in turn at an image's size, for as many images as ``like (B, H, W, C)``."""
        spec = self.level_specs[level]
        if not spec.self_attention or not spec.depth:
            return []
        arrangements = spec.arrangements(*self.grid_size(level, height, width))
        return [make_sequences(arrangement, len(like), self.config.head_dim, like) for arrangement in arrangements]

    def _run(self, stage: Stage, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        """Apply the blocks of a stage to ``x (B, H, W, C)``, H and W of its level."""
        in_turn = inputs.sequences[stage.level] or [None]
        for i, (name, block) in enumerate(stage.named_blocks()):
            attention = (in_turn[i % len(in_turn)], inputs.keys.get(name), inputs.mask) if stage.spec.attends else ()
            x = self._call(block, x, inputs.scales[name], *attention)
        return x

    def _call(self, block: nn.Module, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
