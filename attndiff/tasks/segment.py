"""Segmentation: which part each pixel of an image belongs to; the image lies beside the noise.

The network learns the map of parts as a channel for each, in two ways at once, as of `attndiff.tasks.upscale`: as a
denoiser, whose samples are maps that may be right, and without noise at the highest level, where one call gives how
likely each part is (least squares lead to the mean of the channels).
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from attndiff.data.columns import IMAGE, Column
from attndiff.data.rows import Row
from attndiff.errors import UserError
from attndiff.tasks.part_maps import MOST_PARTS, as_channels
from attndiff.tasks.task import Sample, Task, TaskSettings, as_given, images_of, learn_alpha


class PartSettings(TaskSettings):
    """Settings of a task about the parts of images."""

    mask: str = "mask"  # column of the maps
    parts: int | None = Field(None, ge=2, le=MOST_PARTS)  # numbers from 0; None: up to the largest in the training maps
    void: int | None = Field(None, ge=0)  # number of pixels that are of no known part: neither learned nor scored
    names: list[str] | None = None  # of the parts
    alpha: bool | None = None  # whether the images have it; None: as the data say


class SegmentSettings(PartSettings):
    """``task`` of a run that reads the parts of images."""

    name: Literal["segment"] = "segment"
    at_once: float = Field(0.7, ge=0, le=1)  # share of the samples that learn to do it in one call


def map_of(row: Row, settings: PartSettings) -> torch.Tensor:
    """The numbers ``(H, W)`` of a row's map; raises `UserError` if there are some beyond the parts."""
    numbers = row[settings.mask]
    if settings.parts is not None:
        most = _parts_of(numbers, settings).max(initial=0)
        if most >= settings.parts:
            raise UserError(
                f"a map of {settings.mask!r} holds {most}, and there are {settings.parts} parts, counted from 0: set "
                "task.parts, or task.void for what is of no part."
            )
    return torch.from_numpy(numbers)


def make_sample(row: Row, generator: np.random.Generator, settings: SegmentSettings) -> Sample:
    """The map as channels with noise for each, the image beside them, and which pixels count."""
    numbers = map_of(row, settings)
    channels = as_channels(numbers, settings.parts)
    known = torch.ones_like(channels[:1]) if settings.void is None else (numbers != settings.void)[None].float()
    return {
        "images": channels,
        "noise": torch.from_numpy(generator.standard_normal(channels.shape, np.float32)),
        "aligned": torch.from_numpy(row[IMAGE.name]),
        "at_once": torch.tensor(bool(generator.random() < settings.at_once)),
        "pixel_weight": known / known.mean().clamp_min(1e-6),
    }


def given(rows: Sequence[Row], generator: np.random.Generator, settings: SegmentSettings) -> dict:
    """The images, in [0, 1] as a call takes them."""
    return {"image": as_given(images_of(rows), settings.alpha)}


def learn_parts(rows: Iterable[Row], settings: PartSettings) -> dict:
    """How many parts there are, and whether the images have alpha."""
    rows = list(rows)
    most = max((int(_parts_of(map_of(row, settings).numpy(), settings).max(initial=0)) for row in rows), default=0)
    return {**learn_alpha(rows), "parts": settings.parts or max(2, most + 1)}


def _parts_of(numbers: np.ndarray, settings: PartSettings) -> np.ndarray:
    """Those numbers of a map that stand for parts, flat."""
    return numbers[numbers != settings.void] if settings.void is not None else numbers.ravel()


SEGMENT = Task(
    "segment",
    SegmentSettings,
    makes="maps",
    columns=lambda settings: (Column(settings.mask, "mask"),),
    make_sample=make_sample,
    given=given,
    aligned_channels=lambda channels, settings: channels,
    made_channels=lambda channels, settings: settings.parts,
    learn=learn_parts,
    objectives=("flow", "x0"),  # at whose highest level, without noise, nothing of the map is seen
    pipeline="AttnDiffSegmentPipeline",
    measure="segment",
    hub_tag="image-segmentation",
    summary="tells the parts of images apart",
    arguments={"num_inference_steps": 1},
    call="image",
)
