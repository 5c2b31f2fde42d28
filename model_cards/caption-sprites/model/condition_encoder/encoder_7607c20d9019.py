"""ConditionEncoder, in one file that needs torch, diffusers and transformers only.

SPDX-License-Identifier: Apache-2.0
"""

import math
import torch
import torch.nn.functional as F
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from diffusers.configuration_utils import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
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


# attndiff.nn.encoder

"""The condition encoder: one Transformer that turns text, a class label or image patches into tokens for the U-Net.

Shapes: B batch, S condition tokens, T text tokens, C hidden channels.
"""





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
