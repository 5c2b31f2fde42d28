"""Captions of images, written word after word."""

from typing import Literal

from attndiff.tasks.task import Task, TaskSettings


class CaptionSettings(TaskSettings):
    """``task`` of a run that learns to write what is seen in an image."""

    name: Literal["caption"] = "caption"


CAPTIONING = Task(
    "caption",
    CaptionSettings,
    makes="captions",
    head="captioning",
    pipeline="AttnDiffCaptionPipeline",
    measure="captions",
    hub_tag="image-to-text",
    summary="writes captions of images",
    call="image",
)
