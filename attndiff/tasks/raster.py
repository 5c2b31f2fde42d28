"""Images drawn value after value, each as likely as a Transformer says it is after those before it."""

from typing import Literal

from attndiff.tasks.task import Task, TaskSettings


class RasterSettings(TaskSettings):
    """``task`` of a run that learns to draw value after value."""

    name: Literal["raster"] = "raster"


RASTER = Task("raster", RasterSettings, head="raster", pipeline="AttnDiffRasterPipeline")
