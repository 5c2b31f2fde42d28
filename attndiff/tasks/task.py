"""What a model is for, as data: what it is given beside a prompt, and how its samples are made of images.

A task adds its channels and targets to a sample after everything that training draws anyway, so that what is drawn for
one task is drawn for all.

Shapes: C channels, A aligned channels, H and W of an image, N images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import torch

from attndiff.alpha import is_premultiplied, straight
from attndiff.data.columns import IMAGE, Column
from attndiff.data.rows import Row
from attndiff.settings import Section

Sample = dict[str, torch.Tensor]


class TaskSettings(Section):
    """Settings of a task, the section ``task`` of a run; what is None in them is measured on the training images."""

    name: str


class GenerateSettings(TaskSettings):
    """Images from nothing but a prompt."""

    name: Literal["generate"] = "generate"


def nothing(*_, **__) -> dict:
    """What a task adds that adds nothing."""
    return {}


def learn_alpha(rows: Iterable[Row]) -> dict:
    """The setting ``alpha`` of a task that is given images, where those of some rows have alpha."""
    found = any(is_premultiplied(row.rows.describe()) for row in islice(rows, 1))
    return {"alpha": True} if found else {}


def images_of(rows: Iterable[Row]) -> torch.Tensor:
    """The images ``(N, C, H, W)`` of rows, in [-1, 1]."""
    return torch.stack([torch.from_numpy(row[IMAGE.name]) for row in rows])


def as_given(images: torch.Tensor, alpha: bool | None) -> torch.Tensor:
    """Images ``(N, C, H, W)`` in [-1, 1] as a call takes them: in [0, 1], colour not multiplied by alpha."""
    return (straight(images) if alpha else images).add(1).div(2)


@dataclass(frozen=True)
class Task:
    """A task; the rooms that own heads, pipelines and measures find theirs by the names here.

    Args:
        name: As ``task.name`` has it.
        settings: Class of its settings.
        makes: What comes out of it.
        columns: By its settings, what it reads of a row beside image, caption and label.
        make_sample: ``(row, generator, settings)`` to what it adds to a training sample: ``aligned (A, H, W)``, and
            whatever replaces ``images`` or weighs pixels.
        given: ``(rows, generator, settings)`` to what a call of the pipeline is given beside the prompt, made of real
            images: what samples while training and cards show.
        aligned_channels: A by C and the settings.
        made_channels: Of what it makes, by C and the settings.
        learn: ``(rows, settings)`` to the settings that are measured.
        objectives: Names of those that can learn it; None for all.
        head: Name of what is trained, a key of `attndiff.training.build.HEADS`.
        pipeline: Name of the pipeline's class in `attndiff`.
        further: Names of others that take the same models.
        measure: Name of the measure that scores it, or None for distances between sets of images.
        hub_tag: The Hub's name of what it does; None leaves that to the prompt.
        summary: What it does, as the end of a sentence; None likewise.
        arguments: Of a call without further wishes.
        call: What a call is given beside the prompt, as Python source.
    """

    name: str
    settings: type[TaskSettings]
    makes: Literal["images", "captions", "maps"] = "images"
    columns: Callable[[TaskSettings], tuple[Column, ...]] = lambda settings: ()
    make_sample: Callable[[Row, np.random.Generator, TaskSettings], Sample] = nothing
    given: Callable[[Sequence[Row], np.random.Generator, TaskSettings], dict] = nothing
    aligned_channels: Callable[[int, TaskSettings], int] = lambda channels, settings: 0
    made_channels: Callable[[int, TaskSettings], int] = lambda channels, settings: channels
    learn: Callable[[Iterable[Row], TaskSettings], dict] = nothing
    objectives: tuple[str, ...] | None = None
    head: str = "denoising"
    pipeline: str = "AttnDiffPipeline"
    further: tuple[str, ...] = ()
    measure: str | None = None
    hub_tag: str | None = None
    summary: str | None = None
    arguments: dict = field(default_factory=dict)
    call: str = ""

    @property
    def takes_masks(self) -> bool:
        """Whether a call is told by a mask where it is to draw."""
        return "mask_image" in self.call


GENERATE = Task("generate", GenerateSettings, further=("AttnDiffImg2ImgPipeline",))
