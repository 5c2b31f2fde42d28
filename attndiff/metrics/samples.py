"""Samples to be measured: one for each prompt, as tensors of the data's own depth."""

from dataclasses import dataclass

import torch

from attndiff.alpha import has_alpha, premultiplied
from attndiff.errors import UserError
from attndiff.progress import progress
from attndiff.tasks.prompts import Value, prompt_of

BATCH = 50


@dataclass
class EvaluationSettings:
    """How samples are drawn and divided; stands beside every number.

    Args:
        steps: Sampling steps.
        guidance: Guidance scale.
        seed: Of the first sample, of the choice of real images, and of the classifier.
        by: A column that says of which kind a held-out image is: what tells of captions is measured of each, too.
        within: A column whose value captions share that an image's own is compared with, such as its style.
    """

    steps: int
    guidance: float
    seed: int = 0
    by: str | None = None
    within: str | None = None


def sample_pixels(
    pipeline,
    values: list[Value],
    seeds: list[int],
    steps: int | None,
    guidance: float | None,
    quiet: bool = True,
) -> torch.Tensor:
    """Sample images ``(N, C, H, W)`` float32 in [-1, 1] on the CPU, rounded as their files would be.

    Those with alpha are premultiplied then, as real images are read.

    Args:
        pipeline: An `AttnDiffPipeline`.
        values: What to draw, one an image, as the model's kind of `Prompt` has them.
        seeds: One an image, so that an image does not depend on those beside it.
        steps: Sampling steps; None for the model's own number.
        guidance: Guidance scale; likewise.
        quiet: Show no progress.

    Raises:
        UserError: If the model cannot draw one of them.
    """
    pipeline.set_progress_bar_config(disable=True)
    prompt = prompt_of(pipeline)
    batches = []
    for start in progress(range(0, len(seeds), BATCH), "Sampling", shown=not quiet):
        seeds_now, now = seeds[start : start + BATCH], values[start : start + BATCH]
        try:
            images = pipeline(
                **prompt.arguments(now),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds_now],
                output_type="pt",
            ).images
        except ValueError as error:  # how a pipeline refuses arguments
            raise UserError(str(error)) from None
        batches.append(images.float().cpu())
    depth = (pipeline.config.data or {}).get("bit_depth", 8)
    images = torch.cat(batches)
    if depth < 32:
        images = (images * (2**depth - 1)).round() / (2**depth - 1)
    images = images * 2 - 1
    return premultiplied(images) if has_alpha(pipeline.config.data) else images
