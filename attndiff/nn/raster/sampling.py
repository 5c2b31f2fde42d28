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


@torch.no_grad()
def draw_patches(
    model: PixelTransformerModel,
    batch: int,
    generator: torch.Generator | None = None,
    key_values: list[KeyValue] | None = None,
    condition_mask: torch.Tensor | None = None,
    warp: LogitsProcessorList | None = None,
) -> Iterator[torch.Tensor]:
    """Draw images.

    Args:
        model: The network.
        batch: B.
        generator: Source of chance, on the model's device.
        key_values: Of the condition, `PixelTransformerModel.key_values`.
        condition_mask: ``(B, M)`` bool, true for condition tokens that count.
        warp: From `warpers`.

    Yields:
        After every patch all values so far in order, ``(B, N, K)`` int64; `PixelTransformerModel.absent` where none is
        yet.
    """
    values = model.values_of_patch
    sequence = torch.full((batch, model.grid**2, values), model.absent, device=model.device)
    cache = DynamicCache()
    for n in range(model.grid**2):
        patch = slice(n, n + 1)
        seen = model.neighbours_of_patches(sequence, patch)
        said = model.read_patches(seen, key_values, condition_mask, cache, first=n)[:, 0]  # (B, E)
        of_patch = DynamicCache()
        for k in range(values):
            before = sequence[:, n, k - 1 : k] if k else torch.full_like(sequence[:, n, :1], model.absent)
            beside = model.neighbours_of_values(sequence, patch)[:, 0, k : k + 1]
            logits = model.read_values(said, before, beside, of_patch, first=k)[:, 0].float()  # (B, V)
            logits = warp(before, logits) if warp else logits
            sequence[:, n, k] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        yield sequence
