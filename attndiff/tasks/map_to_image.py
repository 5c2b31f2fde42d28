"""An image of a map: what may have the parts that are drawn, which lie beside the noise as a channel for each."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from attndiff.data.columns import Column
from attndiff.data.rows import Row
from attndiff.tasks.part_maps import as_channels, as_pictures
from attndiff.tasks.segment import PartSettings, learn_parts, map_of
from attndiff.tasks.task import Sample, Task


class MapToImageSettings(PartSettings):
    """``task`` of a run that draws images of maps."""

    name: Literal["map_to_image"] = "map_to_image"


def make_sample(row: Row, generator: np.random.Generator, settings: MapToImageSettings) -> Sample:
    """The map as channels."""
    return {"aligned": as_channels(map_of(row, settings), settings.parts)}


def given(rows: Sequence[Row], generator: np.random.Generator, settings: MapToImageSettings) -> dict:
    """The maps, as pictures."""
    return {"image": as_pictures(torch.stack([map_of(row, settings) for row in rows]))}


MAP_TO_IMAGE = Task(
    "map_to_image",
    MapToImageSettings,
    columns=lambda settings: (Column(settings.mask, "mask"),),
    make_sample=make_sample,
    given=given,
    aligned_channels=lambda channels, settings: settings.parts,
    learn=learn_parts,
    pipeline="AttnDiffMapToImagePipeline",
    measure="map_to_image",
    hub_tag="image-to-image",
    summary="draws images of maps of their parts",
    call="image",
)
