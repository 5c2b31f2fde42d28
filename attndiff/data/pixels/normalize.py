"""Any image to the tensor that a model is trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from attndiff.data.config import check_image_options, check_ink, colour_of
from attndiff.data.geometry import Geometry, Shape, cover
from attndiff.data.pixels.decode import decode
from attndiff.data.pixels.values import PEAK, ValueRange, Values

# Weights of ITU-R BT.601, as Pillow's.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Source = bytes | str | Path | Values | Image.Image
# What the levels of a type stand for where nobody says it.
OWN_RANGES = {8: ValueRange(0, 255), 16: ValueRange(0, 65535), 32: ValueRange(0.0, 1.0)}


@dataclass
class Normalized:
    """An image of the set's size and channels, at its own depth.

    Args:
        levels: ``(C, H, W)``, uint8 in [0, 255], uint16 in [0, 65535] or float32 in [0, 1].
        kind: Mode and depth of the original in words.
        notes: What was altered, in the order in which it was.
        geometry: What was cut out of the original, and the size that it became.
        found: Least and greatest value of the original in its own units.
        stands_for: What 0 and the highest level are in units, where file or setting say it.
    """

    levels: np.ndarray
    kind: str
    notes: list[str]
    geometry: Geometry
    found: tuple[float, float]
    stands_for: ValueRange | None


class Normalizer:
    """Decides, for every kind of image, what the tensor is.

    - 8-bit and 16-bit values are scaled by their own full range; floating point values must lie in [0, 1]. With
      `value_range`, values of every numeric type are mapped from it to [0, 1] instead, and clipped.
    - Palettes are expanded, CMYK becomes RGB, EXIF orientation is applied, an animation is its first frame.
    - Alpha is laid over `background`, or kept where `channels` has it; the colour of wholly transparent pixels, which
      nobody sees, is then the background's, and in the tensor all colour is multiplied by alpha, `attndiff.alpha`.
    - With `ink`, darkness is alpha and the colour is the ink's.
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
        value_range: What -1 and 1 are to stand for.
        ink: A colour as of `background`, or None.
    """

    def __init__(
        self,
        size: int,
        channels: str | int = "RGB",
        background: str = "white",
        resize: str = "lanczos",
        shapes: list[Shape] | None = None,
        value_range: ValueRange | None = None,
        ink: str | None = None,
    ):
        check_image_options(size, channels, resize)
        check_ink(ink, channels)
        self.shapes = shapes or [(size, size)]
        self.size, self.channels, self.background, self.resize = size, channels, background, resize
        self.value_range = value_range
        self.ink, self.has_alpha = ink, isinstance(channels, str) and channels.endswith("A")
        self._background, self._ink = self._colour(background), ink and self._colour(ink, "ink")

    def __call__(self, source: Source, name: str | None = None) -> np.ndarray:
        """The image as float32 ``(C, H, W)`` in [-1, 1]; raises `UserError`, see `decode`."""
        return self.tensor(self.normalize(source, name).levels)

    def tensor(self, levels: np.ndarray) -> np.ndarray:
        """Levels ``(C, H, W)`` as float32 in [-1, 1]; with alpha colour is multiplied by it, and it is in [-2, 2]."""
        signed = to_signed(levels)
        if self.has_alpha:  # what `attndiff.alpha.premultiplied` does, without torch, which a look at data does without
            signed[:-1] *= (signed[-1:] + 1) / 2
            signed[-1] *= 2
        return signed

    def normalize(self, source: Source, name: str | None = None, geometry: Geometry | None = None) -> Normalized:
        """The image at its own depth, with notes of what was altered.

        Args:
            source: The file's content, its path, the numbers of a slice, or an opened image.
            name: What messages call the image.
            geometry: That of the row's image, where this is another of its images.

        Raises:
            UserError: See `decode` and `Geometry.of`.
        """
        decoded = decode(source, self.channels, name, self.value_range)
        size, dtype, notes = decoded.pixels.shape[:2], decoded.pixels.dtype, decoded.notes
        geometry = self.geometry(size) if geometry is None else geometry.of(size, name or "image")
        peak = PEAK[str(dtype)]
        pixels, alpha = self._convert(decoded.pixels, decoded.alpha, peak, notes)
        notes += geometry.notes()
        pixels = self._fit(pixels, alpha, peak, geometry)
        if pixels.dtype != decoded.pixels.dtype or dtype == np.float32:  # else nothing was reckoned with them
            pixels = np.clip(pixels, 0, peak)
            pixels = (pixels if dtype == np.float32 else np.rint(pixels)).astype(dtype)
        levels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return Normalized(levels, decoded.kind, notes, geometry, decoded.found, decoded.stands_for)

    def geometry(self, size: Shape) -> Geometry:
        """That of a row whose image has this height and width."""
        return cover(size, self.shapes)

    def describe(
        self, bit_depth: int = 8, class_names: list[str] | None = None, stands_for: ValueRange | None = None
    ) -> dict:
        """What a pipeline keeps about its data: channels, depth, what [-1, 1] stands for, classes, size.

        Args:
            bit_depth: Of the levels.
            class_names: In the order of their numbers.
            stands_for: What the lowest and the highest level are in units; the depth is then that of floating point,
                unless these are the numbers of 16 bits themselves. None: the numbers of this depth, as always with
                alpha, which has no units.
        """
        stands_for, own = None if self.has_alpha else stands_for, OWN_RANGES[bit_depth]
        of_numbers = stands_for is None or replace(stands_for, units=None) == own == OWN_RANGES[16]
        known = stands_for or own
        names = [f"band{i + 1}" for i in range(self.channels)] if isinstance(self.channels, int) else [*self.channels]
        return {
            "channels": names,
            "bit_depth": bit_depth if of_numbers else 32,
            "value_range": [known.low, known.high],
            **({"units": known.units} if known.units else {}),
            "class_names": class_names,
            "size": [self.size, self.size],
            **({"alpha": "premultiplied"} if self.has_alpha else {}),
            **({"ink": self.ink} if self.ink else {}),
        }

    def _colour(self, colour: str, name: str = "background") -> np.ndarray:
        """A colour ``(1 | 3,)`` in [0, 1], grey where the channels are."""
        share = np.array(colour_of(colour, name), np.float32) / 255
        return (share @ LUMA)[None] if isinstance(self.channels, str) and self.channels.startswith("L") else share

    def _convert(self, pixels: np.ndarray, alpha: np.ndarray | None, peak: int, notes: list[str]):
        """Colour ``(H, W, C)``, and alpha ``(H, W, 1)`` if it is kept, of the wanted channels."""
        if isinstance(self.channels, int):
            return pixels, None
        if self.ink:
            return self._as_ink(self._opaque(pixels, alpha, peak, notes), peak, notes)
        if pixels.shape[-1] == 1 and self.channels.startswith("RGB"):
            notes.append("greyscale repeated to RGB")
            pixels = np.repeat(pixels, 3, axis=-1)
        elif pixels.shape[-1] == 3 and self.channels.startswith("L"):
            notes.append("colour reduced to greyscale")
            pixels = pixels @ LUMA[:, None]
        if self.has_alpha:
            alpha = np.full(pixels.shape[:2], peak) if alpha is None else alpha
            return np.where(alpha[..., None] == 0, self._background * peak, pixels), alpha[..., None]
        return self._opaque(pixels, alpha, peak, notes), None

    def _opaque(self, pixels: np.ndarray, alpha: np.ndarray | None, peak: int, notes: list[str]) -> np.ndarray:
        """Colour ``(H, W, C)`` laid over the background."""
        if alpha is None or not (alpha < peak).any():
            return pixels
        notes.append(f"alpha composited over {self.background}")
        opacity = alpha[..., None].astype(np.float32) / peak
        return pixels * opacity + self._background * peak * (1 - opacity)

    def _as_ink(self, pixels: np.ndarray, peak: int, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ink's colour everywhere, and as alpha how dark the opaque colour ``(H, W, C)`` was."""
        notes.append("darkness made alpha")
        dark = peak - (pixels @ LUMA[:, None] if pixels.shape[-1] == 3 else pixels)
        return np.full((*dark.shape[:2], len(self._ink)), self._ink * peak), dark

    def _fit(self, pixels: np.ndarray, alpha: np.ndarray | None, peak: int, geometry: Geometry) -> np.ndarray:
        """Crop and resize colour ``(H, W, C)``, with alpha as its last channel if there is one."""
        if alpha is None:
            return geometry.apply(pixels, self.resize)
        if geometry.kept == geometry.shape:
            return geometry.apply(np.concatenate([pixels, alpha], axis=-1), self.resize)
        # Premultiplied, so that the hidden colour of transparent pixels does not bleed into their neighbours.
        opacity = np.clip(geometry.apply(alpha.astype(np.float32) / peak, self.resize), 0, 1)
        colour = geometry.apply(pixels * (alpha / np.float32(peak)), self.resize)
        visible = opacity > 0.5 / 255
        colour = np.where(visible, colour / np.where(visible, opacity, 1), self._background * peak)
        return np.concatenate([colour, opacity * peak], axis=-1)


def to_signed(levels: np.ndarray) -> np.ndarray:
    """Levels of uint8, uint16 or float32 to float32 in [-1, 1], by the full range of their type."""
    return levels.astype(np.float32) * np.float32(2 / PEAK[str(levels.dtype)]) - 1
