"""Any image to the tensor that a model is trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from attndiff.data.buckets import Shape, nearest_shape
from attndiff.data.config import check_image_options
from attndiff.data.pixels.decode import PEAK, decode
from attndiff.errors import UserError

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
# Weights of ITU-R BT.601, as Pillow's.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


Box = tuple[float, float, float, float]  # left, top, right and bottom in pixels


@dataclass
class Normalized:
    """An image of the set's size and channels, at its own depth.

    Args:
        levels: ``(C, H, W)``, uint8 in [0, 255], uint16 in [0, 65535] or float32 in [0, 1].
        size: ``(width, height)`` of the original.
        kind: Mode and depth of the original in words.
        notes: What was altered, in the order in which it was.
        cropped: Share of the original's area that was cut off.
    """

    levels: np.ndarray
    size: tuple[int, int]
    kind: str
    notes: list[str]
    cropped: float


class Normalizer:
    """Decides, for every kind of image, what the tensor is.

    - 8-bit and 16-bit values are scaled by their own full range; floating point values must lie in [0, 1].
    - Palettes are expanded, CMYK becomes RGB, EXIF orientation is applied, an animation is its first frame.
    - Alpha is laid over `background`, or kept where `channels` has it; the colour of wholly transparent pixels, which
      nobody sees, is then the background's.
    - Greyscale is repeated for RGB; RGB becomes greyscale by ITU-R BT.601 luma.
    - The shorter side is resized to `size`, with premultiplied alpha, and the middle square kept; with `shapes`, the
      image is resized to cover the one nearest to its own aspect ratio, and the middle kept.
    - With a number for `channels`, the file's bands are taken as they are.

    Args:
        size: Height and width of the result in pixels.
        channels: "L", "LA", "RGB", "RGBA", or a number of bands.
        background: A colour by name or as "#rrggbb".
        resize: "lanczos", "area" or "nearest".
        shapes: Heights and widths of the results, see `bucket_shapes`. None: the square of `size`.
    """

    def __init__(
        self,
        size: int,
        channels: str | int = "RGB",
        background: str = "white",
        resize: str = "lanczos",
        shapes: list[Shape] | None = None,
    ):
        check_image_options(size, channels, resize)
        self.shapes = shapes or [(size, size)]
        self.size, self.channels, self.background, self.resize = size, channels, background, resize
        try:
            colour = np.array(ImageColor.getrgb(background)[:3], np.float32) / 255
        except (ValueError, AttributeError):
            raise UserError(f"background={background!r} is no colour: give a name, or #rrggbb") from None
        grey = isinstance(channels, str) and channels.startswith("L")
        self._background = (colour @ LUMA)[None] if grey else colour  # (1 | 3,) in [0, 1]

    def __call__(self, source: bytes | str | Path | Image.Image, name: str | None = None) -> np.ndarray:
        """The image as float32 ``(C, H, W)`` in [-1, 1]; raises `UserError`, see `decode`."""
        return to_signed(self.normalize(source, name).levels)

    def normalize(self, source: bytes | str | Path | Image.Image, name: str | None = None) -> Normalized:
        """The image at its own depth, with notes of what was altered; raises `UserError`, see `decode`."""
        decoded = decode(source, self.channels, name)
        height, width = decoded.pixels.shape[:2]
        dtype, notes = decoded.pixels.dtype, decoded.notes
        peak = PEAK[str(dtype)]
        pixels, alpha = self._convert(decoded.pixels, decoded.alpha, peak, notes)
        shape = nearest_shape(height, width, self.shapes)
        box = middle_box(height, width, shape)
        kept = box[2] - box[0], box[3] - box[1]  # width and height
        if kept != shape[::-1]:
            notes.append("resized up" if kept[0] < shape[1] else "resized down")
        if kept != (width, height):
            notes.append("cropped to a square" if shape[0] == shape[1] else f"cropped to {shape[1]}x{shape[0]}")
        pixels = np.clip(self._fit(pixels, alpha, peak, shape, box), 0, peak)
        if dtype != np.float32:
            pixels = np.rint(pixels)
        levels = np.ascontiguousarray(pixels.astype(dtype).transpose(2, 0, 1))
        return Normalized(levels, (width, height), decoded.kind, notes, 1 - kept[0] * kept[1] / (width * height))

    def describe(self, bit_depth: int = 8, class_names: list[str] | None = None) -> dict:
        """What a pipeline keeps about its data: channels, depth, the units that [-1, 1] stands for, classes, size."""
        names = [f"band{i + 1}" for i in range(self.channels)] if isinstance(self.channels, int) else [*self.channels]
        return {
            "channels": names,
            "bit_depth": bit_depth,
            "value_range": {8: [0, 255], 16: [0, 65535], 32: [0.0, 1.0]}[bit_depth],
            "class_names": class_names,
            "size": [self.size, self.size],
        }

    def _convert(self, pixels: np.ndarray, alpha: np.ndarray | None, peak: int, notes: list[str]):
        """Colour ``(H, W, C)``, and alpha ``(H, W, 1)`` if it is kept, of the wanted channels."""
        if isinstance(self.channels, int):
            return pixels, None
        if pixels.shape[-1] == 1 and self.channels.startswith("RGB"):
            notes.append("greyscale repeated to RGB")
            pixels = np.repeat(pixels, 3, axis=-1)
        elif pixels.shape[-1] == 3 and self.channels.startswith("L"):
            notes.append("colour reduced to greyscale")
            pixels = pixels @ LUMA[:, None]
        background = self._background * peak
        if self.channels.endswith("A"):
            alpha = np.full(pixels.shape[:2], peak) if alpha is None else alpha
            return np.where(alpha[..., None] == 0, background, pixels), alpha[..., None]
        if alpha is not None and (alpha < peak).any():
            notes.append(f"alpha composited over {self.background}")
            opacity = alpha[..., None].astype(np.float32) / peak
            pixels = pixels * opacity + background * (1 - opacity)
        return pixels, None

    def _fit(self, pixels: np.ndarray, alpha: np.ndarray | None, peak: int, shape: Shape, box: Box) -> np.ndarray:
        """Crop colour ``(H, W, C)`` to a box and resize it, with alpha as its last channel if there is one."""
        left, top, right, bottom = box
        if (bottom - top, right - left) == shape:
            pixels = pixels if alpha is None else np.concatenate([pixels, alpha], axis=-1)
            return pixels[int(top) : int(bottom), int(left) : int(right)]
        if alpha is None:
            return self._resample(pixels, shape, box)
        # Premultiplied, so that the hidden colour of transparent pixels does not bleed into their neighbours.
        opacity = np.clip(self._resample(alpha.astype(np.float32) / peak, shape, box), 0, 1)
        colour = self._resample(pixels * (alpha / np.float32(peak)), shape, box)
        visible = opacity > 0.5 / 255
        colour = np.where(visible, colour / np.where(visible, opacity, 1), self._background * peak)
        return np.concatenate([colour, opacity * peak], axis=-1)

    def _resample(self, pixels: np.ndarray, shape: Shape, box: Box) -> np.ndarray:
        """A box of ``(H, W, C)`` as float32 of a shape; band by band, to save memory."""
        bands = [
            Image.fromarray(pixels[..., i].astype(np.float32)).resize(shape[::-1], FILTERS[self.resize], box)
            for i in range(pixels.shape[-1])
        ]
        return np.stack([np.asarray(band) for band in bands], axis=-1)


def middle_box(height: int, width: int, shape: Shape) -> Box:
    """The largest box of a shape's aspect ratio in the middle of an image."""
    wide = width * shape[0] > height * shape[1]
    box_height = height if wide else width * shape[0] / shape[1]
    box_width = height * shape[1] / shape[0] if wide else width
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def to_signed(levels: np.ndarray) -> np.ndarray:
    """Levels of uint8, uint16 or float32 to float32 in [-1, 1], by the full range of their type."""
    return levels.astype(np.float32) * np.float32(2 / PEAK[str(levels.dtype)]) - 1
