"""All tasks by name, and which of them a saved model was made for."""

from typing import Annotated, Union

from pydantic import Field

from attndiff.tasks.caption import CAPTIONING
from attndiff.tasks.inpaint import INPAINT
from attndiff.tasks.map_to_image import MAP_TO_IMAGE
from attndiff.tasks.raster import RASTER
from attndiff.tasks.segment import SEGMENT
from attndiff.tasks.task import GENERATE, Task, TaskSettings
from attndiff.tasks.upscale import UPSCALE

TASKS = {task.name: task for task in (GENERATE, UPSCALE, INPAINT, SEGMENT, MAP_TO_IMAGE, RASTER, CAPTIONING)}

# What the section ``task`` of a run may be, told apart by its name.
AnyTaskSettings = Annotated[Union[tuple(task.settings for task in TASKS.values())], Field(discriminator="name")]  # noqa: UP007


def task_of(pipeline) -> Task:
    """The task of a pipeline, by its class."""
    name = type(pipeline).__name__
    return next(task for task in TASKS.values() if name in (task.pipeline, *task.further))


def task_settings_of(pipeline) -> TaskSettings:
    """The settings of that task, those measured on the training images among them."""
    task = task_of(pipeline)
    return task.settings(**(pipeline.config.get("task") or {}))
