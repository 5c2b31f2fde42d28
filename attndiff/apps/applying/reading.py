"""Pictures and masks of files as a pipeline's call takes them, each at its own size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attndiff.apps.applying.files import Picture
from attndiff.data.geometry import Geometry, Shape, cover
from attndiff.data.pixels.decode import decode
from attndiff.data.pixels.decoded import NUMBERS
from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.pixels.values import ValueRange
from attndiff.errors import UserError
from attndiff.metrics.reference import model_settings
from attndiff.pipelines.call.images import MODES, range_in_units
from attndiff.tasks.map_to_image import MAP_TO_IMAGE
from attndiff.tasks.registry import task_of
from attndiff.tasks.task import as_given


class WholePictures(Normalizer):
    """Reads pictures as training does, but each at its own size."""

    def geometry(self, size: Shape) -> Geometry:
        """That of all of a picture."""
        return cover(size, [size])


@dataclass
class Reader:
    """Pictures of files in the form that a pipeline's call takes, see `as_pixels`.

    Args:
        pipeline: Whose channels and range they are to have.
        notes: How often something was altered in reading.
    """

    pipeline: Any
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        data, settings = self.pipeline.config.data or {}, model_settings(self.pipeline)
        units = range_in_units(data)
        value_range = units and ValueRange(*units, data.get("units"))
        self._read = WholePictures(
            settings["size"], settings["channels"], value_range=value_range, ink=settings.get("ink")
        )

    def __call__(self, path: Path) -> Image.Image | np.ndarray | torch.Tensor:
        """A picture of 8 bits where that can be one, numbers of a map; raises `UserError` if it cannot be read."""
        if task_of(self.pipeline) is MAP_TO_IMAGE:
            return decode(path, NUMBERS).pixels[..., 0].astype(np.int64)
        read = self._read.normalize(path, str(path))
        for note in read.notes:
            self.notes[note] = self.notes.get(note, 0) + 1
        if read.levels.dtype == np.uint8 and len(read.levels) in MODES:
            pixels = read.levels.transpose(1, 2, 0)
            return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, MODES[len(read.levels)])
        return as_given(torch.from_numpy(self._read.tensor(read.levels))[None], self._read.has_alpha)


def masks_for(pictures: Sequence[Picture], mask: Path) -> list[Path]:
    """The mask of each picture: one file for all, or in a folder the one of its name.

    Raises:
        UserError: If there is none for one of them.
    """
    if not mask.is_dir():
        if not mask.is_file():
            raise UserError(f"--mask {mask} is no file or folder.")
        return [mask] * len(pictures)
    masks = []
    for picture in pictures:
        alike = sorted(path for path in (mask / picture.name).parent.glob("*") if path.stem == picture.name.name)
        if len(alike) != 1:
            raise UserError(f"--mask: {mask} has {len(alike)} masks called {picture.name}: one is needed.")
        masks += alike
    return masks


def read_mask(path: Path) -> Image.Image:
    """A mask of 8 bits."""
    levels = WholePictures(1, "L").normalize(path, f"--mask {path}").levels
    if levels.dtype != np.uint8:
        raise UserError(f"--mask {path} has more than 8 bits: save it as a black and white picture.")
    return Image.fromarray(levels[0])
