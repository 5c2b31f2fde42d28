"""AttnDiffCaptionPipeline, in one file that needs torch, diffusers and transformers only.

SPDX-License-Identifier: Apache-2.0
"""

import glob
import hashlib
import importlib
import json
import math
import numpy as np
import os
import re
import sys
import threading
import torch
import torch.nn.functional as F
from PIL import Image
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import fields
from dataclasses import replace
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils import logging
from functools import partial
from huggingface_hub import snapshot_download
from numbers import Integral
from pathlib import Path
from torch import nn
from transformers import Cache
from transformers import GenerationMixin
from transformers import PreTrainedConfig
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing import Any
from typing import ClassVar
from typing import Protocol


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


# attndiff.diffusion.features

"""What a denoising network sees in an image: the outputs of its decoder at little noise (arXiv 2112.03126).

Shapes: B images, C channels, H and W of an image, h and w of a level, N = h * w places, F features.
"""




RATIO = 0.1  # noise over signal that the network is told; none is added, so that an image has its features for certain


def decoder_stages(unet: AttentionUNet2DModel) -> list[Stage]:
    """Those from the coarsest level on that have blocks."""
    return [stage for stage in unet.stages()[len(unet.down_blocks) :] if len(stage.blocks)]


def feature_channels(unet: AttentionUNet2DModel) -> int:
    """F of `decoder_features`."""
    return sum(stage.spec.width for stage in decoder_stages(unet))


def features_grid(unet: AttentionUNet2DModel, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the features of an image: those of the finest level but one, a quarter as many tokens."""
    return unet.grid_size(min(1, len(unet.level_specs) - 1), height, width)


@torch.no_grad()
def decoder_features(unet: AttentionUNet2DModel, objective: Objective, images: torch.Tensor) -> torch.Tensor:
    """Features of images, ``(B, N, F)``: of all levels, normalised over channels, on the grid of `features_grid`.

    Args:
        unet: The network, told no condition.
        objective: What it learned to predict.
        images: ``(B, C, H, W)`` in [-1, 1].
    """
    level = objective.level_from_log_ratio(torch.full((len(images),), math.log(RATIO), device=images.device))
    x = objective.scale_input(objective.add_noise(images, torch.zeros_like(images), level), level)
    seen: dict[str, torch.Tensor] = {}
    stages = decoder_stages(unet)
    handles = [stage.blocks[-1].register_forward_hook(partial(_keep, seen, stage.name)) for stage in stages]
    try:
        unet(x.to(unet.dtype), objective.coordinate(level))
    finally:
        for handle in handles:
            handle.remove()
    size = features_grid(unet, *images.shape[-2:])
    each = [F.layer_norm(one.float(), one.shape[-1:]).permute(0, 3, 1, 2) for one in seen.values()]  # (B, F, h, w)
    return torch.cat([F.interpolate(one, size=size, mode="area") for one in each], dim=1).flatten(2).transpose(1, 2)


def _keep(seen: dict[str, torch.Tensor], name: str, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
    seen[name] = output  # (B, h, w, F)


def seen_multiple(encoder: ConditionEncoder, unet: AttentionUNet2DModel | None = None) -> int:
    """What sides of images are multiples of: of patches where there are some, and of what ``unet`` takes."""
    patch = encoder.config.image_patch_size if "image" in encoder.streams else 1
    return math.lcm(patch, 1 if unet is None else unet.size_multiple)


def image_streams(
    encoder: ConditionEncoder,
    images: torch.Tensor,
    unet: AttentionUNet2DModel | None = None,
    objective: Objective | None = None,
) -> dict[str, torch.Tensor]:
    """What an encoder of images takes of them: patches, features of a denoising network, or both.

    Args:
        encoder: With a stream of patches, of context, or both.
        images: ``(B, C, H, W)`` in [-1, 1].
        unet: Of the features; None where the encoder has no context.
        objective: What ``unet`` learned to predict.
    """
    streams = {"pixel_values": images} if "image" in encoder.streams else {}
    return streams if unet is None else {**streams, "context": decoder_features(unet, objective, images)}


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


# attndiff.nn.decoder

"""The Transformer decoder: tokens that attend to those before them and to a condition (arXiv 1706.03762, section 3.1).

Shapes: B batch, L tokens that are given, S tokens so far, those in the cache included, M condition tokens, C channels,
H heads, D channels per head, F rotated pairs, V tokens of the vocabulary.
"""




KeyValue = tuple[torch.Tensor, torch.Tensor]


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, cross-attention to the condition and gated feed-forward.

    Args:
        dim: Channels.
        head_dim: Channels per attention head.
        cross_attention_dim: Channels of the condition tokens; None leaves cross-attention out.
        dropout: Dropout probability of what attention and feed-forward add.
    """

    def __init__(self, dim: int, head_dim: int, cross_attention_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.norm_attn = nn.LayerNorm(dim, bias=False)
        self.attn = Attention(dim, head_dim, dropout=dropout)
        self.norm_cross = nn.LayerNorm(dim, bias=False) if cross_attention_dim else None
        self.cross_attn = Attention(dim, head_dim, cross_attention_dim, dropout) if cross_attention_dim else None
        self.norm_ff = nn.LayerNorm(dim, bias=False)
        self.ff = FeedForward(dim, dropout)

    def forward(
        self,
        x: torch.Tensor,  # (B, L, C)
        rotation: Rotation,  # 2 x (N, L, 1, F), where N divides B
        mask: torch.Tensor | None = None,  # (B, 1, L, S) additive; None: causal
        remember: Remember | None = None,
        key_value: KeyValue | None = None,  # 2 x (B, M, H, D)
        condition_mask: torch.Tensor | None = None,  # (B, 1, 1, M) additive
    ) -> torch.Tensor:
        causal = mask is None and x.shape[1] > 1
        x = x + self.attn(self.norm_attn(x), rotation=rotation, attention_mask=mask, causal=causal, remember=remember)
        if self.cross_attn is not None and key_value is not None:
            x = x + self.cross_attn(self.norm_cross(x), key_value=key_value, attention_mask=condition_mask)
        return x + self.ff(self.norm_ff(x))


class TransformerDecoder(nn.Module):
    """A stack of `DecoderBlock`, with what they attend to beside the tokens that are given.

    >>> decoder = TransformerDecoder(64, num_layers=2, head_dim=16, cross_attention_dim=32)
    >>> x, condition = torch.randn(3, 10, 64), torch.randn(3, 7, 32)
    >>> decoder(x, key_values=decoder.key_values(condition)).shape
    torch.Size([3, 10, 64])

    Args:
        dim: C, channels.
        num_layers: Blocks.
        head_dim: D, channels per attention head; a multiple of 8.
        cross_attention_dim: Channels of the condition tokens; None for a decoder without a condition.
        dropout: Dropout probability inside blocks.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        head_dim: int = 32,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, head_dim, cross_attention_dim, dropout) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, bias=False)
        self.gradient_checkpointing = False

    def key_values(self, condition: torch.Tensor) -> list[KeyValue]:
        """Keys and values, 2 x ``(B, M, H, D)`` of every block, of condition tokens ``(B, M, cross_attention_dim)``.

        They do not depend on the other tokens, so that a condition needs them once.
        """
        return [block.cross_attn.key_value(condition) for block in self.blocks]

    def forward(
        self,
        x: torch.Tensor,
        counting: torch.Tensor | None = None,
        key_values: list[KeyValue] | None = None,
        condition_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        angles: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode tokens.

        Args:
            x: ``(B, L, C)``; with a cache, the tokens after those that are in it.
            counting: ``(B, S)`` bool, false for padding, which no other token attends to; of all tokens so far. All
                count by default.
            key_values: From `key_values`; None attends to no condition.
            condition_mask: ``(B, M)`` bool, true for condition tokens that count; all do by default.
            cache: Keys and values of the tokens so far, to which those of ``x`` are added.
            angles: Rotary angles ``(N, L, F)`` of ``x``, N dividing B; by default those of its places in the sequence,
                padding left out.

        Returns:
            ``(B, L, C)``, normalised.

        Raises:
            ValueError: If the batch is not that of the cache, or ``counting`` is not of all tokens so far.
        """
        past = cache.get_seq_length() if cache is not None else 0
        self._check(x, counting, cache, past)
        mask = None
        if counting is not None or (past and x.shape[1] > 1):  # one token after all others may look at all of them
            all_count = torch.ones(len(x), past + x.shape[1], dtype=torch.bool, device=x.device)
            mask = additive_mask(causal_mask(all_count if counting is None else counting, x.shape[1]), x.dtype)
        if angles is None:
            angles = angles_at(self._places(x, counting, past), self.head_dim)
        told = None if condition_mask is None else additive_mask(condition_mask, x.dtype)
        rotation = cos_sin(angles)
        for i, block in enumerate(self.blocks):
            remember = None if cache is None else partial(_remember, cache, i)
            x = self._call(block, x, rotation, mask, remember, key_values[i] if key_values else None, told)
        return self.norm_out(x)

    @staticmethod
    def _check(x: torch.Tensor, counting: torch.Tensor | None, cache: Cache | None, past: int) -> None:
        if past and len(cache.layers[0].keys) != len(x):
            raise ValueError(f"the cache is of {len(cache.layers[0].keys)} rows, and {len(x)} are given: start anew.")
        if counting is not None and counting.shape != (len(x), past + x.shape[1]):
            raise ValueError(
                f"the mask is {tuple(counting.shape)}, and with those in the cache there are "
                f"{len(x)} rows of {past + x.shape[1]} tokens."
            )

    @staticmethod
    def _places(x: torch.Tensor, counting: torch.Tensor | None, past: int) -> torch.Tensor:
        """Places ``(N, L)`` of the tokens in their sequences; padding has that of the token before it."""
        if counting is None:
            return torch.arange(past, past + x.shape[1], device=x.device)[None]
        return (counting.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]

    def _call(self, block: DecoderBlock, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


def _remember(cache: Cache, layer: int, key: torch.Tensor, value: torch.Tensor) -> KeyValue:
    """Add keys and values ``(B, L, H, D)`` to a layer's; all of them ``(B, S, H, D)``."""
    key, value = cache.update(key.transpose(1, 2), value.transpose(1, 2), layer)
    return key.transpose(1, 2), value.transpose(1, 2)


class TiedEmbedding(nn.Embedding):
    """Embeds tokens, and reads them from channels (arXiv 1608.05859); offloading hooks wrap nothing but a call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, L, C)`` of tokens ``(B, L)``, or logits ``(B, L, V)`` of channels ``(B, L, C)``."""
        return F.linear(x, self.weight.to(x.dtype)) if x.is_floating_point() else super().forward(x)


@dataclass
class TextDecoderOutput(BaseOutput):
    """``logits (B, L, V)``: of the token after each."""

    logits: torch.Tensor


class TextDecoderModel(ModelMixin, ConfigMixin, AttentionMixin):
    """A text, token after token, that may attend to a condition.

    >>> model = TextDecoderModel(vocab_size=100, hidden_size=64, head_dim=16, cross_attention_dim=32)
    >>> ids = torch.tensor([[1, 5, 9]])
    >>> model(ids, encoder_hidden_states=torch.randn(1, 16, 32)).logits.shape
    torch.Size([1, 3, 100])

    Args:
        vocab_size: V.
        hidden_size: Channels.
        num_layers: Blocks.
        head_dim: Channels per attention head; a multiple of 8.
        cross_attention_dim: Channels of the condition tokens, or None without a condition.
        max_length: Tokens of a text at most.
        dropout: Dropout probability of embeddings and inside blocks.
        token_dropout: Probability of a whole token to be left out of what later ones see (arXiv 1511.06349, section
            3.1): without what was said before, it is the condition that has to be looked at.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]
    _repeated_blocks = ["DecoderBlock"]
    _skip_layerwise_casting_patterns = ["norm", "embedding"]

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 192,
        num_layers: int = 3,
        head_dim: int = 32,
        cross_attention_dim: int | None = None,
        max_length: int = 48,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding = TiedEmbedding(vocab_size, hidden_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.drop_embedding, self.drop_tokens = nn.Dropout(dropout), nn.Dropout1d(token_dropout)
        self.decoder = TransformerDecoder(hidden_size, num_layers, head_dim, cross_attention_dim, dropout)

    def key_values(self, encoder_hidden_states: torch.Tensor) -> list[KeyValue]:
        """As of `TransformerDecoder.key_values`."""
        return self.decoder.key_values(encoder_hidden_states.to(self.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        key_values: list[KeyValue] | None = None,
        past_key_values: Cache | None = None,
        return_dict: bool = True,
    ) -> TextDecoderOutput | tuple[torch.Tensor]:
        """Logits of every token's successor.

        Args:
            input_ids: ``(B, L)`` int64; with a cache, the tokens after those that are in it.
            attention_mask: ``(B, S)``, nonzero for tokens that count, of all tokens so far.
            encoder_hidden_states: Condition tokens ``(B, M, cross_attention_dim)``.
            encoder_attention_mask: ``(B, M)``, nonzero for condition tokens that count.
            key_values: What `key_values` makes of the condition tokens, instead of them.
            past_key_values: Cache of the tokens so far; grows by those that are given.
            return_dict: Return `TextDecoderOutput` rather than a tuple.

        Raises:
            ValueError: If a condition is given that the model was not made for or the other way round, or the cache is
                of another batch.
        """
        if key_values is None and encoder_hidden_states is not None and self.config.cross_attention_dim is not None:
            key_values = self.key_values(encoder_hidden_states)
        given = key_values is not None or encoder_hidden_states is not None
        if given != (self.config.cross_attention_dim is not None):
            takes = "no condition: leave it out" if given else "a condition: give encoder_hidden_states"
            raise ValueError(f"this decoder takes {takes}.")
        counting = None if attention_mask is None else attention_mask.bool()
        told = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        x = self.drop_tokens(self.drop_embedding(self.embedding(input_ids)))  # (B, L, C)
        x = self.decoder(x, counting, key_values, told, past_key_values)
        logits = self.embedding(x)
        return TextDecoderOutput(logits) if return_dict else (logits,)


# attndiff.lens.words_seen

"""Where a decoder of texts looks in an image for every word that it writes.

Shapes: B images, L tokens of a text, S condition tokens, h and w rows and columns of what is seen.
"""





@torch.no_grad()
def words_seen(
    decoder: TextDecoderModel, ids: torch.Tensor, seen: torch.Tensor, grids: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """Attention to places for every token, ``(L, h, w)`` float32 of each text, averaged over heads and blocks.

    That of a token is what the one before it attended to, when it was chosen; the first is chosen by nobody and has
    zeros.

    Args:
        decoder: The network.
        ids: Texts, ``(B, L)`` int64, padded at the end.
        seen: What it attends to, ``(B, S, C)``.
        grids: Rows and columns of each kind of its tokens, one after another; h and w are those of the first.
    """
    found: list[torch.Tensor] = []
    layers = [block.cross_attn for block in decoder.decoder.blocks]
    handles = [layer.register_forward_hook(partial(_record, found), with_kwargs=True) for layer in layers]
    try:
        decoder(ids, encoder_hidden_states=seen)
    finally:
        for handle in handles:
            handle.remove()
    weights = torch.stack(found).mean(0)  # (B, L, S)
    parts = weights.split([rows * columns for rows, columns in grids], dim=2)
    maps = sum(_on_grid(part.unflatten(2, grid), grids[0]) for part, grid in zip(parts, grids, strict=True))
    maps = torch.cat([torch.zeros_like(maps[:, :1]), maps[:, :-1]], dim=1)
    return list(maps.cpu())


def _on_grid(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Maps ``(B, L, rows, columns)`` on another grid, their sums as they were."""
    sums = maps.sum((2, 3), keepdim=True)
    maps = F.interpolate(maps, size=grid, mode="nearest-exact")
    return maps / maps.sum((2, 3), keepdim=True).clamp_min(1e-12) * sums


def _record(found: list[torch.Tensor], attn: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
    """After a layer of cross-attention: its probabilities ``(B, L, S)``."""
    found.append(attention_weights(attn.query(args[0]), kwargs["key_value"][0]).mean(1))


# attndiff.nn.generation

"""Texts from a `TextDecoderModel` by the search of `transformers`: greedy, beams, sampling and all that it knows.

Shapes: B batch, L tokens that are given, S tokens so far, M condition tokens, C channels, V tokens of the vocabulary.
"""




class TextGenerationConfig(PreTrainedConfig):
    """What the search needs to know of a decoder."""

    model_type = "attndiff_text_decoder"


class TextGenerator(PreTrainedModel, GenerationMixin):
    """A decoder as `generate` of `transformers` takes it; the decoder is shared, and this is not saved.

    >>> decoder = TextDecoderModel(vocab_size=100, hidden_size=64, head_dim=16, cross_attention_dim=32).eval()
    >>> generator = TextGenerator(decoder, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    >>> start, condition = torch.tensor([[1], [1]]), torch.randn(2, 16, 32)
    >>> ids = generator.generate(start, encoder_hidden_states=condition, num_beams=4, max_new_tokens=5)
    >>> len(ids), ids.shape[1] <= 6
    (2, True)

    Args:
        decoder: The network.
        bos_token_id: Token that a text begins with.
        eos_token_id: Token that ends it.
        pad_token_id: Token that stands for none.
    """

    config_class = TextGenerationConfig
    main_input_name = "input_ids"
    _supports_attention_backend = True

    def __init__(self, decoder: TextDecoderModel, bos_token_id: int, eos_token_id: int, pad_token_id: int):
        config = TextGenerationConfig(
            vocab_size=decoder.config.vocab_size,
            num_hidden_layers=decoder.config.num_layers,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
        super().__init__(config)
        self.decoder = decoder
        self._condition: torch.Tensor | None = None
        self._key_values: list[KeyValue] | None = None

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Cache | None = None, **kwargs
    ) -> dict[str, torch.Tensor | Cache | None]:
        """What `forward` is given at a step: the tokens that are not in the cache yet, and the condition.

        Args:
            input_ids: ``(B, S)``, all tokens so far.
            past_key_values: Cache of the tokens before.
            kwargs: ``attention_mask (B, S)``, ``encoder_hidden_states (B, M, C)``, ``encoder_attention_mask (B, M)``.
        """
        told = {
            name: kwargs.get(name) for name in ("attention_mask", "encoder_hidden_states", "encoder_attention_mask")
        }
        known = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {"input_ids": input_ids[:, known:], "past_key_values": past_key_values, **told}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits ``(B, L, V)`` of every token's successor; arguments as of `TextDecoderModel.forward`."""
        logits = self.decoder(
            input_ids,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            self._key_values_of(encoder_hidden_states),
            past_key_values,
        ).logits
        return CausalLMOutputWithPast(logits=logits.float(), past_key_values=past_key_values)

    def _key_values_of(self, condition: torch.Tensor | None) -> list[KeyValue] | None:
        """Those of the condition, made once a search: all its steps are given the same tensor."""
        if condition is None:
            return None
        if self._condition is not condition:
            self._condition, self._key_values = condition, self.decoder.key_values(condition)
        return self._key_values


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


# attndiff.pipelines.call.offloading

"""Offloaded networks, where parts of them are called that are not their ``forward``."""



def to_its_device(module: nn.Module) -> None:
    """Bring a network to where it computes, as a call of it does: hooks of ``accelerate`` wrap nothing but that."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)


# attndiff.pipelines.pipeline_caption

"""Captions of images.

Shapes: B images, C channels, H and W of an image, S condition tokens, L tokens of a caption, h and w of what is seen.
"""




AT_ONCE = 64  # images that are looked at together, so that memory does not grow with their number


@dataclass
class CaptionOutput(BaseOutput):
    """What a call returns.

    Args:
        captions: One an image.
        tokens: The tokens of each, if attention maps were asked for.
        attention_maps: Where the model looked for each of them, ``(L, h, w)`` float32, which sums to one over the
            image; likewise.
    """

    captions: list[str]
    tokens: list[list[str]] | None = None
    attention_maps: list[torch.Tensor] | None = None

    @property
    def generated_text(self) -> list[str]:
        """The captions, as pipelines of ``transformers`` call them."""
        return self.captions


class AttnDiffCaptionPipeline(SelfContainedPipeline):
    """Write captions of images.

    Args:
        text_decoder: Writes; a `TextDecoderModel`.
        condition_encoder: Of the image; a `ConditionEncoder`.
        tokenizer: Of captions.
        unet: A denoising network whose features of an image are seen, an `AttentionUNet2DModel`.
        objective: What ``unet`` predicts; the config of `attndiff.diffusion.objectives.make_objective`.
        data: What is known about the training images, as of `attndiff.pipelines.base.ImagePipeline`.
        task: Settings of the task.
    """

    model_cpu_offload_seq = "unet->condition_encoder->text_decoder"
    _optional_components = ["unet"]
    _network_classes = [TextDecoderModel, ConditionEncoder, AttentionUNet2DModel]

    def __init__(
        self,
        text_decoder: ModelMixin,
        condition_encoder: ModelMixin,
        tokenizer: PreTrainedTokenizerBase,
        unet: ModelMixin | None = None,
        objective: dict | None = None,
        data: dict | None = None,
        task: dict | None = None,
    ):
        super().__init__()
        self.register_modules(
            text_decoder=text_decoder, condition_encoder=condition_encoder, tokenizer=tokenizer, unet=unet
        )
        self.register_to_config(objective=objective, data=data, task=task)
        self._lock = CallLock()

    @property
    def image_channels(self) -> int:
        """Channels of the images that it sees."""
        return len(self.config.data["channels"])

    @property
    def image_side(self) -> int:
        """Pixels a side of what it sees."""
        return self.config.data["size"][0]

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str = "",
        max_new_tokens: int | None = None,
        num_beams: int = 4,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        length_penalty: float = 0.7,
        generate_kwargs: dict[str, Any] | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        output_attention_maps: bool = False,
    ) -> CaptionOutput | tuple:
        """Write a caption of every image.

        Args:
            image: Pictures, which may differ in size, or arrays ``(B, H, W, C)``, or a tensor ``(B, C, H, W)`` in
                [0, 1]. What is not of the size of the training images is seen as its middle square in that size.
            prompt: How captions begin.
            max_new_tokens: At most; by default as many as in training.
            num_beams: Texts that are kept while searching; 1 takes the likeliest token each time.
            do_sample: Draw tokens by their likelihood.
            temperature: Above 0; less than 1 draws likelier tokens.
            top_p: In (0, 1]: tokens are drawn from the likeliest ones that have this probability together.
            length_penalty: Of beams: above 0 for longer captions, below for shorter ones.
            generate_kwargs: Whatever else `transformers.GenerationMixin.generate` takes.
            generator: Source of chance of what is drawn; the global one by default.
            return_dict: Return `CaptionOutput` rather than a tuple.
            output_attention_maps: Say where the model looked for every token.

        Raises:
            ValueError: If an argument is wrong.
        """
        start = self._start(prompt)
        longest = self.text_decoder.config.max_length
        most = longest - start.shape[1] if max_new_tokens is None else max_new_tokens
        _check_search(most, longest - start.shape[1], num_beams, temperature, top_p)
        images = self._images(image)
        search = {"max_new_tokens": most, "num_beams": num_beams, "do_sample": do_sample}
        if do_sample:
            search |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
        if num_beams > 1:
            search |= {"length_penalty": length_penalty}
        captions, tokens, maps = [], [], []
        with self._lock, _drawing_from(generator), self.progress_bar(total=len(images)) as progress:
            for batch in images.split(AT_ONCE):
                seen = self._see(batch)
                ids = self._write(start, seen, {**search, **(generate_kwargs or {})})
                captions += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                if output_attention_maps:
                    tokens += [self.tokenizer.convert_ids_to_tokens(row) for row in ids]
                    maps += words_seen(self.text_decoder, ids, seen.tokens, self._grids(batch))
                progress.update(len(batch))
            self.maybe_free_model_hooks()
        captions = [caption.strip() for caption in captions]
        if not return_dict:
            return (captions, tokens, maps) if output_attention_maps else (captions,)
        return CaptionOutput(captions, tokens or None, maps or None)

    # The parts of a call

    def _start(self, prompt: str) -> torch.Tensor:
        """The tokens that captions begin with, ``(1, L)``."""
        if not isinstance(prompt, str):
            raise ValueError(f"prompt must be a text, with which all captions begin, not {describe_type(prompt)}.")
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"].to(self._execution_device)
        longest = self.text_decoder.config.max_length
        if ids.shape[1] >= longest:
            raise ValueError(
                f"prompt has {ids.shape[1]} tokens, and captions of this model have {longest} at most: shorten it."
            )
        return ids

    def _images(self, image) -> torch.Tensor:
        """Images as they were trained on, ``(B, C, H, W)`` in [-1, 1]."""
        data = self.config.data
        each = list(image) if isinstance(image, (list, tuple)) else [image]
        if not each:
            raise ValueError("image is an empty list: give at least one.")
        size = tuple(data["size"])
        pixels = [_of_size(as_pixels(one, len(data["channels"]), data), size) for one in each]
        images = torch.cat(pixels).to(self._execution_device)
        return premultiplied(images) if is_premultiplied(data) else images

    def _see(self, images: torch.Tensor) -> Condition:
        """What the decoder is told of images ``(B, C, H, W)``."""
        seen_by = () if self.unet is None else (self.unet, make_objective(self.config.objective))
        streams = image_streams(self.condition_encoder, images, *seen_by)
        return Condition.encoded(self.condition_encoder, **streams)

    def _grids(self, images: torch.Tensor) -> list[tuple[int, int]]:
        """Rows and columns of each kind of tokens that the encoder makes of images."""
        height, width = images.shape[-2:]
        side = self.condition_encoder.config.image_patch_size
        patches = [(height // side, width // side)] if "image" in self.condition_encoder.streams else []
        return patches if self.unet is None else [*patches, features_grid(self.unet, height, width)]

    def _write(self, start: torch.Tensor, seen: Condition, search: dict[str, Any]) -> torch.Tensor:
        """Tokens of a caption of each image, ``(B, L)`` int64, padded at the end."""
        tokenizer = self.tokenizer
        to_its_device(self.text_decoder)
        writer = TextGenerator(
            self.text_decoder, tokenizer.bos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
        )
        try:
            return writer.generate(
                start.expand(seen.rows, -1),
                attention_mask=torch.ones_like(start).expand(seen.rows, -1),
                encoder_hidden_states=seen.tokens,
                encoder_attention_mask=seen.token_mask,
                **search,
            )
        except (TypeError, ValueError) as error:  # of arguments that generate does not know or take together
            raise ValueError(f"generate_kwargs: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def _drawing_from(generator: torch.Generator | None):
    """Have what is drawn inside depend on a generator, and nothing outside: ``generate`` takes none."""
    if generator is None:
        yield
        return
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, not {describe_type(generator)}.")
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
        yield


def _of_size(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images ``(B, C, H, W)`` of a size, by their middle of its shape."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = min(height / size[0], width / size[1])
    inner = [max(1, round(side * scale)) for side in size]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    middle = images[..., top : top + inner[0], left : left + inner[1]]
    return F.interpolate(middle, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def _check_search(most: int, room: int, beams: int, temperature: float, top_p: float) -> None:
    """Raise ValueError unless a search can be made with these numbers."""
    for name, value in {"max_new_tokens": most, "num_beams": beams}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, not {value!r}.")
    if most > room:
        raise ValueError(f"max_new_tokens: this model has learned captions of {room} more tokens at most, not {most}.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, such as 0.7, not {temperature!r}; do_sample=False draws none.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p!r}.")
