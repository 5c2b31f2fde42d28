"""Inpainting: what a hole in an image may have held; the mask and the image around it lie beside the noise."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from attndiff.data.columns import IMAGE
from attndiff.data.rows import Row
from attndiff.tasks.masks import draw_box, draw_mask, draw_strokes
from attndiff.tasks.task import Sample, Task, TaskSettings, as_given, images_of, learn_alpha


class InpaintSettings(TaskSettings):
    """``task`` of a run that fills holes."""

    name: Literal["inpaint"] = "inpaint"
    hole_weight: float = Field(3.0, gt=0)  # of an unknown pixel's error beside a given one's
    alpha: bool | None = None  # whether the images have it; None: as the data say


def masked(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mask ``(..., 1, H, W)`` and the image ``(..., C, H, W)`` with 0 in the hole, as the network takes them."""
    return torch.cat([mask, image * (1 - mask)], dim=-3)


def make_sample(row: Row, generator: np.random.Generator, settings: InpaintSettings) -> Sample:
    """A mask with the image around it, and what every pixel's error counts, 1 on average."""
    image = torch.from_numpy(row[IMAGE.name])
    mask = draw_mask(*image.shape[-2:], generator)
    weight = 1 + (settings.hole_weight - 1) * mask
    return {"aligned": masked(image, mask), "pixel_weight": weight / weight.mean()}


def given(rows: Sequence[Row], generator: np.random.Generator, settings: InpaintSettings) -> dict:
    """Images in [0, 1] with masks: strokes and boxes by turns."""
    images = images_of(rows)
    draw = (draw_strokes, draw_box)
    masks = [draw[i % 2](*images.shape[-2:], generator) for i in range(len(images))]
    return {"image": as_given(images, settings.alpha), "mask_image": torch.stack(masks)}


def learn(rows: Iterable[Row], settings: InpaintSettings) -> dict:
    """Whether the images have alpha."""
    return learn_alpha(rows)


INPAINT = Task(
    "inpaint",
    InpaintSettings,
    make_sample=make_sample,
    given=given,
    aligned_channels=lambda channels, settings: channels + 1,
    learn=learn,
    pipeline="AttnDiffInpaintPipeline",
    measure="inpaint",
    hub_tag="image-to-image",
    summary="fills holes in images",
    call="image, mask_image",
)
