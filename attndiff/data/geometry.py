"""One geometry a row: what is cut out of its image, and the size that this becomes, applied to all that the row shows.

Whether a row is mirrored is drawn anew at every visit, and so is no part of it: see `Row.mirrored`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from attndiff.errors import UserError

Shape = tuple[int, int]  # height and width in pixels
Box = tuple[float, float, float, float]  # left, top, right and bottom in pixels
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Geometry:
    """How an image becomes one of another size.

    Args:
        size: The image's height and width.
        shape: Height and width of what becomes of it.
        box: What of the image is kept.
    """

    size: Shape
    shape: Shape
    box: Box

    @property
    def kept(self) -> tuple[float, float]:
        """Height and width of what is kept."""
        left, top, right, bottom = self.box
        return bottom - top, right - left

    @property
    def cropped(self) -> float:
        """Share of the image's area that is cut off."""
        return 1 - self.kept[1] * self.kept[0] / (self.size[1] * self.size[0])

    def notes(self) -> list[str]:
        """What it alters, in the order in which it does."""
        notes = []
        if self.kept != self.shape:
            notes.append("resized up" if self.kept[1] < self.shape[1] else "resized down")
        if self.kept != self.size:
            height, width = self.shape
            notes.append("cropped to a square" if height == width else f"cropped to {width}x{height}")
        return notes

    def of(self, size: Shape, name: str) -> "Geometry":
        """The same for another image of the row, which may have more or fewer pixels.

        Raises:
            UserError: If its sides are not in the same proportion.
        """
        if size == self.size:
            return self
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        if abs(size[1] - self.size[1] * down) > 1 and abs(size[0] - self.size[0] * across) > 1:
            own, other = (f"{width}x{height}" for height, width in (size, self.size))
            raise UserError(f"{name}: is {own} and its row's image {other}, crop it as the image is cropped")
        left, top, right, bottom = self.box
        return replace(self, size=size, box=(left * across, top * down, right * across, bottom * down))

    def apply(self, pixels: np.ndarray, resize: str) -> np.ndarray:
        """What becomes of ``(H, W, C)``: as it was where it is only cropped, else float32.

        Args:
            pixels: Of the geometry's size.
            resize: A key of `FILTERS`.
        """
        left, top, right, bottom = self.box
        if self.kept == self.shape:
            return pixels[int(top) : int(bottom), int(left) : int(right)]
        # Band by band, to save memory.
        bands = [
            Image.fromarray(pixels[..., i].astype(np.float32)).resize(self.shape[::-1], FILTERS[resize], self.box)
            for i in range(pixels.shape[-1])
        ]
        return np.stack([np.asarray(band) for band in bands], axis=-1)


def cover(size: Shape, shapes: list[Shape]) -> Geometry:
    """The geometry that makes an image the nearest of some shapes, and keeps its middle."""
    shape = nearest_shape(*size, shapes)
    return Geometry(size, shape, middle_box(*size, shape))


def nearest_shape(height: int, width: int, shapes: list[Shape]) -> Shape:
    """The shape whose aspect ratio is nearest to an image's on a logarithmic scale, on which 2:1 is as far as 1:2."""
    aspect = math.log(width / height)
    return min(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0]) - aspect))


def middle_box(height: int, width: int, shape: Shape) -> Box:
    """The largest box of a shape's aspect ratio in the middle of an image."""
    wide = width * shape[0] > height * shape[1]
    box_height = height if wide else width * shape[0] / shape[1]
    box_width = height * shape[1] / shape[0] if wide else width
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def mirrored(values: np.ndarray) -> np.ndarray:
    """``(..., H, W)`` with left and right exchanged."""
    return np.ascontiguousarray(values[..., ::-1])
