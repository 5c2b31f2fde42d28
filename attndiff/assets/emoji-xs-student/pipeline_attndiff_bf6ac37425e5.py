"""AttnDiffPipeline, in one file that needs torch, diffusers and transformers only.

SPDX-License-Identifier: Apache-2.0
"""

import copy
import glob
import hashlib
import importlib
import inspect
import json
import math
import numpy as np
import os
import re
import sys
import threading
import torch
import torch.nn.functional as F
import unicodedata
from PIL import Image
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from dataclasses import replace
from difflib import get_close_matches
from diffusers import DDIMScheduler
from diffusers import DiffusionPipeline
from diffusers import EDMDPMSolverMultistepScheduler
from diffusers import HeunDiscreteScheduler
from diffusers import SchedulerMixin
from diffusers import UniPCMultistepScheduler
from diffusers.callbacks import MultiPipelineCallbacks
from diffusers.callbacks import PipelineCallback
from diffusers.configuration_utils import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from functools import partial
from huggingface_hub import snapshot_download
from numbers import Integral
from numbers import Real
from pathlib import Path
from threading import Lock
from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase
from typing import ClassVar
from typing import Protocol
from weakref import WeakKeyDictionary


# attndiff.alpha

"""Alpha: colour is straight in files and in calls, and multiplied by alpha where networks and measures see it.

What is multiplied is colour in [-1, 1], so that without ink it is 0, the middle of its range, whatever lay under it. An
error then shows on white as much as on black. Alpha itself is in [-2, 2] there: noise hides it half as much as colour,
and half of an error of it is seen on a ground.

Shapes: C channels, of which alpha is the last, H rows, W columns; colour, and alpha that is straight, in [-1, 1].
"""


ALPHA_PEAK = 2.0  # of alpha inside
GROUNDS = {"white": 1.0, "black": -1.0}
FINEST = 65535  # levels of alpha at most that a file tells apart


def has_alpha(data: dict | None) -> bool:
    """Whether what a pipeline keeps about its data names alpha among the channels."""
    return ((data or {}).get("channels") or [""])[-1] == "A"


def is_premultiplied(data: dict | None) -> bool:
    """Whether it says that colour is multiplied by alpha; that of earlier models with alpha is straight."""
    return (data or {}).get("alpha") == "premultiplied"


def opacity(images: torch.Tensor) -> torch.Tensor:
    """Alpha ``(..., 1, H, W)`` in [0, 1] of premultiplied images ``(..., C, H, W)``."""
    return images[..., -1:, :, :].div(ALPHA_PEAK).add(1).div(2)


def premultiplied(images: torch.Tensor) -> torch.Tensor:
    """Straight images ``(..., C, H, W)`` in [-1, 1] with colour multiplied by alpha, and alpha in [-2, 2]."""
    colour, alpha = images[..., :-1, :, :], images[..., -1:, :, :]
    return torch.cat([colour * (alpha + 1) / 2, alpha * ALPHA_PEAK], dim=-3)


def straight(images: torch.Tensor, levels: int = 255) -> torch.Tensor:
    """Premultiplied images ``(..., C, H, W)`` with colour divided by alpha and clipped, as files and pictures have it.

    Args:
        images: Values beyond their range are clipped.
        levels: Steps of alpha that are told apart; where it is less than half of one, colour is white, as paper is.
    """
    alpha, least = opacity(images).clamp(0, 1), 0.5 / levels
    colour = (images[..., :-1, :, :] / alpha.clamp_min(least)).clamp(-1, 1)
    colour = torch.where(alpha > least, colour, GROUNDS["white"])
    return torch.cat([colour, alpha * 2 - 1], dim=-3)


def levels_of(data: dict) -> int:
    """Steps of alpha that files of the data tell apart."""
    return min(2 ** data.get("bit_depth", 8) - 1, FINEST)


def laid_over(images: torch.Tensor, ground: float) -> torch.Tensor:
    """Premultiplied images ``(..., C, H, W)`` over a ground of one value in [-1, 1]: ``(..., C - 1, H, W)``."""
    return images[..., :-1, :, :] + (1 - opacity(images)) * ground


def clipped(images: torch.Tensor, alpha: bool | None) -> torch.Tensor:
    """Images ``(..., C, H, W)`` within their range, that of premultiplied ones where there is alpha."""
    if not alpha:
        return images.clamp(-1, 1)
    colour, last = images[..., :-1, :, :], images[..., -1:, :, :]
    return torch.cat([colour.clamp(-1, 1), last.clamp(-ALPHA_PEAK, ALPHA_PEAK)], dim=-3)


# attndiff.condition

"""What a network is told beside the noisy image: tokens to attend to, their mean, and channels that lie on the image.

Shapes: B rows, S tokens, C channels of a token, A aligned channels, H and W of the noisy image.
"""




@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of a batch, in the terms of one network; any part may be absent, all of them without a condition.

    Args:
        tokens: ``(B, S, C)``.
        mask: ``(B, S)``, true for tokens that count; all do by default.
        pooled: ``(B, C)``, the mean of the tokens that count.
        aligned: ``(B, A, H, W)`` in about [-1, 1], put beside the noisy image's channels.
    """

    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    aligned: torch.Tensor | None = None

    @classmethod
    def encoded(cls, encoder: nn.Module, **inputs) -> "Condition":
        """What a `ConditionEncoder` makes of its inputs; of ``batch_size`` rows alone, its learned null."""
        output = encoder(**inputs)
        return cls(output.tokens, output.mask, output.pooled)

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def rows(self) -> int | None:
        """B; None where there is no part at all."""
        return next((len(part) for part in self.parts.values()), None)

    @property
    def token_mask(self) -> torch.Tensor:
        """``(B, S)`` bool, true for tokens that count."""
        if self.mask is None:
            return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)
        return self.mask.bool()

    def __getitem__(self, rows: slice) -> "Condition":
        """These rows of it."""
        return Condition(**{name: part[rows] for name, part in self.parts.items()})

    def repeat(self, times: int) -> "Condition":
        """Every row ``times`` times, side by side."""
        if times == 1:
            return self
        return Condition(**{name: part.repeat_interleave(times, dim=0) for name, part in self.parts.items()})

    def join(self, other: "Condition") -> "Condition":
        """These rows and then those of another; masked tokens fill up the shorter texts.

        Raises:
            ValueError: If one has a part that the other lacks.
        """
        if self.parts.keys() - {"mask"} != other.parts.keys() - {"mask"}:
            raise ValueError(f"a condition of {', '.join(self.parts)} cannot be joined to {', '.join(other.parts)}.")
        pairs = {name: [self.parts[name], other.parts[name]] for name in self.parts.keys() - {"mask"}}
        if self.tokens is not None:
            length = max(self.tokens.shape[1], other.tokens.shape[1])
            both = self.padded(length), other.padded(length)
            pairs |= {name: [each.parts[name] for each in both] for name in ("tokens", "mask")}
        return Condition(**{name: torch.cat(pair) for name, pair in pairs.items()})

    def padded(self, length: int) -> "Condition":
        """The same with ``length`` tokens, the new ones masked."""
        more = length - self.tokens.shape[1]
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(self.token_mask, (0, more)))

    def beside(self, x: torch.Tensor) -> torch.Tensor:
        """The network's input ``(B, C + A, H, W)``: noisy images ``x (B, C, H, W)`` and the aligned channels."""
        return x if self.aligned is None else torch.cat([x, self.aligned.to(x.dtype)], dim=1)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """What `AttentionUNet2DModel` is called with besides its input; nothing without tokens."""
        if self.tokens is None:
            return {}
        return {
            "encoder_hidden_states": self.tokens,
            "encoder_attention_mask": self.mask,
            "pooled_projections": self.pooled,
        }


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


# attndiff.diffusion.conditioned

"""A network with the condition that it is told at every step, whose keys and values are computed once.

Shapes: B images, S condition tokens, C channels, H and W of the latents.
"""





class ConditionedNetwork:
    """Calls a network with the first rows of a condition.

    Args:
        network: An `AttentionUNet2DModel`.
    """

    def __init__(self, network: ModelMixin):
        self.network = network
        self.condition = Condition()
        self._cache: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def prepare(self, condition: Condition) -> None:
        """Take a condition; a network without cross-attention takes its aligned channels only."""
        if self.network.config.cross_attention_dim is None:
            condition = Condition(aligned=condition.aligned)
        self.condition, self._cache = condition, None
        if condition.tokens is not None:
            mask = condition.token_mask
            self.condition = replace(condition, mask=mask, pooled=pool_tokens(condition.tokens, mask))
            self._cache = self.network(None, encoder_hidden_states=condition.tokens, return_condition_cache=True)

    def __call__(self, x: torch.Tensor, coordinate: torch.Tensor) -> torch.Tensor:
        """The network's prediction ``(B, C, H, W)`` float32 for scaled noisy images at one noise coordinate.

        Raises:
            ValueError: If the condition has fewer rows than there are images.
        """
        rows = len(x)
        told = self.condition[:rows]
        if told.rows is not None and told.rows < rows:
            raise ValueError(f"prompt_embeds has {told.rows} rows for {rows} images.")
        arguments = told.arguments()
        if self._cache is not None:
            cache = [(key[:rows], value[:rows]) for key, value in self._cache]
            arguments |= {"encoder_hidden_states": None, "condition_cache": cache}
        x = told.beside(x.to(self.network.dtype))
        return self.network(x, coordinate.expand(rows), **arguments).sample.float()


# attndiff.diffusion.paths

"""How an image turns into noise: the paths between the two, each with its own noise level ``s``.

| path                 | noisy image                     | level ``s``       |
|----------------------|---------------------------------|-------------------|
| straight             | ``(1 - s) x0 + s n``            | time in [0, 1]    |
| variance exploding   | ``x0 + s n``                    | noise std         |
| variance preserving  | ``(x0 + s n) / sqrt(1 + s^2)``  | noise over signal |

Shapes: images x0, noise n and noisy images x (B, C, H, W), levels (B,) or scalar.
"""



LOG_RATIO_LIMIT = math.log(1000.0)  # |ln(noise / signal)| that levels are clamped to


def expand(level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``(B,)`` as ``(B, 1, 1, 1)`` in the dtype of ``like``."""
    return level.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class NoisePath(Protocol):
    """What every path knows."""

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        """The level of ``ln(noise / signal)``."""

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        """``ln(noise / signal)`` of a level, float32 and clamped to a finite range."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noisy image at a level."""

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        """A noisy image scaled to about unit variance; ``sigma_data`` is the standard deviation of clean ones."""


class StraightPath:
    """At an even pace from image to noise: rectified flow."""

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(log_ratio)

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        level = level.float()
        return (level.log() - (-level).log1p()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x0)
        return (1 - s) * x0 + s * noise

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        s = expand(level, x)
        return x / ((1 - s) ** 2 * sigma_data**2 + s**2).sqrt()


class NoiseOverSignal:
    """Levels that are the ratio of noise to signal, as on both paths below."""

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        return log_ratio.exp()

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        return level.float().log().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


class VarianceExplodingPath(NoiseOverSignal):
    """Noise added to the image as it is."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x0 + expand(level, x0) * noise

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        return x / (expand(level, x) ** 2 + sigma_data**2).sqrt()


class VariancePreservingPath(NoiseOverSignal):
    """Noise that replaces the image: of images of unit variance, every mixture has it too."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x0)
        return (x0 + s * noise) / (1 + s**2).sqrt()

    def to_unit_variance(self, x: torch.Tensor, level: torch.Tensor, sigma_data: float) -> torch.Tensor:
        return x


# attndiff.diffusion.objectives

"""What the network learns to predict of a noisy image, and at which noise levels it is trained.

An objective is a path from image to noise and a kind of prediction on it. Whatever the objective, the network is
handed one coordinate of noise, ``ln(noise / signal) / 4``.

| name      | path                | network predicts             |
|-----------|---------------------|------------------------------|
| `flow`    | straight            | velocity ``n - x0``          |
| `x0`      | straight            | image ``x0``                 |
| `edm`     | variance exploding  | preconditioned ``F``         |
| `epsilon` | variance preserving | noise ``n``                  |
| `v`       | variance preserving | ``(n - s x0)/sqrt(1 + s^2)`` |

Sources: flow matching arXiv 2210.02747 Eq. 22 and 2403.03206 Eq. 19 (logit-normal times); x0 arXiv 2511.13720,
section 4; EDM arXiv 2206.00364 Table 1; epsilon arXiv 2006.11239 Eq. 14; v arXiv 2202.00512 appendix D; min-SNR arXiv
2303.09556 Eq. 7.

Shapes: x (B, C, H, W), levels (B,).
"""




LEAST_LEVEL = 0.05  # by which an error of the image is divided, as in arXiv 2511.13720


@dataclass
class Objective(ABC):
    """What all objectives share.

    Args:
        sigma_data: Standard deviation of the normalised training images.
        noise_mean: Mean of ``ln(noise / signal)`` over training samples.
        noise_std: Its standard deviation.
        min_snr_gamma: Cap of the signal-to-noise weight (arXiv 2303.09556), or None for the objective's own weight.
    """

    sigma_data: float = 0.5
    noise_mean: float = 0.0
    noise_std: float = 1.4
    min_snr_gamma: float | None = None

    name: ClassVar[str]
    path: ClassVar[NoisePath]

    def to_config(self) -> dict:
        """The objective as JSON, the contract that a pipeline folder stores."""
        return {"name": self.name, **asdict(self)}

    # The path

    def level_from_log_ratio(self, log_ratio: torch.Tensor) -> torch.Tensor:
        """Native level of ``ln(noise / signal)``."""
        return self.path.level_from_log_ratio(log_ratio)

    def log_ratio(self, level: torch.Tensor) -> torch.Tensor:
        """``ln(noise / signal)`` of a native level, float32 and clamped to a finite range."""
        return self.path.log_ratio(level)

    def draw_levels(self, standard_normal: torch.Tensor) -> torch.Tensor:
        """Training levels ``(B,)`` from standard normal numbers ``(B,)``."""
        return self.level_from_log_ratio(self.noise_mean + self.noise_std * standard_normal)

    def coordinate(self, level: torch.Tensor) -> torch.Tensor:
        """The network's noise coordinate of a native level."""
        return self.log_ratio(level) / 4

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noisy image at ``level``."""
        return self.path.add_noise(x0, noise, level)

    def scale_input(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """A noisy image scaled to about unit variance, as the network takes it."""
        return self.path.to_unit_variance(x, level, self.sigma_data)

    # The prediction

    @abstractmethod
    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What the network should predict."""

    @abstractmethod
    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The clean image that a prediction at a noisy image implies."""

    @abstractmethod
    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        """``|d denoised / d prediction|``: turns an error of the prediction into one of the clean image."""

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        """Loss weight ``(B,)`` of the squared error of the prediction."""
        if self.min_snr_gamma is None:
            return torch.ones_like(level, dtype=torch.float32)
        snr = (-2 * self.log_ratio(level)).exp()
        return snr.clamp(max=self.min_snr_gamma) * self._error_scale(level) ** 2


class FlowMatching(Objective):
    """The velocity from image to noise; the default."""

    name = "flow"
    path = StraightPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return noise - x0

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x - expand(level, x) * prediction

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return level.float()


class ImagePrediction(Objective):
    """The image itself, its error weighed as that of the velocity it implies (arXiv 2511.13720).

    For images of which a token of the network holds more values than it has channels: noise has no structure, so that
    a velocity, in which it is contained, does not pass through.
    """

    name = "x0"
    path = StraightPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x0

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return prediction

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(level, dtype=torch.float32)

    def weight(self, level: torch.Tensor) -> torch.Tensor:
        if self.min_snr_gamma is not None:
            return super().weight(level)
        return level.float().clamp(min=LEAST_LEVEL) ** -2


class EDM(Objective):
    """Preconditioned denoising of Karras et al. (arXiv 2206.00364): unit-variance input, target and loss weight."""

    name = "edm"
    path = VarianceExplodingPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = self._skip_out(x0, level)
        return (x0 - c_skip * self.add_noise(x0, noise, level)) / c_out

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = self._skip_out(x, level)
        return c_skip * x + c_out * prediction

    def _skip_out(self, x: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``c_skip`` and ``c_out`` of arXiv 2206.00364, Table 1."""
        s, sd = expand(level, x), self.sigma_data
        return sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        s, sd = level.float(), self.sigma_data
        return s * sd / (s**2 + sd**2).sqrt()


class Epsilon(Objective):
    """The noise itself."""

    name = "epsilon"
    path = VariancePreservingPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return noise

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x)
        return x * (1 + s**2).sqrt() - s * prediction

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        return level.float()


class VPrediction(Objective):
    """Salimans and Ho's velocity."""

    name = "v"
    path = VariancePreservingPath()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x0)
        return (noise - s * x0) / (1 + s**2).sqrt()

    def denoised(self, x: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        s = expand(level, x)
        return (x - s * prediction) / (1 + s**2).sqrt()

    def _error_scale(self, level: torch.Tensor) -> torch.Tensor:
        s = level.float()
        return s / (1 + s**2).sqrt()


OBJECTIVES = {cls.name: cls for cls in (FlowMatching, ImagePrediction, EDM, Epsilon, VPrediction)}


def make_objective(config: dict) -> Objective:
    """The objective of a stored config ``{"name": ..., ...}``.

    Raises:
        ValueError: If the name is none of `OBJECTIVES`, or a setting is unknown.
    """
    settings = dict(config)
    name = settings.pop("name", "flow")
    if name not in OBJECTIVES:
        raise ValueError(f"objective {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}.")
    try:
        return OBJECTIVES[name](**settings)
    except TypeError as error:
        raise ValueError(f"objective {name!r}: {error}") from None


# attndiff.diffusion.guidance

"""The network's prediction, led away from another: classifier-free guidance and autoguidance.

Shapes: B images, C channels, H and W of the latents.
"""



EVERYWHERE = (0.0, 1.0)


class GuidedNetwork:
    """Predicts with classifier-free guidance (arXiv 2207.12598, Eq. 6) or autoguidance (arXiv 2406.02507, Eq. 3).

    Args:
        unet: The network.
        objective: What it predicts.
        guide: A worse version of it, to lead away from instead of from another condition; or None.
        interval: Noise levels at which to lead, as noise / (noise + signal).

    Attributes:
        scale: Guidance scale; 1 is none. It may change between calls.
    """

    def __init__(
        self,
        unet: ModelMixin,
        objective: Objective,
        guide: ModelMixin | None = None,
        interval: tuple[float, float] = EVERYWHERE,
    ):
        self.objective, self.interval, self.scale = objective, tuple(interval), 1.0
        self.main = ConditionedNetwork(unet)
        self.guide = None if guide is None else ConditionedNetwork(guide)
        self._given: list[torch.Tensor] = []
        self._guide_told = False

    def prepare(
        self,
        condition: Condition,
        negative: Condition | None = None,
        of_guide: Condition | None = None,
    ) -> None:
        """Take conditions of B rows each; the same tensors again cost nothing.

        Args:
            condition: What the network is told.
            negative: What it is told to lead away from.
            of_guide: What the guide is told, in its own terms; it is not asked without.

        Raises:
            ValueError: If the first two have different numbers of rows.
        """
        self._guide_told = self.guide is not None and of_guide is not None
        given = [part for each in (condition, negative, of_guide) if each is not None for part in each.parts.values()]
        if self._given and len(given) == len(self._given) and all(a is b for a, b in zip(given, self._given)):
            return
        self._given = given
        if negative is not None and negative.rows != condition.rows:
            raise ValueError(
                f"prompt_embeds has {condition.rows} rows, but negative_prompt_embeds has {negative.rows}."
            )
        self.main.prepare(condition if negative is None else condition.join(negative))
        if self._guide_told:
            self.guide.prepare(of_guide)

    def __call__(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The prediction ``(B, C, H, W)`` float32 for noisy images of the objective at one native level, a scalar."""
        scale = self._scale_at(level)
        x, coordinate = self.objective.scale_input(x, level), self.objective.coordinate(level)
        can_lead = self._guide_told or self.main.condition.rows == 2 * len(x)
        if scale == 1 or not can_lead:
            return self.main(x, coordinate)
        if self._guide_told:
            good, plain = self.main(x, coordinate), self.guide(x, coordinate)
        else:
            good, plain = self.main(torch.cat([x, x]), coordinate).chunk(2)
        return plain + scale * (good - plain)

    def _scale_at(self, level: torch.Tensor) -> float:
        """The guidance scale at a noise level; 1 where there is none."""
        if self.scale <= 1:
            return 1.0
        if self.interval != EVERYWHERE:  # looking at a level waits for the device
            noise_share = self.objective.log_ratio(level).sigmoid().item()
            if not self.interval[0] <= noise_share <= self.interval[1]:
                return 1.0
        return self.scale


# attndiff.diffusion.compatibility

"""Which stock schedulers of diffusers sample an objective, with which config, and which does it best.

They are told apart by config, since one class samples several objectives.
"""




LINEAR_BETAS = {  # arXiv 2006.11239, section 4: the noise ends at 157 times the signal
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
UNCLIPPED = {"clip_sample": False, "thresholding": False}
UNBENT = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
}
MULTISTEP = {"final_sigmas_type": "zero", "lower_order_final": True, **UNCLIPPED}
FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, **MULTISTEP, **UNBENT}
IMAGE_SOLVER = {**FLOW_SOLVER, "prediction_type": "sample"}
EDM_SOLVER = {"prediction_type": "epsilon", "sigma_schedule": "karras", **MULTISTEP}
BETA_SOLVER = {"use_flow_sigmas": False, "use_dynamic_shifting": False, **MULTISTEP, **LINEAR_BETAS}
FINITE = {"solver_type": "bh2"}  # UniPC's bh1 divides infinity by infinity in the step to zero noise
TRAILING = {"timestep_spacing": "trailing"}  # begins at pure noise; Heun's linspace ends its steps below 0.01

BETA_SCHEDULERS = {
    "DDIMScheduler": {**UNCLIPPED, **LINEAR_BETAS, **TRAILING, "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": BETA_SOLVER,
    "UniPCMultistepScheduler": {**BETA_SOLVER, **FINITE},
    "HeunDiscreteScheduler": {**UNCLIPPED, **LINEAR_BETAS, **TRAILING},
}
REQUIRED_CONFIG = {  # objective -> scheduler class -> config entries; entries that a class lacks count as fitting
    "flow": {
        "FlowMatchEulerDiscreteScheduler": UNBENT,
        "FlowMatchHeunDiscreteScheduler": {},
        "UniPCMultistepScheduler": {**FLOW_SOLVER, **FINITE},
        "DPMSolverMultistepScheduler": FLOW_SOLVER,
    },
    "x0": {
        "UniPCMultistepScheduler": {**IMAGE_SOLVER, **FINITE},
        "DPMSolverMultistepScheduler": IMAGE_SOLVER,
    },
    "edm": {"EDMEulerScheduler": EDM_SOLVER, "EDMDPMSolverMultistepScheduler": EDM_SOLVER},
    "epsilon": {name: {"prediction_type": "epsilon", **needs} for name, needs in BETA_SCHEDULERS.items()},
    "v": {name: {"prediction_type": "v_prediction", **needs} for name, needs in BETA_SCHEDULERS.items()},
}


def check_scheduler(scheduler: SchedulerMixin, objective: Objective) -> None:
    """Refuse a scheduler that would sample the objective wrongly.

    Raises:
        ValueError: If the class does not sample this objective, or a config entry does not fit; names the entry, its
            value and the value needed.
    """
    kind = type(scheduler).__name__
    fitting = REQUIRED_CONFIG[objective.name]
    if kind not in fitting:
        raise ValueError(
            f"scheduler: {kind} does not sample the objective {objective.name!r}; use one of {', '.join(fitting)}."
        )
    needs = dict(fitting[kind])
    if objective.name == "edm":
        needs["sigma_data"] = objective.sigma_data
    elif scheduler.config.get("timestep_spacing") == "leading":
        needs["timestep_spacing"] = "trailing"  # leading steps begin below the noise that sampling begins with
    for entry, needed in needs.items():
        value = scheduler.config.get(entry, needed)
        if value != needed and not (isinstance(needed, float) and math.isclose(value, needed, rel_tol=1e-6)):
            raise ValueError(
                f"scheduler: {kind} has {entry}={value!r} but the objective {objective.name!r} needs {needed!r}; make "
                f"it with {kind}.from_config(scheduler.config, {entry}={needed!r})."
            )


def default_scheduler(objective: Objective) -> SchedulerMixin:
    """The stock scheduler that samples an objective most accurately in 12 to 20 calls of the network.

    Largest error of the standard deviation of samples of Gaussian pixels (standard deviations 0.05, 0.3, 0.8) from
    their exact denoiser, after 12, 16 and 20 calls (Heun: 11, 15, 19):

    | flow                      | 12    | 16    | 20    |
    |---------------------------|-------|-------|-------|
    | FlowMatchEuler            | 0.083 | 0.063 | 0.051 |
    | FlowMatchHeun, shift 0.5  | 0.027 | 0.020 | 0.015 |
    | DPM-Solver++              | 0.026 | 0.021 | 0.016 |
    | DPM-Solver++, shift 0.5   | 0.014 | 0.009 | 0.006 |
    | UniPC                     | 0.026 | 0.021 | 0.016 |
    | UniPC, shift 0.5          | 0.014 | 0.009 | 0.006 |

    On mixtures of narrow modes, where the denoiser is far from linear, UniPC with shift 0.5 is the best of these too:
    a root mean square distance to the exact quantiles of 0.014 after 12 calls where DPM-Solver++ has 0.046 and UniPC
    without a shift 0.029 (modes -0.9, 0.1, 0.95 of widths 0.02, 0.2, 0.03).

    EDM: EDMDPMSolver 0.073, 0.047, 0.030 and EDMEuler 0.159, 0.122, 0.100. Epsilon and v: UniPC on Karras levels 0.103,
    0.053, 0.027, DPM-Solver++ on them 0.089, 0.058, 0.037, DDIM 0.124 (13 calls), 0.093 (17), 0.080.

    Returns:
        A new scheduler that `check_scheduler` accepts.
    """
    if objective.name == "edm":
        return EDMDPMSolverMultistepScheduler(sigma_data=objective.sigma_data)
    if objective.name in ("flow", "x0"):
        kind = REQUIRED_CONFIG[objective.name]["UniPCMultistepScheduler"]["prediction_type"]
        return UniPCMultistepScheduler(prediction_type=kind, use_flow_sigmas=True, flow_shift=0.5)
    prediction = "epsilon" if objective.name == "epsilon" else "v_prediction"
    return UniPCMultistepScheduler(prediction_type=prediction, use_karras_sigmas=True, timestep_spacing="trailing")


# attndiff.diffusion.solver

"""A stock scheduler of diffusers as the solver of an objective: all that is asked of one stands here.

The network is handed the noise level of a step and never the scheduler's own time, which is anything from 0 to 1000
(truncated to integers by some schedulers), ``ln(sigma) / 4`` or ``250 ln(sigma)``.

Shapes: B batch, C channels, H rows, W columns.
"""





class Solver:
    """Leads the state of a scheduler from noise to an image, by an objective's predictions.

    Args:
        scheduler: A stock one; it is copied, because it keeps state.
        objective: What the network predicts.

    Raises:
        ValueError: If the scheduler would sample the objective wrongly.
    """

    def __init__(self, scheduler: SchedulerMixin, objective: Objective):
        check_scheduler(scheduler, objective)
        self.scheduler, self.objective = copy.deepcopy(scheduler), objective
        self._is_straight = isinstance(objective.path, StraightPath)
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """Prepare for sampling from pure noise, around the known faults of the stock schedules.

        Flow levels are ``1, 1 - 1/n, ..., 1/n`` before the config's shift (the stock ones of the Euler and Heun
        schedulers waste their last step below 0.001, those of DPM-Solver++ begin at 0.999), and EDM's are the ramp of
        arXiv 2206.00364, Eq. 5, at ``i / n`` rather than ``i / (n - 1)``, which wastes a step below 0.002. DDIM steps
        by a whole stride of its 1000 times, or its steps would not join: it takes up to a few steps more than asked
        for.

        Args:
            num_inference_steps: Steps, at least 1; schedulers of order 2 call the network ``2 n - 1`` times.
            device: Where the timesteps are put.
            sigmas: Native levels of the objective to use as they are, falling, without the final 0; they replace
                ``num_inference_steps``. Those of EDM begin at the scheduler's ``sigma_max``.

        Raises:
            ValueError: If the number of steps is not positive, or ``sigmas`` do not fall or leave the scheduler's
                range.
        """
        scheduler = self.scheduler
        if sigmas is not None:
            self._check_sigmas(sigmas)
            num_inference_steps = len(sigmas)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}.")
        scheduler.set_timesteps(num_inference_steps, device=device)
        if isinstance(scheduler, DDIMScheduler):
            last = scheduler.config.num_train_timesteps - 1
            scheduler.timesteps = torch.arange(last, -1, -((last + 1) // num_inference_steps), device=device)
            return
        levels = sigmas
        if sigmas is None and (self._is_straight or self.objective.name == "edm"):
            levels = self._default_levels(num_inference_steps)
        if levels is not None:
            self._set_levels(torch.as_tensor(np.array(levels), dtype=torch.float32), device)
        scheduler.set_begin_index(0)  # looking the index up by timestep fails where timesteps repeat

    def begin_under(self, share: float, sigmas: list[float] | None = None) -> None:
        """Begin under less than pure noise, with as many steps as are set; to be called after `set_timesteps`.

        The first level is the one that was asked for, so that every share gives another image, but for DDIM, whose
        thousand levels have the nearest one.

        Args:
            share: Noise as a part of noise and signal, in (0, 1].
            sigmas: The levels that are set, where a student has some of its own: they are shrunk alike.
        """
        scheduler, highest, last = self.scheduler, self.level(0), self.level(len(self.timesteps) - 1)
        level = highest.cpu()
        if share < 1:
            asked = self.objective.level_from_log_ratio(torch.tensor(share / (1 - share)).log())
            level = torch.minimum(asked, level)
        if isinstance(scheduler, DDIMScheduler):
            levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
            first = int((levels.log() - level.log()).abs().argmin())
            stride = max(1, (first + 1) // len(self.timesteps))
            scheduler.num_inference_steps = scheduler.config.num_train_timesteps // stride
            stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps  # by which it steps
            scheduler.timesteps = torch.arange(first, -1, -stride, device=highest.device)
            return
        steps = len(scheduler.sigmas.unique()) - 1  # those of order 2 have each level but the first twice
        levels = (
            self._levels_from(float(level), float(last), steps) if sigmas is None else float(level) * np.array(sigmas)
        )
        self._set_levels(torch.as_tensor(levels, dtype=torch.float32), highest.device)
        scheduler.set_begin_index(0)

    def noisy_state(self, image: torch.Tensor, noise: torch.Tensor, index: int = 0) -> torch.Tensor:
        """The scheduler's state ``(B, C, H, W)`` before a step, of an image under standard normal noise.

        After the last step that is the image itself.
        """
        if index == len(self.timesteps):
            return image
        level = self.level(index)
        noisy = self.objective.add_noise(image, noise, level.expand(len(image)))
        if isinstance(self.scheduler, HeunDiscreteScheduler):  # its state is not scaled to unit variance
            return noisy * (1 + level**2).sqrt()
        return noisy

    @property
    def timesteps(self) -> torch.Tensor:
        """The scheduler's own time of every call of the network."""
        return self.scheduler.timesteps

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow schedulers have none

    def level(self, index: int) -> torch.Tensor:
        """Native level of a call of the network, a float32 scalar on the timesteps' device."""
        timestep = self.timesteps[index]
        if isinstance(self.scheduler, DDIMScheduler):
            signal = self.scheduler.alphas_cumprod[int(timestep)]
            return ((1 - signal) / signal).sqrt().to(timestep.device, torch.float32)
        return self.scheduler.sigmas[index].to(timestep.device, torch.float32)

    def noisy_image(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The scheduler's state ``(B, C, H, W)`` as the noisy image of the objective's own convention.

        To be called once before every `step`, because some schedulers note the call.
        """
        if self._is_straight:
            return latents
        scaled = self.scheduler.scale_model_input(latents, self.timesteps[index])
        # EDM schedulers precondition by themselves, as the objective does; the others reach its variance-preserving
        # form.
        return latents if self.objective.name == "edm" else scaled

    def step(
        self,
        prediction: torch.Tensor,
        index: int,
        latents: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """The state ``(B, C, H, W)`` after a step by the network's prediction, in the precision of ``latents``.

        `check_scheduler` lets only schedulers through that read predictions as the objective means them.
        """
        settings = {"generator": generator} if self._takes_generator else {}
        output = prediction.to(latents.dtype)  # several schedulers return their state in the dtype of the prediction
        return self.scheduler.step(output, self.timesteps[index], latents, return_dict=False, **settings)[0]

    # Noise levels

    def _default_levels(self, steps: int) -> np.ndarray:
        """Levels ``(steps,)`` of an even schedule whose last step is as long as the others, in its own terms."""
        config = self.scheduler.config
        ends = (config.sigma_max, config.sigma_min) if self.objective.name == "edm" else (1.0, 0.0)
        return self._levels_from(*ends, steps)

    def _levels_from(self, first: float, last: float, steps: int) -> np.ndarray:
        """Levels ``(steps,)`` that fall from one on, spaced as those from noise alone are."""
        ramp, config = np.arange(steps) / steps, self.scheduler.config
        if self._is_straight:
            shift = config.get("shift", config.get("flow_shift", 1.0))
            even = first / (shift - (shift - 1) * first) * (1 - ramp)
            return shift * even / (1 + (shift - 1) * even)
        rho = config.get("rho", 7.0)  # arXiv 2206.00364, Eq. 5
        high, low = first ** (1 / rho), (last if last < first else first / 2) ** (1 / rho)
        return (high + ramp * (low - high)) ** rho

    def _set_levels(self, levels: torch.Tensor, device: torch.device | str | None) -> None:
        """Replace the scheduler's levels by ``levels (n,)`` and a final 0."""
        scheduler = self.scheduler
        if self._is_straight:
            levels = levels.clamp(max=1 - 1e-6)  # multistep solvers take the logarithm of the signal
            timesteps = levels * scheduler.config.num_train_timesteps
        else:
            timesteps = levels.log() / 4
        if scheduler.order == 2:  # a second call at every level but the first
            levels = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
            timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        scheduler.sigmas = torch.cat([levels, torch.zeros(1)])
        scheduler.timesteps = timesteps.to(device)

    def _check_sigmas(self, sigmas: list[float]) -> None:
        """Raise ValueError unless ``sigmas`` can be the levels of this scheduler."""
        if isinstance(self.scheduler, DDIMScheduler):
            raise ValueError("sigmas: DDIMScheduler takes none; give num_inference_steps or use another scheduler.")
        try:
            values = np.asarray(sigmas, dtype=float)
        except (TypeError, ValueError):
            values = np.empty(0)
        sigma_max = self.scheduler.config.get("sigma_max")
        highest = 1.0 if self._is_straight else {"edm": sigma_max}.get(self.objective.name, math.inf)
        falling = values.ndim == 1 and len(values) > 0 and bool((np.diff(values) < 0).all())
        if not falling or not 0 < values[-1] <= values[0] <= highest:
            raise ValueError(
                f"sigmas must be a falling list of numbers above 0 and at most {highest:g}, without the final 0."
            )
        if self.objective.name == "edm" and not math.isclose(values[0], highest):
            raise ValueError(
                f"sigmas must begin at {highest:g}, the scheduler's sigma_max, which scales the first noise."
            )


# attndiff.diffusion.sampler

"""From noise to an image, step by step, for any network and any solver."""




# A noisy image ``(B, C, H, W)`` and its level to the objective's prediction, of the image's shape.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class SamplingStep:
    """What a step has led to.

    Args:
        index: Number of the step, from 0.
        timestep: The scheduler's own time of it.
        latents: ``(B, C, H, W)``; whoever goes through the steps may put others in their place.
    """

    index: int
    timestep: torch.Tensor
    latents: torch.Tensor


def sampling_steps(
    predict: Predict,
    solver: Solver,
    latents: torch.Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Iterator[SamplingStep]:
    """Take the solver's steps, one an item; the latents of the last are the sample.

    To leave out the steps that remain, stop going through them.

    Args:
        predict: The network.
        solver: With its timesteps set.
        latents: ``(B, C, H, W)`` noise, at the solver's ``noise_scale``.
        generator: Source of the noise that some schedulers add at every step; a list of one for each image.
    """
    for index, timestep in enumerate(solver.timesteps):
        prediction = predict(solver.noisy_image(latents, index), solver.level(index))
        step = SamplingStep(index, timestep, solver.step(prediction, index, latents, generator))
        yield step
        latents = step.latents


# attndiff.diffusion.student

"""How a few-step student is sampled."""




@dataclass(frozen=True)
class StudentRules:
    """What a pipeline stores of a few-step student.

    Args:
        sigmas: Its noise levels by the number of steps, such as ``{"1": [1.0], "2": [1.0, 0.6]}``.
        guidance_scale: The guidance that its own prediction includes.
    """

    sigmas: dict[str, list[float]]
    guidance_scale: float

    @property
    def most_steps(self) -> int:
        """The most steps that it was made for."""
        return max(int(steps) for steps in self.sigmas)

    def levels(self, steps: int) -> list[float] | None:
        """The noise levels of a number of steps, if it was made for that."""
        return self.sigmas.get(str(steps))

    def check(self, scheduler: SchedulerMixin, guidance_scale: float) -> None:
        """Refuse what it cannot be sampled with.

        Args:
            scheduler: One that `check_scheduler` accepts.
            guidance_scale: Of the call.

        Raises:
            ValueError: If the scheduler would follow its prediction as a velocity, or guidance would be applied twice.
        """
        if not scheduler.config.get("stochastic_sampling"):
            raise ValueError(
                "scheduler: this model is a few-step student, whose every call leads to a clean image; sample it with "
                "FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)."
            )
        if guidance_scale > 1 and self.guidance_scale > 1:
            raise ValueError(
                f"guidance_scale {guidance_scale:g}: this few-step student has a guidance of "
                f"{self.guidance_scale:g} built in; leave guidance_scale out, or give 1."
            )


# attndiff.lens.record

"""Looking inside: which condition token each pixel attended to.

Queries are computed again from the input of the recorded layers only, beside the network's own computation, so that
the fast attention kernels stay on and the pixels do not change.

Shapes: B images, S condition tokens, H and W of the image, h and w of the level that a layer works at.
"""





@dataclass
class AttentionMaps:
    """Cross-attention probabilities, averaged over heads and over the recorded steps.

    Over the tokens that count, the weights of a pixel sum to one; a masked token has zero everywhere.

    Args:
        per_layer: ``(B, S, h, w)`` float32 in [0, 1] by layer, such as ``"mid_block.0"``, in the order of execution.
        levels: The level of each of those layers; 0 has the highest resolution.
        mask: ``(B, S)`` bool, true for tokens that count.
        size: ``(H, W)`` of the image in the network's pixels.
        steps: The same of every single step, where these were kept.
    """

    per_layer: dict[str, torch.Tensor]
    levels: dict[str, int]
    mask: torch.Tensor
    size: tuple[int, int]
    steps: list["AttentionMaps"] = field(default_factory=list)

    @property
    def per_scale(self) -> dict[int, torch.Tensor]:
        """``(B, S, h, w)`` by level, averaged over the layers of that level, highest resolution first."""
        scales = {}
        for level in sorted(set(self.levels.values())):
            layers = [maps for name, maps in self.per_layer.items() if self.levels[name] == level]
            scales[level] = torch.stack(layers).mean(0)
        return scales

    def averaged(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """``(B, S, H, W)``: every scale enlarged bilinearly to ``size`` (the image's by default), then their mean."""
        scales = [
            F.interpolate(maps, size=size or self.size, mode="bilinear", align_corners=False)
            for maps in self.per_scale.values()
        ]
        return torch.stack(scales).mean(0)

    def of_token(self, index: int, size: tuple[int, int] | None = None) -> torch.Tensor:
        """``(B, H, W)`` averaged weights of token ``index``."""
        return self.averaged(size)[:, index]


class AttentionRecorder:
    """Records the cross-attention maps of a network while it is called inside the ``with`` block.

    Classifier-free guidance calls the network for the unconditional prediction too. Where one batch holds both, set
    ``rows`` to the conditional ones, a slice; where they are calls of their own, set ``enabled`` to False around the
    unconditional ones. Both may be changed between calls.

        with AttentionRecorder(unet, rows=slice(0, 4)) as recorder:
            ...  # sample
        heat = recorder.maps().averaged()

    Args:
        unet: An `AttentionUNet2DModel` with cross-attention.
        layers: Names of the layers to record, out of the network's `cross_attending`; None records all.
        levels: Levels to record, 0 being the one of the highest resolution; None records all.
        steps: Numbers of the calls to record, counted from 0 while ``enabled``; None records all.
        rows: Rows of the batch to record; None records all.
        keep_steps: Keep the maps of every step besides their mean.

    Raises:
        ValueError: If the network has no such layer, or no cross-attention at all.
    """

    def __init__(
        self,
        unet: nn.Module,
        layers: Collection[str] | None = None,
        levels: Collection[int] | None = None,
        steps: Collection[int] | None = None,
        rows: slice | None = None,
        keep_steps: bool = False,
    ):
        self.unet, self.steps, self.rows, self.keep_steps = unet, steps, rows, keep_steps
        self.enabled = True
        self.step = -1
        names = unet.cross_attending()
        if not names:
            raise ValueError("attention maps need a network with cross-attention; this one has none to record.")
        unknown = [str(x) for x in layers or [] if x not in names] + [
            str(x) for x in levels or [] if x not in names.values()
        ]
        if unknown:
            have = ", ".join(f"{name} (level {level})" for name, level in names.items())
            raise ValueError(f"no cross-attention at {', '.join(unknown)}; this network has it at {have}.")
        self.levels = {
            name: level
            for name, level in names.items()
            if (layers is None or name in layers) and (levels is None or level in levels)
        }
        self._size: tuple[int, int] | None = None  # of the image
        self._mask: torch.Tensor | None = None
        self._call: dict[str, torch.Tensor] | None = None  # maps of the call under way, if it is recorded
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._kept: list[dict[str, torch.Tensor]] = []
        self._handles = []

    def __enter__(self) -> "AttentionRecorder":
        self._handles = [
            self.unet.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.unet.register_forward_hook(self._end),
        ]
        for name in self.levels:
            attn = self.unet.get_submodule(f"{name}.cross_attn")
            self._handles.append(attn.register_forward_hook(partial(self._record, name), with_kwargs=True))
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()

    def maps(self) -> AttentionMaps:
        """What was recorded so far.

        Raises:
            ValueError: If nothing was.
        """
        if not self._sums:
            raise ValueError(
                "no attention was recorded: call the network with a condition inside the `with` block, and a compiled "
                'one under torch.compiler.set_stance("force_eager"), because compiled code leaves the recorder out.'
            )
        mean = {name: self._sums[name] / self._count for name in self.levels}
        return self._result(mean, [self._result(kept, []) for kept in self._kept])

    def _result(self, per_layer: dict[str, torch.Tensor], steps: list[AttentionMaps]) -> AttentionMaps:
        return AttentionMaps(per_layer, dict(self.levels), self._mask, self._size, steps)

    def _begin(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a call of the network: learn the image's size, and whether this call is recorded."""
        sample = args[0] if args else kwargs.get("sample")
        self._call = None
        if not self.enabled or sample is None:  # without a sample, only keys and values are computed
            return
        self.step += 1
        if self.steps is None or self.step in self.steps:
            self._call, self._size = {}, tuple(sample.shape[-2:])

    @torch.no_grad()
    def _record(self, name: str, attn: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        """After a cross-attention layer: compute its probabilities."""
        if self._call is None:
            return
        rows = slice(None) if self.rows is None else self.rows
        hidden, key = args[0][rows], kwargs["key_value"][0][rows]  # (B, h * w, C), (B, S, heads, head_dim)
        mask = kwargs.get("attention_mask")  # (B, 1, 1, S) additive
        mask = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device) if mask is None else mask[rows, 0, 0] == 0
        weights = attention_weights(attn.query(hidden), key, mask).mean(1).transpose(1, 2)  # (B, S, h * w)
        grid = self.unet.grid_size(self.levels[name], *self._size)
        self._call[name] = weights.unflatten(-1, grid).contiguous()
        self._mask = mask

    def _end(self, unet: nn.Module, args: tuple, output) -> None:
        """After a call: add it up. What gradient checkpointing computes again on the way back is not recorded."""
        call, self._call = self._call, None
        if not call:
            return
        for name, maps in call.items():
            total = self._sums.get(name)
            if total is not None and total.shape != maps.shape:
                raise ValueError(
                    f"recorded calls must agree in shape, but {tuple(total.shape)} was followed by "
                    f"{tuple(maps.shape)}: set `rows` to the conditional rows of every call."
                )
            self._sums[name] = maps if total is None else total + maps
        self._count += 1
        if self.keep_steps:
            self._kept.append(call)


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


# attndiff.pipelines.call.checks

"""What a pipeline call is refused for, each in one sentence that names the argument and says what works."""




def check_numbers(
    num_inference_steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    num_images_per_prompt: int,
) -> None:
    """Raise ValueError unless steps and counts are positive, the guidance finite and its interval within [0, 1]."""
    for name, value in {
        "num_inference_steps": num_inference_steps,
        "num_images_per_prompt": num_images_per_prompt,
    }.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
    check_guidance(guidance_scale)
    interval = tuple(guidance_interval) if isinstance(guidance_interval, Sequence) else ()
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            "guidance_interval must be two rising numbers within [0, 1], where 0 is no noise and 1 is noise alone, "
            f"not {guidance_interval!r}."
        )


def check_guidance(guidance_scale: float) -> None:
    """Raise ValueError unless a guidance scale is a finite number."""
    if not isinstance(guidance_scale, Real) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number such as 3.0, not {guidance_scale!r}.")


def check_strength(strength: float) -> None:
    """Raise ValueError unless it is a share of noise that leaves something to draw."""
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise ValueError(
            f"strength must be above 0, which would leave the image as it is, and at most 1, not {strength!r}."
        )


def check_choice(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError unless all of ``given`` are known."""
    unknown = [repr(value) for value in given if value not in known]
    if unknown:
        raise ValueError(f"{name} can be {', '.join(known)}; there is no {', '.join(unknown)}.")


def check_size(height: int, width: int, multiple: int) -> None:
    """Raise ValueError unless both sides are positive multiples of ``multiple``."""
    wrong = [
        (name, size)
        for name, size in {"height": height, "width": width}.items()
        if not isinstance(size, Integral) or size < 1 or size % multiple
    ]
    if wrong:
        hints = " and ".join(f"{name} {size!r} ({nearest_sizes(size, multiple)})" for name, size in wrong)
        raise ValueError(f"height and width must be multiples of {multiple} pixels for this model: change {hints}.")


def nearest_sizes(size: int, multiple: int) -> str:
    """The nearest sides that work, in words."""
    if not isinstance(size, Real) or not math.isfinite(size) or size < multiple:
        return f"the smallest is {multiple}"
    below = int(size) // multiple * multiple
    return f"nearest are {below} and {below + multiple}"


def check_generators(generator: torch.Generator | list[torch.Generator] | None, batch: int) -> None:
    """Raise ValueError unless it is a generator, or a list of one for each image."""
    if generator is None:
        return
    given = generator if isinstance(generator, list) else [generator]
    wrong = [one for one in given if not isinstance(one, torch.Generator)]
    if wrong:
        raise ValueError(f"generator must be a torch.Generator or a list of them, not {type(wrong[0]).__name__}.")
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(f"generator is a list of {len(generator)} for {batch} images: give one for each.")


# attndiff.folder.code_names

"""Names of code files: the module that they define, and a hash of their content."""


CODE_FILE = re.compile(r"(.+)_([0-9a-f]{12})\.py")


def code_hash(source: str) -> str:
    """The hash that the name of a code file carries."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


# attndiff.folder.index

"""``model_index.json``: what a pipeline folder holds, and which attndiff wrote it."""

INDEX = "model_index.json"
FOLDER_FORMAT = 1  # indexes that name none are of this one
FORMAT_KEY, VERSION_KEY = "_attndiff_format", "_attndiff_version"  # diffusers passes over what begins with "_"


def stored_class(index: dict) -> str:
    """Name of a pipeline's class; a list has it after that of its code file."""
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, list) and name else name)


def check_format(place: str, index: dict) -> None:
    """Raise ValueError for a folder of another format than this."""
    stored, version = index.get(FORMAT_KEY, FOLDER_FORMAT), index.get(VERSION_KEY)
    if stored != FOLDER_FORMAT:
        by = f", which attndiff {version} wrote," if isinstance(version, str) else ""
        raise ValueError(
            f"{place} is a pipeline of format {str(stored)[:20]}{by} and this attndiff reads {FOLDER_FORMAT}; install "
            "a newer one."
        )


# attndiff.folder.code_files

"""The code files that lie beside a pipeline's weights, one for each class that stock diffusers does not have."""




def own_code_file(cls: type) -> tuple[str, str] | None:
    """Name and source of the code file that a class came out of, if it did and the file is as it was."""
    path = Path(sys.modules[cls.__module__].__file__)
    match = CODE_FILE.fullmatch(path.name)
    if not match:
        return None
    source = path.read_text(encoding="utf-8")
    return (path.name, source) if code_hash(source) == match[2] else None


def code_file(cls: type) -> tuple[str, str]:
    """Name and source of the self-contained file that defines a class.

    A class that came out of such a file keeps it; for any other, attndiff bundles one.
    """
    return own_code_file(cls) or importlib.import_module("attndiff").bundle_component(cls)


def written_by(cls: type) -> dict[str, str]:
    """What an index says of the attndiff that a class is of; nothing if it came out of a code file."""
    return {} if own_code_file(cls) else {VERSION_KEY: importlib.import_module("attndiff").__version__}


def write_code(folder: Path, cls: type) -> None:
    """Put the code file of a class into a folder, in place of earlier versions of it."""
    name, source = code_file(cls)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):
        match = CODE_FILE.fullmatch(old.name)
        if match and match[1] == CODE_FILE.fullmatch(name)[1]:
            old.unlink()
    (folder / name).write_text(source, encoding="utf-8", newline="\n")


# attndiff.folder.fetch

"""A pipeline's files from the Hugging Face Hub, all of one commit."""



def fetch_without_code(repo_id: str, **kwargs) -> str:
    """Folder in the local cache with the weights and configs of a Hub repository, and none of its code.

    Args:
        repo_id: ``"user/name"``.
        kwargs: As for `diffusers.DiffusionPipeline.download`; ``revision``, ``variant``, ``token``, ``cache_dir``,
            ``force_download`` and ``local_files_only`` count.
    """
    return snapshot_download(
        repo_id,
        revision=kwargs.get("revision"),
        cache_dir=kwargs.get("cache_dir"),
        token=kwargs.get("token"),
        force_download=kwargs.get("force_download") or False,
        local_files_only=kwargs.get("local_files_only") or False,
        allow_patterns=["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja"],
        ignore_patterns=None if kwargs.get("variant") else ["*/*.*.safetensors", "*/*.index.*.json"],
    )


# attndiff.folder.weights

"""Files of a component's weights: one whole file, or shards beside an index that says which tensor lies in which.

A variant such as bf16 has its own: ``model.bf16.safetensors``, or ``model.bf16-00001-of-00002.safetensors`` and so on
with ``model.safetensors.index.bf16.json``. Of both, diffusers opens the shards and transformers the whole file.
"""


SHARD_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
SHARD_INDEX = re.compile(r"([^.]+)\.safetensors\.index(|\..+)\.json")
PLAIN_FILE = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)  # leads to no other folder


def shard_indexes(folder: Path) -> list[Path]:
    """The indexes of a component's folder."""
    return sorted(path for path in folder.glob("*.json") if SHARD_INDEX.fullmatch(path.name))


def shards_of(index) -> dict[str, str] | None:
    """The file of every tensor by an index as it was read; None if it is no index of files beside it."""
    places = index.get("weight_map") if isinstance(index, dict) and isinstance(index.get("metadata"), dict) else None
    if not isinstance(places, dict) or not places:
        return None
    plain = all(isinstance(name, str) and PLAIN_FILE.fullmatch(name) for name in places.values())
    return places if plain else None


def same_weights(file: str) -> list[str]:
    """Patterns of all names that the same variant of the same weights may have: whole file, index, shards.

    Args:
        file: One of these names.
    """
    match = SHARD_INDEX.fullmatch(file) or SHARD_FILE.fullmatch(file)
    stem = "".join(match.groups()) if match else file.removesuffix(".safetensors")
    base, dot, variant = stem.partition(".")
    names = f"{stem}.safetensors", f"{base}.safetensors.index{dot}{variant}.json"
    return [*map(glob.escape, names), f"{glob.escape(stem)}-?????-of-?????.safetensors"]


def remove_stale_weights(folder: Path) -> None:
    """Leave, of what was just saved into a component's folder, the new files only.

    Neither diffusers nor transformers takes away the index when it saves a whole file, nor the whole file when it saves
    shards. They do take away earlier shards, so that an index whose shards are not all there is of an earlier time.
    """
    for index in shard_indexes(folder):
        try:
            shards = set((shards_of(json.loads(index.read_text(encoding="utf-8"))) or {}).values())
        except ValueError:
            shards = set()
        if shards and all((folder / name).is_file() for name in shards):
            kept = {index.name, *shards}
        else:
            kept = {"".join(SHARD_INDEX.fullmatch(index.name).groups()) + ".safetensors"}
        for path in [path for pattern in same_weights(index.name) for path in folder.glob(pattern)]:
            if path.name not in kept:
                path.unlink()


# attndiff.folder.self_contained

"""The one form on disk of a pipeline: weights, configs, and the code that opens them where attndiff is not installed.

``model_index.json`` names a code file at the root for the pipeline and one in the folder of each network, with a hash
of its content in its name. `diffusers.DiffusionPipeline` runs them when it is told to trust them; the classmethods
here never do, they take the classes of their own module. (diffusers' ``AutoPipeline`` classes do not read this form.)
"""





def forget_origin(config: Path) -> None:
    """Take out of a network's config where it was opened from, which is nobody's business."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class SelfContainedPipeline(DiffusionPipeline):
    """A diffusers pipeline that saves its own code beside its weights, and opens a folder without running any.

    Subclasses list their networks, the classes that stock diffusers does not have, in ``_network_classes``.
    """

    _network_classes: list[type] = []

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, safe_serialization: bool = True, *args, **kwargs):
        """Write the pipeline to a folder, as `diffusers.DiffusionPipeline.save_pretrained` does, and its code.

        Weights that were saved there before, whole or in shards, are replaced; those of other variants stay.

        Raises:
            ValueError: If ``safe_serialization`` is off, which would write pickle files.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickle files; leave it on to write safetensors.")
        super().save_pretrained(save_directory, True, *args, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        # The last thing that saving does before it uploads anything.
        for name in self.components:
            remove_stale_weights(Path(save_directory) / name)
        write_code(Path(save_directory), type(self))
        for name, cls in self._networks().items():
            write_code(Path(save_directory) / name, cls)
            forget_origin(Path(save_directory) / name / "config.json")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        index = json.loads(super().to_json_string())
        index.pop("_name_or_path", None)
        for name, cls in {"_class_name": type(self), **self._networks()}.items():
            index[name] = [code_file(cls)[0].removesuffix(".py"), cls.__name__]
        index |= {FORMAT_KEY: FOLDER_FORMAT, **written_by(type(self))}
        for name, entry in index.items():
            if entry == ["transformers", "TokenizersBackend"]:  # a name that transformers before 5 does not know
                index[name] = ["transformers", "PreTrainedTokenizerFast"]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _networks(self) -> dict[str, type]:
        """The components whose code has to go with them, and their classes."""
        names = {cls.__name__ for cls in self._network_classes}
        components = {name: getattr(part, "_orig_mod", part) for name, part in self.components.items()}
        return {name: type(part) for name, part in components.items() if type(part).__name__ in names}

    # Opening

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Open a folder or a Hub repository without running any code that it holds.

        Takes the arguments of `diffusers.DiffusionPipeline.from_pretrained`; ``trust_remote_code`` changes nothing.

        Raises:
            ValueError: If it holds another pipeline, or one of a later format.
        """
        kwargs.pop("trust_remote_code", None)
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """The stored index, with the classes of this module in place of the folder's code."""
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        stored = stored_class(index)
        if stored != cls.__name__:
            by = "attndiff.load" if stored.startswith("AttnDiff") else "diffusers.DiffusionPipeline.from_pretrained"
            raise ValueError(f"{pretrained_model_name_or_path} holds {stored}, not {cls.__name__}; open it with {by}.")
        check_format(str(pretrained_model_name_or_path), index)
        index["_class_name"] = cls.__name__
        networks = {network.__name__: network for network in cls._network_classes}
        for name, entry in index.items():
            if isinstance(entry, list) and len(entry) == 2 and entry[1] in networks:
                index[name] = [networks[entry[1]].__module__, entry[1]]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetch weights and configs of a Hub repository, all at one commit, and none of its code."""
        return fetch_without_code(pretrained_model_name, **kwargs)


# attndiff.pipelines.call.inputs

"""Texts and classes of a call in one form, whatever form they came in."""




def as_texts(prompt: str | list[str] | None, name: str = "prompt") -> list[str] | None:
    """A prompt as a list of texts.

    Raises:
        ValueError: If it is neither a text nor a list of texts, or holds what is no text in any encoding.
    """
    if prompt is None:
        return None
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, not {describe_type(prompt)}.")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{name} holds {half}, which is half of a character: take it out.") from None
    return list(texts)


def as_labels(class_labels, num_classes: int, class_names: list[str] | None) -> torch.Tensor | None:
    """Class labels as an int64 tensor ``(B,)``.

    Args:
        class_labels: Number or name of a class, a list of them, a tensor of numbers, or None.
        num_classes: How many classes there are.
        class_names: Their names, in order, if they have any.

    Raises:
        ValueError: If a label is of another type, out of range or no such name.
    """
    if class_labels is None:
        return None
    if isinstance(class_labels, torch.Tensor):
        class_labels = class_labels.reshape(-1).tolist()
    labels = list(class_labels) if isinstance(class_labels, (list, tuple)) else [class_labels]
    if not labels:
        raise ValueError("class_labels is empty; give at least one class.")
    return torch.tensor([_label(label, num_classes, class_names or []) for label in labels], dtype=torch.int64)


def _label(label: int | str, num_classes: int, class_names: list[str]) -> int:
    """The number of one class."""
    if isinstance(label, str):
        if label not in class_names:
            known = f"the names are {', '.join(class_names[:20])}" if class_names else "its classes have numbers only"
            raise ValueError(f"class_labels: this model has no class {label!r}; {known}.")
        return class_names.index(label)
    if not isinstance(label, Integral) or isinstance(label, bool):
        raise ValueError(f"class_labels must be class numbers or names, not {describe_type(label)}.")
    if not 0 <= label < num_classes:
        raise ValueError(f"class_labels: {label} is out of range; this model has the classes 0 to {num_classes - 1}.")
    return int(label)


def describe_type(value) -> str:
    """The type of a wrong argument in words."""
    if isinstance(value, (list, tuple)):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return type(value).__name__


# attndiff.pipelines.call.given

"""Tensors that a caller made in place of the pipeline: condition tokens with their mask, and latents.

A call and what its callback returns are held to the same. Shapes: P rows, S condition tokens, C channels.
"""





def check_floats(name: str, given: torch.Tensor, what: str) -> None:
    """Raise ValueError unless it is a floating-point tensor of finite numbers; ``what`` says of which."""
    if not isinstance(given, torch.Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, torch.Tensor) else describe_type(given)
        raise ValueError(f"{name} must be a floating-point tensor of {what}, not {kind}.")
    if not given.float().isfinite().all():
        raise ValueError(f"{name} must be {what}, and holds numbers that are not finite.")


def check_latents(latents: torch.Tensor | None, shape: Sequence[int], what: str = "standard normal noise") -> None:
    """Raise ValueError unless given latents are a floating tensor of this shape, all finite."""
    if latents is None:
        return
    check_floats("latents", latents, what)
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents must have the shape {tuple(shape)} for this call, not {tuple(latents.shape)}.")


def given_tokens(
    name: str,
    embeds: torch.Tensor,
    mask: torch.Tensor | None,
    width: int | None,
    rows: int | None = None,
    device: torch.device | None = None,
) -> Condition:
    """Condition tokens as the network takes them.

    Args:
        name: What the names of the arguments begin with, ``"prompt"`` or ``"negative_prompt"``.
        embeds: ``(P, S, C)``.
        mask: ``(P, S)``, true or 1 for tokens that count; all by default.
        width: C, if it is known.
        rows: P, if it is settled by something else.
        device: Where they are put; tensors that are there already stay the same objects.

    Raises:
        ValueError: If one is no such tensor, or a row has no token that counts.
    """
    check_floats(f"{name}_embeds", embeds, "condition tokens")
    shape = tuple(embeds.shape)
    fits = len(shape) == 3 and min(shape) > 0 and shape[0] == (rows or shape[0]) and shape[2] == (width or shape[2])
    if not fits:
        wanted = f"({rows or 'prompts'}, tokens, {width or 'channels'})"
        raise ValueError(f"{name}_embeds must have the shape {wanted} for this call, not {shape}.")
    return Condition(embeds.to(device), _counting(f"{name}_attention_mask", mask, shape[:2], device))


def _counting(name: str, mask, shape: tuple[int, int], device: torch.device | None) -> torch.Tensor | None:
    """A mask ``(P, S)`` as bool.

    Masks of other libraries are added to scores, 0 for what counts, and would say the opposite of what they mean here.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, true for tokens that count, not {describe_type(mask)}.")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, a number for each token, not {tuple(mask.shape)}.")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must be true or 1 for tokens that count and false or 0 for others, nothing else.")
    if not mask.bool().any(dim=1).all():
        raise ValueError(f"{name} leaves a row without a token that counts: it must be true or 1 for those that do.")
    return mask.to(device, torch.bool)


def returned_tensors(returned, tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """What a callback has put in the place of tensors.

    Args:
        returned: By the callback.
        tensors: All that it may change, by name.

    Raises:
        ValueError: If it is neither None nor such tensors by name.
    """
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise ValueError(
            "callback_on_step_end must return the tensors that it changes by name, or None, not "
            f"{describe_type(returned)}."
        )
    check_choice("what callback_on_step_end returns", list(returned), list(tensors))
    return {name: value for name, value in returned.items() if value is not tensors[name]}


# attndiff.words

"""Words of the training captions, by which a prompt's others are noticed: most are misspelt ones."""



KNOWN_WORDS = "known_words"  # in a tokenizer's configuration: words, joined by spaces
MOST = 50_000  # of a longer list the configuration would be larger than many a model
WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> set[str]:
    """Words of a text in lower case, of scripts that have one: many of the others put no spaces between words."""
    found = WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return {word for word in found if word != word.upper()}


def with_words(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer whose configuration names the words of the training captions."""
    made = copy.deepcopy(tokenizer)
    made.init_kwargs[KNOWN_WORDS] = " ".join(sorted(words))
    return made


def take_words(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Take them out again, so that prompts with others pass unnoticed; none where there are none."""
    return set(tokenizer.init_kwargs.pop(KNOWN_WORDS, "").split())


def describe_unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Which words of a text no training caption has, as a sentence; None where all are known, or it cannot be told."""
    known = tokenizer.init_kwargs.get(KNOWN_WORDS, "").split()
    unknown = sorted(words_of(text).difference(known)) if known else []
    if not unknown:
        return None
    near = {word: get_close_matches(word, known, n=1, cutoff=0.75) for word in unknown}
    named = (f"{word!r} ({near[word][0]!r} is known)" if near[word] else repr(word) for word in unknown)
    return f"No training caption has {', '.join(named)}: the model was never shown what that means."


# attndiff.pipelines.call.tokenizing

"""Captions to the tokens of a pipeline's tokenizer."""




logger = logging.get_logger(__name__)

REMEMBERED = 10_000  # prompts of a tokenizer that are not warned of again
# How a call pads and cuts is kept in the tokenizer while it works, and pipelines in several threads may share one.
_tokenizing = Lock()
_warned: WeakKeyDictionary[PreTrainedTokenizerBase, set[int]] = WeakKeyDictionary()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of captions, padded to the tokenizer's length.

    What is cut off, and words that no training caption has, are shown in a warning, once.

    Returns:
        Two int64 tensors ``(P, T)``; the mask is 1 for tokens that count.
    """
    with _tokenizing:
        return _tokenize(tokenizer, texts)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`tokenize`, by one thread at a time."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    for text, kept in zip(texts, encoded["input_ids"].tolist()):
        said = [one for one in (_describe_cut(tokenizer, text, kept), describe_unknown(tokenizer, text)) if one]
        if said and _is_news(tokenizer, text):
            for one in said:
                logger.warning(one)
    return encoded["input_ids"], encoded["attention_mask"]


def _describe_cut(tokenizer: PreTrainedTokenizerBase, text: str, kept: list[int]) -> str | None:
    """What is cut off a text, as a sentence; None where nothing is."""
    whole = tokenizer(text, verbose=False)["input_ids"]
    if len(whole) <= len(kept):
        return None
    same = next(i for i, (a, b) in enumerate(zip([*kept, None], whole)) if a != b)
    cut = tokenizer.decode(whole[same:], skip_special_tokens=True).strip()
    return f"The prompt is longer than the model's {len(kept)} tokens; this was cut off: {cut!r}"


def _is_news(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether nothing was said of a prompt yet: a training run draws the same ones again and again."""
    known = _warned.setdefault(tokenizer, set())
    if hash(text) in known:
        return False
    if len(known) >= REMEMBERED:
        known.clear()
    known.add(hash(text))
    return True


# attndiff.pipelines.call.conditioning

"""What a pipeline is told, encoded for its network, for what guidance leads away from, and for its guide.

Shapes: P prompts, B = P * num_images_per_prompt images, S condition tokens, C channels.
"""





@dataclass(frozen=True)
class GivenCondition:
    """Arguments of a call by their names there, where they are explained."""

    prompt: str | list[str] | None = None
    class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None

    def of_images(self, count: int) -> "GivenCondition":
        """The same where a prompt, or a class, that is given alone is told of each of so many images."""
        alone = {name: one for name, one in vars(self).items() if isinstance(one, (str, int))}
        return replace(self, **{name: [one] * count for name, one in alone.items()})


@dataclass(frozen=True)
class EncodedCondition:
    """Conditions of B rows each.

    Args:
        positive: What the network is told; without parts if it is unconditional.
        negative: What it is told to lead away from.
        of_guide: What a guide with its own encoder is told.
        again: Makes all of them anew, with what another guidance needs: called with whether classifier-free guidance
            and autoguidance are on.
    """

    positive: Condition
    negative: Condition | None = None
    of_guide: Condition | None = None
    again: Callable[[bool, bool], "EncodedCondition"] | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor | None]:
        """What a callback may look at and change."""
        negative = self.negative or Condition()
        return {
            "prompt_embeds": self.positive.tokens,
            "prompt_attention_mask": self.positive.mask,
            "negative_prompt_embeds": negative.tokens,
            "negative_prompt_attention_mask": negative.mask,
        }

    def repeat(self, times: int) -> "EncodedCondition":
        """Every row ``times`` times, side by side."""
        conditions = (self.positive, self.negative, self.of_guide)
        repeated = (None if one is None else one.repeat(times) for one in conditions)
        return EncodedCondition(*repeated, again=self.again)


class ConditionedPipeline(SelfContainedPipeline):
    """Encodes prompts and classes; its components are those of `attndiff.pipelines.base.ImagePipeline`."""

    @property
    def network(self) -> ModelMixin | None:
        """What is told the condition."""
        return self.unet

    @property
    def _conditional(self) -> bool:
        # Without a network, a pipeline still encodes prompts.
        return self.network is None or self.network.config.cross_attention_dim is not None

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The condition as tokens, with what guidance leads away from; arguments as in `__call__`.

        Returns:
            Tokens ``(B, S, C)`` and mask ``(B, S)`` of the condition and of its negative; None where there is none.
        """
        given = GivenCondition(
            prompt,
            class_labels,
            negative_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )
        tensors = self.encode(given, num_images_per_prompt, do_classifier_free_guidance, autoguidance=False).tensors
        prompt_embeds = tensors["prompt_embeds"]
        prompt_attention_mask = tensors["prompt_attention_mask"]
        negative_prompt_embeds = tensors["negative_prompt_embeds"]
        negative_prompt_attention_mask = tensors["negative_prompt_attention_mask"]
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def encode(
        self,
        given: GivenCondition,
        num_images_per_prompt: int,
        classifier_free_guidance: bool,
        autoguidance: bool,
    ) -> EncodedCondition:
        """The conditions of a call.

        Args:
            given: What it was told.
            num_images_per_prompt: Rows of every prompt.
            classifier_free_guidance: Whether something is needed to lead away from.
            autoguidance: Whether the guide needs its own.

        Raises:
            ValueError: If it was told something that the model was not made for.
        """
        self._check_condition(given)
        again = partial(self.encode, given, num_images_per_prompt)
        if not self._conditional:
            return EncodedCondition(Condition(), again=again)
        inputs = None
        if given.prompt_embeds is not None:
            positive = self._given_tokens("prompt", given.prompt_embeds, given.prompt_attention_mask)
        else:
            inputs = self._encoder_inputs(as_texts(given.prompt), self._labels(given.class_labels))
            positive = self._encode(self.condition_encoder, inputs)
        negative = None
        if given.negative_prompt_embeds is not None:
            tokens = given.negative_prompt_embeds, given.negative_prompt_attention_mask
            negative = self._given_tokens("negative_prompt", *tokens, positive.rows)
        elif classifier_free_guidance:
            negative = self._encode_negative(given, positive.rows)
        of_guide = None
        if autoguidance and self.guide_encoder is not None:
            if inputs is None:
                raise ValueError("prompt_embeds: the guide encodes the condition itself; give prompt or class_labels.")
            of_guide = self._encode(self.guide_encoder, inputs)
        return EncodedCondition(positive, negative, of_guide, again).repeat(num_images_per_prompt)

    def _given_tokens(
        self, name: str, embeds: torch.Tensor, mask: torch.Tensor | None, rows: int | None = None
    ) -> Condition:
        """Tokens that the network is given as they are; arguments as of `given_tokens`."""
        if not self._conditional:
            raise ValueError(f"{name}_embeds: this model is unconditional, leave them out.")
        width = self.condition_encoder.config.hidden_size if self.condition_encoder is not None else None
        width = self.network.config.cross_attention_dim if self.network is not None else width
        return given_tokens(name, embeds, mask, width, rows, self._execution_device)

    @staticmethod
    def _encode(encoder: ModelMixin, inputs: dict) -> Condition:
        """What an encoder makes of its inputs; the mean of the tokens is left to where they can still be changed."""
        encoded = encoder(**inputs)
        return Condition(encoded.tokens, encoded.mask)

    def _encode_negative(self, given: GivenCondition, prompts: int) -> Condition:
        """What guidance leads away from: captions, or the learned null."""
        if self.condition_encoder is None:
            raise ValueError("without a condition_encoder, guidance needs negative_prompt_embeds: give them.")
        texts = as_texts(given.negative_prompt, "negative_prompt")
        if texts is None:
            return self._encode(self.condition_encoder, {"batch_size": prompts})
        if len(texts) not in (1, prompts):
            raise ValueError(f"negative_prompt has {len(texts)} texts for {prompts} prompts: give one, or one each.")
        return self._encode(self.condition_encoder, self._encoder_inputs(texts * (prompts // len(texts)), None))

    def _encoder_inputs(self, texts: list[str] | None, labels: torch.Tensor | None) -> dict:
        """Inputs of a condition encoder for captions, labels ``(P,)`` or both; an empty caption is no condition."""
        if texts is not None and labels is not None and len(texts) != len(labels):
            raise ValueError(f"prompt has {len(texts)} texts, but class_labels has {len(labels)}: give as many.")
        inputs = {"class_labels": labels}
        if texts is None:
            return inputs
        ids, mask = (tensor.to(self._execution_device) for tensor in tokenize(self.tokenizer, texts))
        if labels is None:
            inputs["drop"] = torch.tensor([not text.strip() for text in texts], device=ids.device)
        if self.text_encoder is None:
            return {**inputs, "input_ids": ids, "attention_mask": mask}
        states = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        return {**inputs, "context": states, "context_mask": mask}

    def _labels(self, class_labels) -> torch.Tensor | None:
        """Class numbers ``(P,)`` on the device."""
        if class_labels is None:
            return None
        names = (self.config.data or {}).get("class_names")
        return as_labels(class_labels, self.condition_encoder.config.num_classes, names).to(self._execution_device)

    def _check_condition(self, given: GivenCondition) -> None:
        """Raise ValueError unless the kinds of condition given are those that the model was made for."""
        encodes = self.condition_encoder is not None
        texts = encodes and self.tokenizer is not None
        classes = encodes and self.condition_encoder.config.num_classes is not None
        takes = " or ".join(["a prompt"] * texts + ["class_labels"] * classes) or "prompt_embeds"
        prompt, class_labels, negative = given.prompt, given.class_labels, given.negative_prompt
        if not self._conditional:
            if any(value is not None for value in vars(given).values()):
                raise ValueError("this model is unconditional: call it without prompt, class_labels and embeds.")
            return
        _check_together(given)
        if given.prompt_embeds is None and prompt is None and class_labels is None:
            raise ValueError(f"this model needs a condition: give {takes}.")
        if (prompt is not None or negative is not None) and not texts:
            raise ValueError(f"this model does not read text: give {takes} instead of prompt and negative_prompt.")
        if class_labels is not None and not classes:
            raise ValueError(f"this model has no classes: give {takes} instead of class_labels.")


def _check_together(given: GivenCondition) -> None:
    """Raise ValueError for arguments of which one would be passed over."""
    if given.prompt_embeds is not None and (given.prompt is not None or given.class_labels is not None):
        raise ValueError("prompt_embeds stands for the whole condition: leave out prompt and class_labels.")
    if given.negative_prompt_embeds is not None and given.negative_prompt is not None:
        raise ValueError("negative_prompt_embeds stands for negative_prompt: leave one of them out.")
    for name in ("prompt", "negative_prompt"):
        if getattr(given, f"{name}_attention_mask") is not None and getattr(given, f"{name}_embeds") is None:
            raise ValueError(f"{name}_attention_mask says which of {name}_embeds count: give both.")


# attndiff.pipelines.call.guides

"""Which guides go with a network."""


READ = ("vocab_size", "max_length", "num_classes", "context_dim")  # what decides the inputs of a condition encoder


def check_guide(guide: ModelMixin | None, guide_encoder: ModelMixin | None, encoder: ModelMixin | None) -> None:
    """Refuse a guide that could not make sense of its condition.

    Args:
        guide: The network to lead away from.
        guide_encoder: Its own condition encoder.
        encoder: That of the network which is led.

    Raises:
        ValueError: If the guide's encoder is missing, not needed, or reads other inputs than the network's.
    """
    if guide is None:
        if guide_encoder is not None:
            raise ValueError("guide_encoder: there is no guide to encode for; give its network as guide, too.")
        return
    wanted = guide.config.cross_attention_dim
    if guide_encoder is None:
        given = None if encoder is None else encoder.config.hidden_size
        if None not in (wanted, given) and wanted != given:
            raise ValueError(
                f"guide: it attends to tokens of {wanted} channels, and condition_encoder makes them of {given}; give "
                "the encoder that it was trained with as guide_encoder."
            )
        return
    if wanted is None:
        raise ValueError("guide_encoder: the guide is unconditional; leave its encoder out.")
    if encoder is None:
        raise ValueError("guide_encoder: this pipeline has no condition_encoder; leave out both, and give embeds.")
    for setting in READ:
        theirs, ours = guide_encoder.config[setting], encoder.config[setting]
        if theirs != ours:
            raise ValueError(
                f"guide_encoder: its {setting} is {theirs}, and that of condition_encoder {ours}; take a guide that "
                "reads the same prompts, such as an earlier snapshot of the model."
            )


# attndiff.pipelines.call.images

"""Images and masks of a call in one form, whatever form they came in.

Shapes: N images, C channels, H rows, W columns.
"""



logger = logging.get_logger(__name__)

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def as_pixels(image, channels: int, data: dict | None = None, name: str = "image") -> torch.Tensor:
    """Images as ``(N, C, H, W)`` float32 in [-1, 1].

    Args:
        image: A picture or a list of them; an array ``(N, H, W, C)`` or a tensor ``(N, C, H, W)`` in [0, 1], or one
            without N, or a list of such. Where the model learned values in units of their own, pictures and arrays hold
            such values, and what is outside of their range is clipped, with a warning.
        channels: C; pictures of other modes are converted.
        data: What the pipeline knows about its data.
        name: Of the argument.

    Raises:
        ValueError: If it is none of these, of another number of channels, or its images differ in size.
    """
    units = range_in_units(data)
    images = _alike(image, name, units is not None)
    if isinstance(images[0], Image.Image):
        image = np.stack([_as_array(one, channels) for one in images])
        image = image if units is not None else image.astype(np.float32) / 255
    else:
        image = image if images[0] is image else stacked(images)
    if units is not None and isinstance(image, np.ndarray):
        image = _from_units(image, units, name)
    if isinstance(image, np.ndarray):
        image = image[None] if image.ndim == 3 else image
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2) if image.ndim == 4 else image
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"{name} has the shape {tuple(image.shape)}, and this model takes {channels} channels.")
    if not image.is_floating_point():  # 1 of a byte would be white
        raise ValueError(f"{name} must hold floating-point numbers from 0 to 1, not {image.dtype}: scale it.")
    image = image.float()
    if not _within_unit(image):
        raise ValueError(f"{name} holds values outside of 0 to 1: scale it, or give pictures.")
    return image * 2 - 1


def range_in_units(data: dict | None) -> tuple[float, float] | None:
    """What -1 and 1 stand for where a model's data are neither pictures nor numbers over their full range."""
    low, high = (data or {}).get("value_range", (0, 1))
    return None if (data or {}).get("bit_depth", 8) != 32 or (low, high) == (0, 1) else (low, high)


def _from_units(values: np.ndarray, units: tuple[float, float], name: str) -> np.ndarray:
    """Values as float32 shares of their range, clipped to it."""
    values, (low, high) = values.astype(np.float64), units
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds numbers that are not finite.")
    shares = (values - low) / (high - low)
    outside = float(np.mean((shares < 0) | (shares > 1)))
    if outside:
        logger.warning(f"{name}: {outside:.2%} of the values lie outside of {low:g} to {high:g} and were clipped")
    return shares.clip(0, 1).astype(np.float32)


def _as_array(picture: Image.Image, channels: int) -> np.ndarray:
    """Numbers ``(H, W, C)`` of a picture; of one of 8 bits, in the mode of as many channels."""
    is_deep = picture.mode.startswith(("I", "F"))
    array = np.asarray(picture if is_deep else picture.convert(MODES.get(channels, picture.mode)))
    return array[..., None] if array.ndim == 2 else array


def _alike(image, name: str, deep_too: bool = False) -> list[Image.Image] | list[np.ndarray] | list[torch.Tensor]:
    """A picture, array or tensor, or several, as a list of one kind and size.

    Raises:
        ValueError: If they differ, are empty or, unless ``deep_too``, of more than 8 bits, or are none of these.
    """
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    kinds = [kind for kind in (Image.Image, np.ndarray, torch.Tensor) if all(isinstance(one, kind) for one in images)]
    if not images or not kinds:
        raise ValueError(f"{name} must be pictures, arrays or tensors, all of one kind, not {describe_type(image)}.")
    pictures = kinds == [Image.Image]
    sizes = {one.size if pictures else tuple(one.shape) for one in images}
    if len(sizes) > 1:
        raise ValueError(f"{name} has images of different sizes, {sorted(sizes)[:3]}: give those of one size.")
    deep = [one.mode for one in images if pictures and one.mode.startswith(("I", "F"))]
    if deep and not deep_too:  # conversion to 8 bits would clip
        raise ValueError(f"{name} is a picture of mode {deep[0]}: give an array with values from 0 to 1.")
    if not pictures and 0 in images[0].shape:
        raise ValueError(f"{name} has the shape {tuple(images[0].shape)}: it is empty.")
    if not pictures and isinstance(images[0], np.ndarray) and images[0].dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, not {images[0].dtype}.")
    return images


def _within_unit(values: torch.Tensor) -> bool:
    """Whether all are finite and from 0 to 1."""
    return bool(values.isfinite().all() and values.amin() >= 0 and values.amax() <= 1)


def stacked(images: list[np.ndarray] | list[torch.Tensor]) -> np.ndarray | torch.Tensor:
    """Images without N as one array or tensor."""
    join = torch.stack if isinstance(images[0], torch.Tensor) else np.stack
    images = join(list(images))
    return images.flatten(0, 1) if images.ndim == 5 and isinstance(images, torch.Tensor) else images


def as_mask(mask_image, size: tuple[int, int]) -> torch.Tensor:
    """Masks as ``(N, 1, H, W)`` float32 of 0 and 1; white, or above a half, is what is to be drawn.

    Raises:
        ValueError: If they are of another size than the images, or hold other numbers than masks do.
    """
    for one in _alike(mask_image, "mask_image"):
        if not isinstance(one, Image.Image):
            _check_mask_values(torch.as_tensor(np.ascontiguousarray(one) if isinstance(one, np.ndarray) else one))
    mask_image = list(mask_image) if isinstance(mask_image, tuple) else mask_image
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True, do_resize=False)
    mask = masks.preprocess(mask_image).float()
    if mask.ndim != 4 or mask.shape[1] != 1 or tuple(mask.shape[-2:]) != size:
        raise ValueError(f"mask_image has the shape {tuple(mask.shape)}, and the image is {size[0]} x {size[1]}.")
    return mask


def _check_mask_values(values: torch.Tensor) -> None:
    """Raise ValueError unless they are from 0 to 1, or those of a black and white picture, 0 and 255."""
    if values.is_complex() or not (_within_unit(values.float()) or ((values == 0) | (values == 255)).all()):
        raise ValueError("mask_image holds values outside of 0 to 1: it must be 1 where it is to be drawn, else 0.")


def padded(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """``(N, C, H, W)`` with its last rows and columns repeated until both sides are multiples."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def rows_for(images: torch.Tensor, batch: int, name: str = "image") -> torch.Tensor:
    """``(batch, C, H, W)``: one for all rows, or one each.

    Raises:
        ValueError: If there are neither one nor as many.
    """
    if len(images) not in (1, batch):
        raise ValueError(f"{name} has {len(images)} rows for {batch} images: give one, or one each.")
    return images.expand(batch, -1, -1, -1) if len(images) == 1 else images


# attndiff.pipelines.call.lock

"""A pipeline keeps the state of a call, so that it takes one at a time."""



class CallLock:
    """A lock that makes calls wait for each other; a copied or pickled pipeline gets a new one."""

    def __init__(self):
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return CallLock, ()


# attndiff.pipelines.call.postprocess

"""From the network's range to images: pictures where the data were pictures, the data's own units where not.

Shapes: B images, C channels, H rows, W columns.
"""



OUTPUT_TYPES = ("pil", "np", "pt", "latent")
INTEGERS = {8: np.uint8, 16: np.uint16}


def is_picture(data: dict | None, channels: int) -> bool:
    """Whether images of this kind are ordinary 8-bit pictures: greyscale or RGB, and with alpha LA or RGBA."""
    has_mode = channels in (1, 3, 4) or (channels == 2 and is_premultiplied(data))
    return has_mode and (data or {}).get("bit_depth", 8) == 8


def to_output(
    images: torch.Tensor,
    data: dict | None,
    output_type: str,
) -> list[Image.Image] | list[np.ndarray] | np.ndarray | torch.Tensor:
    """Convert sampled images.

    Args:
        images: ``(B, C, H, W)`` in [-1, 1]; values beyond are clipped.
        data: What the pipeline knows about its data: ``bit_depth``, the ``value_range`` that [-1, 1] stands for, and
            whether colour is multiplied by ``alpha``, by which it is divided then.
        output_type: ``"pt"`` gives ``(B, C, H, W)`` in [0, 1]. ``"np"`` gives ``(B, H, W, C)``, in [0, 1] for
            pictures and in the units of the data for anything else. ``"pil"`` gives a list of pictures, or of
            ``(H, W, C)`` arrays in the units of the data where a picture cannot hold them.
    """
    if is_premultiplied(data):
        images = straight(images, levels_of(data))
    if output_type == "pt" or is_picture(data, images.shape[1]):
        return VaeImageProcessor().postprocess(images, output_type=output_type)
    units = to_data_units(images, data)
    return units if output_type == "np" else list(units)


def to_data_units(images: torch.Tensor, data: dict | None) -> np.ndarray:
    """``(B, C, H, W)`` in [-1, 1] as ``(B, H, W, C)`` in the units of the data, integers for 8 and 16 bits."""
    data = data or {}
    depth = data.get("bit_depth", 8)
    low, high = data.get("value_range", (0, 2**depth - 1))
    share = images.double().clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 1).cpu().numpy()
    units = low + share * (high - low)
    return units.round().astype(INTEGERS[depth]) if depth in INTEGERS else units.astype(np.float32)


# attndiff.pipelines.call.options

"""How to sample: what every pipeline's call takes, whatever it is told to draw."""




Callback = Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks


@dataclass(frozen=True)
class CallOptions:
    """Arguments of a call by their names there, where they are explained.

    Raises:
        ValueError: If one cannot be, in any pipeline.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = EVERYWHERE
    num_images_per_prompt: int = 1
    generator: torch.Generator | list[torch.Generator] | None = None
    sigmas: list[float] | None = None
    strength: float | None = None
    output_type: str = "pil"
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",)
    output_attention_maps: bool = False

    def __post_init__(self):
        steps, scale = self.num_inference_steps, self.guidance_scale
        check_numbers(steps, scale, self.guidance_interval, self.num_images_per_prompt)
        check_choice("output_type", [self.output_type], OUTPUT_TYPES)
        if self.strength is not None:
            check_strength(self.strength)
        if not (self.callback_on_step_end is None or callable(self.callback_on_step_end)):
            raise ValueError(
                f"callback_on_step_end must be a function, not {type(self.callback_on_step_end).__name__}."
            )

    @property
    def shown_tensors(self) -> list[str]:
        """Names of the tensors that the callback is given."""
        callback = self.callback_on_step_end
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            return callback.tensor_inputs
        return list(self.callback_on_step_end_tensor_inputs)


# attndiff.pipelines.base

"""What every pipeline shares: its components, and a call from its checks to its images.

A pipeline of a task adds a `__call__` that reads as the task does: take the options, encode what is told, make the
latents to begin with, sample, and give back images; see `attndiff.pipelines.pipeline_attndiff`.

Shapes: B images, C channels, A aligned channels, H and W of the images, h and w of the latents.
"""




logger = logging.get_logger(__name__)

# Number of the next step and the state before it to that state with what is known of it.
Keep = Callable[[int, torch.Tensor], torch.Tensor]
STEPS, GUIDANCE_SCALE = 20, 3.0  # of a call that names none, unless the kind of model has others


class ImagePipeline(ConditionedPipeline):
    """Sample images with a denoising network.

    Args:
        unet: The denoising network, an `AttentionUNet2DModel`.
        scheduler: A stock scheduler that samples the objective.
        condition_encoder: Turns the condition into the tokens that the network attends to; a `ConditionEncoder`.
        tokenizer: Of captions.
        text_encoder: Frozen pretrained encoder whose hidden states the condition encoder takes instead of tokens.
        vae: Decodes the latents that the network was trained on, if these are not pixels.
        guide: A smaller or less trained network for autoguidance. It is told nothing if it is unconditional, and
            without a ``guide_encoder`` attends to the tokens of ``condition_encoder``, which it must be trained on.
        guide_encoder: The guide's own condition encoder, which reads what ``condition_encoder`` reads.
        objective: What the network predicts; the config of `attndiff.diffusion.objectives.make_objective`.
        data: What is known about the training images: ``channels`` (names), ``bit_depth``, ``value_range`` (what
            [-1, 1] stands for), ``units`` of that, ``class_names``, ``size`` ``[height, width]``, ``alpha`` (that
            colour is multiplied inside by the last channel), and of drawings the colour of their ``ink``.
        student: Of a few-step student, the fields of `attndiff.diffusion.student.StudentRules`.
        task: Settings of the task that the model was made for, those measured on its images among them.
    """

    model_cpu_offload_seq = "text_encoder->condition_encoder->guide_encoder->unet->vae"
    _optional_components = ["condition_encoder", "tokenizer", "text_encoder", "vae", "guide", "guide_encoder"]
    _exclude_from_cpu_offload = ["guide"]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ]
    _network_classes = [AttentionUNet2DModel, ConditionEncoder]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        condition_encoder: ModelMixin | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
        vae: AutoencoderKL | None = None,
        guide: ModelMixin | None = None,
        guide_encoder: ModelMixin | None = None,
        objective: dict | None = None,
        data: dict | None = None,
        student: dict | None = None,
        task: dict | None = None,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            condition_encoder=condition_encoder,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            guide=guide,
            guide_encoder=guide_encoder,
        )
        self.register_to_config(
            objective=make_objective(objective or {}).to_config(), data=data, student=student, task=task
        )
        self._lock = CallLock()

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """A second pipeline on the same weights, each in its precision; threads need one each.

        Args:
            pipeline: Any pipeline that has the components.
            kwargs: Components and settings to replace, and ``dtype`` to cast to.
        """
        # The stock method casts shared weights to float32, and drops networks whose class is a folder's own.
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        components, settings = cls._get_signature_keys(cls)
        parts = {name: part for name, part in pipeline.components.items() if name in components}
        stored = {name: pipeline.config[name] for name in settings if name in pipeline.config}
        made = cls(**{**parts, **stored, **kwargs})
        return made if dtype is None else made.to(dtype=dtype)

    # What is known of the model

    @property
    def objective(self) -> Objective:
        """What the network predicts."""
        return make_objective(self.config.objective)

    @property
    def student(self) -> StudentRules | None:
        """How it is sampled if it is a few-step student."""
        return StudentRules(**self.config.student) if self.config.student else None

    @property
    def image_channels(self) -> int:
        """Channels of the images that it draws."""
        return self.unet.config.out_channels if self.vae is None else self.vae.config.out_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that it draws unless told otherwise: those of the training images."""
        side = self.unet.config.sample_size * self.vae_scale_factor
        return tuple((self.config.data or {}).get("size") or (side, side))

    @property
    def image_side(self) -> int:
        """Its first side."""
        return self.image_size[0]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae is not None else 1

    def own_defaults(self, steps: int | None = None, guidance_scale: float | None = None) -> tuple[int, float]:
        """Steps and guidance as given, else as the kind of model has them."""
        student, can_lead = self.student, self._conditional or self.guide is not None
        if steps is None:
            steps = student.most_steps if student else STEPS
        if guidance_scale is None:
            guidance_scale = GUIDANCE_SCALE if can_lead and not student else 1.0
        return steps, guidance_scale

    # What a callback may look at and change during a call

    @property
    def guidance_scale(self) -> float:
        """The guidance of the call under way; 1 or less is none."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call under way needs the unconditional prediction too."""
        return self._guidance_scale > 1 and self._conditional and self.guide is None

    @property
    def do_autoguidance(self) -> bool:
        """Whether the call under way needs the guide's prediction too."""
        return self._guidance_scale > 1 and self.guide is not None

    @property
    def num_timesteps(self) -> int:
        """Steps of the call under way."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` from a callback to leave out the steps that remain."""
        return self._interrupt

    # The parts of a call

    @contextmanager
    def calling(self, options: CallOptions) -> Iterator[Solver]:
        """The time of a call, in which no other runs; gives its solver.

        Raises:
            ValueError: If the model cannot be sampled like this.
        """
        check_choice("callback_on_step_end_tensor_inputs", options.shown_tensors, self._callback_tensor_inputs)
        check_guide(self.guide, self.guide_encoder, self.condition_encoder)
        steps, sigmas, student = options.num_inference_steps, options.sigmas, self.student
        with self._lock:
            solver = Solver(self.scheduler, self.objective)
            self._guidance_scale, self._interrupt = float(options.guidance_scale), False
            self._check_guidance()
            if options.strength is not None:
                steps = max(1, int(steps * options.strength))
            if student:
                sigmas = sigmas or student.levels(steps)
            solver.set_timesteps(steps, self._execution_device, sigmas)
            if options.strength is not None:
                solver.begin_under(options.strength, sigmas)
            self._num_timesteps = len(solver.timesteps)
            yield solver
            self.maybe_free_model_hooks()

    def given_pixels(self, image) -> torch.Tensor:
        """The argument ``image`` of a call as the network sees it, ``(N, C, H, W)``; raises ValueError, `as_pixels`."""
        pixels = as_pixels(image, self.image_channels, self.config.data).to(self._execution_device)
        return premultiplied(pixels) if is_premultiplied(self.config.data) else pixels

    def prepare_latents(
        self,
        batch: int,
        height: int | None,
        width: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        noise_scale: float,
    ) -> torch.Tensor:
        """The noise ``(B, C, h, w)`` float32 that sampling starts from.

        Args:
            batch: B.
            height: Pixels; those of the training images by default.
            width: Likewise.
            generator: Source of the noise.
            latents: Standard normal noise to take instead.
            noise_scale: Of the solver.
        """
        factor, own = self.vae_scale_factor, self.image_size
        height, width = own[0] if height is None else height, own[1] if width is None else width
        check_size(height, width, self.unet.size_multiple * factor)
        shape = (batch, self.unet.config.out_channels, height // factor, width // factor)
        check_latents(latents, shape)
        check_generators(generator, batch)
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * noise_scale

    def sample(
        self,
        solver: Solver,
        latents: torch.Tensor,
        encoded: EncodedCondition,
        options: CallOptions,
        aligned: torch.Tensor | None = None,
        keep: Keep | None = None,
    ) -> tuple[torch.Tensor, AttentionMaps | None]:
        """Go from noise to a sample.

        Args:
            solver: From `calling`.
            latents: From `prepare_latents`.
            encoded: From `encode`.
            options: Of the call.
            aligned: ``(B, A, h, w)`` channels beside the noisy image, for the network and its guide.
            keep: Puts back what is known after every step.

        Returns:
            Latents ``(B, C, h, w)``, and where each pixel looked if the options ask for it.
        """
        network = self.guided_network(encoded, options, aligned)
        recorder = AttentionRecorder(self.unet, rows=slice(0, len(latents))) if options.output_attention_maps else None
        tensors = {"latents": latents, **encoded.tensors}
        with recorder or nullcontext(), self.progress_bar(total=self._num_timesteps) as progress:
            for step in sampling_steps(network, solver, latents, options.generator):
                if keep is not None:
                    step.latents = keep(step.index + 1, step.latents)
                tensors["latents"] = step.latents
                if options.callback_on_step_end is not None:
                    tensors |= self._called_back(options, step, tensors)
                    encoded = self._led(encoded, tensors)
                    step.latents = tensors["latents"]
                    self._tell(network, encoded, tensors, aligned)
                progress.update()
                if self.interrupt:
                    break
        return tensors["latents"], recorder.maps() if recorder else None

    def _called_back(
        self, options: CallOptions, step: SamplingStep, tensors: dict[str, torch.Tensor | None]
    ) -> dict[str, torch.Tensor | None]:
        """What the callback puts in the place of tensors after a step, checked as arguments of the call are."""
        shown = {name: tensors[name] for name in options.shown_tensors}
        returned = options.callback_on_step_end(self, step.index, step.timestep, shown)
        changed = returned_tensors(returned, tensors)
        if "latents" in changed:
            latents = changed["latents"]
            if latents is None:
                raise ValueError("latents: callback_on_step_end must return a tensor, not None.")
            check_latents(latents, step.latents.shape, "the noisy image")
            changed["latents"] = latents.to(step.latents.device, torch.float32)
        for name in ("prompt", "negative_prompt"):
            names = f"{name}_embeds", f"{name}_attention_mask"
            if changed.keys() & set(names):
                told = self._given_tokens(name, *({**tensors, **changed}[one] for one in names), len(step.latents))
                changed |= dict(zip(names, (told.tokens, told.mask)))
        return changed

    def _led(self, encoded: EncodedCondition, tensors: dict[str, torch.Tensor | None]) -> EncodedCondition:
        """The conditions, with what guidance needs if a callback has turned it on; puts the negative into ``tensors``.

        Raises:
            ValueError: If the model cannot be guided like this.
        """
        self._check_guidance()
        no_negative = self.do_classifier_free_guidance and tensors["negative_prompt_embeds"] is None
        no_guide = self.do_autoguidance and self.guide_encoder is not None and encoded.of_guide is None
        if not (no_negative or no_guide):
            return encoded
        encoded = encoded.again(self.do_classifier_free_guidance, self.do_autoguidance)
        if no_negative:
            tensors |= {name: part for name, part in encoded.tensors.items() if name.startswith("negative_prompt")}
        return encoded

    def _check_guidance(self) -> None:
        """Raise ValueError unless the model can be sampled with the guidance scale of the call under way.

        Where there is nothing to lead away from, that is said once.
        """
        check_guidance(self._guidance_scale)
        if self._guidance_scale > 1 and not self._conditional and self.guide is None:
            logger.warning_once(
                "guidance_scale has no effect: this model has no condition, so that there is nothing to lead away from "
                "and it samples as with guidance_scale=1; leave it out, or give the pipeline a guide."
            )
        if self.student:
            self.student.check(self.scheduler, self._guidance_scale)

    def guided_network(
        self, encoded: EncodedCondition, options: CallOptions, aligned: torch.Tensor | None = None
    ) -> GuidedNetwork:
        """The network under the guidance of a call; arguments as in `sample`."""
        network = GuidedNetwork(self.unet, self.objective, self.guide, options.guidance_interval)
        self._tell(network, encoded, encoded.tensors, aligned)
        return network

    def _tell(
        self,
        network: GuidedNetwork,
        encoded: EncodedCondition,
        tensors: dict[str, torch.Tensor | None],
        aligned: torch.Tensor | None,
    ) -> None:
        """Give a network the conditions, and the guidance, as a callback has left them."""
        network.scale = self._guidance_scale
        positive = Condition(tensors["prompt_embeds"], tensors["prompt_attention_mask"], aligned=aligned)
        negative = None
        if self.do_classifier_free_guidance and tensors["negative_prompt_embeds"] is not None:
            tokens, mask = tensors["negative_prompt_embeds"], tensors["negative_prompt_attention_mask"]
            negative = Condition(tokens, mask, aligned=aligned)
        of_guide = None
        if self.do_autoguidance:
            own = encoded.of_guide and replace(encoded.of_guide, aligned=aligned)
            of_guide = positive if self.guide_encoder is None else own
        network.prepare(positive, negative, of_guide)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents ``(B, C, h, w)`` of images in [-1, 1]."""
        if self.vae is None:
            return pixels
        found = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        return (found - (getattr(self.vae.config, "shift_factor", None) or 0.0)) * self.vae.config.scaling_factor

    def decode_latents(self, latents: torch.Tensor, output_type: str, size: tuple[int, int] | None = None):
        """Images of sampled latents ``(B, C, h, w)``, in an output type; of a size, without what goes beyond it."""
        if output_type == "latent":
            return latents
        if self.vae is not None:
            config = self.vae.config
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
            latents = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()
        if size is not None:
            latents = latents[..., : size[0], : size[1]]
        return to_output(latents, self.config.data, output_type)


# attndiff.pipelines.call.output

"""What a call returns."""





@dataclass
class AttnDiffPipelineOutput(BaseOutput):
    """What a call returns.

    Args:
        images: List of pictures or arrays, array ``(B, H, W, C)`` or tensor ``(B, C, H, W)``, as ``output_type`` says.
        attention_maps: Where each pixel looked, if it was asked for.
    """

    images: list[Image.Image] | list[np.ndarray] | np.ndarray | torch.Tensor
    attention_maps: AttentionMaps | None = None


def as_output(images, maps: AttentionMaps | None, return_dict: bool) -> AttnDiffPipelineOutput | tuple:
    """What a call returns, as the output or as a tuple of what there is."""
    if return_dict:
        return AttnDiffPipelineOutput(images=images, attention_maps=maps)
    return (images,) if maps is None else (images, maps)


# attndiff.pipelines.pipeline_attndiff

"""Sampling from text, from a class, or from nothing.

Shapes: P prompts, B = P * num_images_per_prompt images, S condition tokens, C channels, h and w of the latents.
"""




class AttnDiffPipeline(ImagePipeline):
    """Sample images from captions, classes, or unconditionally; its arguments are those of `ImagePipeline`."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        sigmas: list[float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        output_attention_maps: bool = False,
    ) -> AttnDiffPipelineOutput | tuple:
        """Sample images.

        Args:
            prompt: One caption or several; what goes beyond the tokenizer's length is cut, with a warning, and an empty
                one is no condition.
            class_labels: Numbers or names of classes, one for each prompt.
            height: Pixels; that of the training images by default. Multiples of the network's ``size_multiple`` work.
            width: Likewise.
            num_inference_steps: Steps of the scheduler; by default 20, or the most that a few-step student was made
                for.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all. By default 3, or 1
                for a student.
            guidance_interval: The noise levels to do so at, as noise / (noise + signal): 0 is clean, 1 noise alone
                (arXiv 2404.07724).
            negative_prompt: What to lead away from instead of the learned null; one for all prompts or one for each.
            num_images_per_prompt: Images of every prompt, side by side in the result.
            generator: Source of the noise; a list of one for each image gives the images that single calls give.
            latents: Standard normal noise ``(B, C, h, w)`` to begin with instead.
            prompt_embeds: Condition tokens ``(P, S, C)`` instead of a prompt; not where a guide has its own encoder,
                which cannot read them.
            prompt_attention_mask: ``(P, S)`` bool, true for tokens that count; all by default.
            negative_prompt_embeds: Tokens to lead away from, instead of a negative prompt.
            negative_prompt_attention_mask: Their mask.
            sigmas: The objective's noise levels to step through instead of ``num_inference_steps``, falling, without 0.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see `to_output`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.
            callback_on_step_end: Called as ``callback(pipeline, step, timestep, tensors)`` after every step; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: Which tensors it is given.
            output_attention_maps: Record which token each pixel attended to; the pixels stay the same.

        Raises:
            ValueError: If an argument is wrong, or the scheduler does not fit the objective.
        """
        options = CallOptions(
            *self.own_defaults(num_inference_steps, guidance_scale),
            guidance_interval=guidance_interval,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            sigmas=sigmas,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            output_attention_maps=output_attention_maps,
        )
        given = GivenCondition(
            prompt,
            class_labels,
            negative_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            encoded = self.encode(given, num_images_per_prompt, *guided)
            batch = encoded.positive.rows or num_images_per_prompt
            latents = self.prepare_latents(batch, height, width, generator, latents, solver.noise_scale)
            latents, maps = self.sample(solver, latents, encoded, options)
            images = self.decode_latents(latents, output_type)
        return as_output(images, maps, return_dict)
