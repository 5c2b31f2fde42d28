"""Images drawn by a `PixelTransformerModel`, patch after patch, with what was computed for earlier ones kept.

Shapes: B images, C channels, H rows, W columns, N patches, K values of a patch, M condition tokens, V levels.
"""

from collections.abc import Iterator

import torch
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from attndiff.nn.decoder import KeyValue
from attndiff.nn.raster.model import PixelTransformerModel


def warpers(temperature: float, top_p: float) -> LogitsProcessorList:
    """What is done to logits before a value is drawn.

    Args:
        temperature: Above 0; less than 1 draws likelier values.
        top_p: In (0, 1]; values are drawn from the likeliest ones that have this probability together.
    """
    made = LogitsProcessorList()
    if temperature != 1:
        made.append(TemperatureLogitsWarper(temperature))
    if top_p < 1:
        made.append(TopPLogitsWarper(top_p))
    return made


def draw_patches(
    model: PixelTransformerModel,
    chance: torch.Tensor,
    key_values: list[KeyValue] | None = None,
    condition_mask: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    warp: LogitsProcessorList | None = None,
) -> Iterator[torch.Tensor]:
    """Draw images, each by its own chance.

    Args:
        model: The network.
        chance: Uniform in [0, 1), ``(B, N, K)``: a value is the one at which its distribution passes this number.
        key_values: Of the condition, `PixelTransformerModel.key_values`; under guidance of B conditions and then of
            what to lead away from, 2 B rows.
        condition_mask: Likewise ``(B | 2 B, M)`` bool, true for condition tokens that count.
        guidance_scale: How far to lead away, as for noise (arXiv 2207.12598, Eq. 6), here of logits; 1 is not at all.
        warp: From `warpers`.

    Yields:
        After every patch all values so far in order, ``(B, N, K)`` int64; `PixelTransformerModel.absent` where none is
        yet.
    """
    guided = guidance_scale != 1
    sequence = torch.full_like(chance, model.absent, dtype=torch.int64)
    sequence = sequence.repeat(2, 1, 1) if guided else sequence  # (B | 2 B, N, K)
    cache = DynamicCache()
    for n in range(model.grid**2):
        patch = slice(n, n + 1)
        seen = model.neighbours_of_patches(sequence, patch)
        said = model.read_patches(seen, key_values, condition_mask, cache, first=n)[:, 0]  # (B | 2 B, E)
        of_patch = DynamicCache()
        for k in range(model.values_of_patch):
            before = sequence[:, n, k - 1 : k] if k else torch.full_like(sequence[:, n, :1], model.absent)
            beside = model.neighbours_of_values(sequence, patch)[:, 0, k : k + 1]
            logits = model.read_values(said, before, beside, of_patch, first=k)[:, 0].float()
            if guided:
                told, untold = logits.chunk(2)
                logits = untold + guidance_scale * (told - untold)  # (B, V)
            logits = warp(before, logits) if warp else logits
            value = drawn_value(logits, chance[:, n, k])
            sequence[:, n, k] = value.repeat(2) if guided else value
        yield sequence[: len(chance)]


def drawn_value(logits: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Values ``(B,)`` int64 of the distributions of logits ``(B, V)``, by uniform numbers ``(B,)``."""
    likely = logits.isfinite()  # what has been ruled out is not drawn for a rounding either
    reached = likely & (logits.softmax(-1).cumsum(-1) > chance[:, None].float())
    last = logits.shape[-1] - 1 - likely.flip(-1).int().argmax(-1)  # where rounding leaves the sum below the number
    return torch.where(reached.any(-1), reached.int().argmax(-1), last)
