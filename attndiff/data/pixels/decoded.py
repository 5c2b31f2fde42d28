"""What every reader of files gives, and what is refused whatever the format."""

from dataclasses import dataclass, field

import numpy as np

from attndiff.data.pixels.values import ValueRange
from attndiff.errors import UserError

# 64 megapixels: above every usual camera, and 200 MB of RGB; refused from the header, before anything is decoded.
MAX_PIXELS = 64_000_000
EXIF_ORIENTATION = 274
GDAL_NODATA = 42113
NUMBERS = "numbers"  # asked for in place of channels: the one number that each pixel is
TURNED = "rotated or mirrored as its EXIF says"


@dataclass
class Decoded:
    """An image as it was stored.

    Args:
        pixels: ``(H, W, C)``, uint8 in [0, 255], uint16 in [0, 65535] or float32 in [0, 1].
        alpha: ``(H, W)``, straight, in the units of `pixels`, or None.
        kind: Mode and depth in words, such as "RGB 8-bit".
        notes: What was altered in reading it.
        found: Least and greatest value in the file's own units; None of a mask.
        stands_for: What the lowest and the highest level are in units, where file or setting say it.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    kind: str
    notes: list[str] = field(default_factory=list)
    found: tuple[float, float] | None = None
    stands_for: ValueRange | None = None


def check_size(width: int, height: int, name: str) -> None:
    """Raise `UserError` for an image that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {width}x{height} is more than {MAX_PIXELS // 10**6} megapixels, make it smaller")


def missing_number(tag: str | None) -> float | None:
    """The number that stands for no value in a GeoTIFF, of its tag `GDAL_NODATA`; None if that is no number."""
    try:
        return float(str(tag).strip("\0 "))
    except ValueError:
        return None


def check_bands(bands: int, channels: int, name: str) -> None:
    """Raise `UserError` if an image has another number of bands than is asked for."""
    if bands != channels:
        raise UserError(
            f"{name}: has {bands} band{'s' * (bands != 1)}, but channels={channels}: set channels={bands} or remove it"
        )


def shaped(array: np.ndarray, channels: str | int, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels ``(H, W, C)`` and alpha of an array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``.

    Raises:
        UserError: If it has another number of bands than is asked for.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise UserError(f"{name}: an array of shape {array.shape} is no image, give (height, width, channels)")
    wanted = (channels,) if isinstance(channels, int) else (1, 2, 3, 4)
    if array.shape[-1] not in wanted and array.shape[0] in wanted:
        array = np.moveaxis(array, 0, -1)
    check_size(array.shape[1], array.shape[0], name)
    bands = array.shape[-1]
    if isinstance(channels, int):
        check_bands(bands, channels, name)
        return array, None
    if bands not in wanted:
        raise UserError(f"{name}: has {bands} bands, but channels={channels!r}: set channels={bands} or remove it")
    return (array[..., :-1], array[..., -1]) if bands in (2, 4) else (array, None)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Upright form of an array ``(H, W, ...)`` stored with an EXIF orientation of 2 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
