"""Super-resolution: an image of ``scale`` times the size, from a small one that lies, enlarged, beside the noise.

The network learns the residual over the enlarged image, scaled to unit variance, in two ways at once: as a denoiser,
which samples in a few calls, and without noise at the highest level, where one call gives the residual's mean.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from attndiff.alpha import premultiplied, straight
from attndiff.data.columns import IMAGE
from attndiff.data.rows import Row
from attndiff.tasks.resampling import enlarge_by, shrink_by, to_8_bits
from attndiff.tasks.task import Sample, Task, TaskSettings, as_given, images_of, learn_alpha


class UpscaleSettings(TaskSettings):
    """``task`` of a run that enlarges."""

    name: Literal["upscale"] = "upscale"
    scale: Literal[2, 4] = 2
    residual_std: float | None = Field(None, gt=0)  # of what the enlarged image lacks; None: measured
    at_once: float = Field(0.7, ge=0, le=1)  # share of the samples that learn to do it in one call
    alpha: bool | None = None  # whether the images have it; None: as the data say


def small_of(images: torch.Tensor, scale: int, alpha: bool | None = None) -> torch.Tensor:
    """Images ``(N, C, H, W)`` as small ones, with the values of 8-bit files; with alpha, premultiplied ones."""
    small = shrink_by(images, scale)
    return premultiplied(to_8_bits(straight(small))) if alpha else to_8_bits(small)


def _enlarged(image: torch.Tensor, settings: UpscaleSettings) -> torch.Tensor:
    """What lies beside the noise: an image ``(C, H, W)`` made small and enlarged."""
    return enlarge_by(small_of(image[None], settings.scale, settings.alpha), settings.scale)[0]


def make_sample(row: Row, generator: np.random.Generator, settings: UpscaleSettings) -> Sample:
    """The enlarged small image, what it lacks, and whether that is learned at once."""
    image = torch.from_numpy(row[IMAGE.name])
    enlarged = _enlarged(image, settings)
    at_once = bool(generator.random() < settings.at_once)
    residual = (image - enlarged) / (settings.residual_std or 1.0)
    return {"images": residual, "aligned": enlarged, "at_once": torch.tensor(at_once)}


def given(rows: Sequence[Row], generator: np.random.Generator, settings: UpscaleSettings) -> dict:
    """The small images, in [0, 1] as a call takes them."""
    return {"image": as_given(small_of(images_of(rows), settings.scale, settings.alpha), settings.alpha)}


def learn(rows: Iterable[Row], settings: UpscaleSettings) -> dict:
    """The residual's standard deviation over some rows, and whether their images have alpha."""
    rows = list(rows)
    found = learn_alpha(rows)
    if settings.residual_std is not None:
        return found
    images, settings = [torch.from_numpy(row[IMAGE.name]) for row in rows], settings.model_copy(update=found)
    residuals = [image - _enlarged(image, settings) for image in images]
    std = round(float(torch.cat([residual.flatten() for residual in residuals]).std()), 4) or 1.0
    return {**found, "residual_std": std}


UPSCALE = Task(
    "upscale",
    UpscaleSettings,
    make_sample=make_sample,
    given=given,
    aligned_channels=lambda channels, settings: channels,
    learn=learn,
    objectives=("flow", "x0"),  # at whose highest level, without noise, nothing of the residual is seen
    pipeline="AttnDiffUpscalePipeline",
    measure="upscale",
    hub_tag="image-to-image",
    summary="enlarges images",
    arguments={"num_inference_steps": 1},
    call="image",
)
