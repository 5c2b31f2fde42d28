"""Files to pixels: the one place that images go through, and that refuses them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from attndiff.data.pixels.arrays import array_reader, decode_values
from attndiff.data.pixels.decoded import MAX_PIXELS, NUMBERS, Decoded
from attndiff.data.pixels.picture import decode_picture
from attndiff.data.pixels.tiff import TIFF_STARTS, decode_tiff, is_for_tifffile
from attndiff.data.pixels.values import ValueRange, Values
from attndiff.data.tables.pointers import refuse_pointer
from attndiff.errors import UserError


def decode(
    source: bytes | str | Path | Values | Image.Image,
    channels: str | int,
    name: str | None = None,
    value_range: ValueRange | None = None,
) -> Decoded:
    """Read an image: upright, first frame, straight alpha, at its own depth.

    Args:
        source: The file's content, its path, the numbers of a slice, or an opened image.
        channels: What is wanted. A number asks for the file's bands as they are, neither composited nor converted;
            `NUMBERS` for the one number that each pixel is, of a palette the place in it.
        name: What messages call the image.
        value_range: What the lowest and the highest level are to stand for; values of every numeric type are then
            float32 levels, and clipped to it. None: the full range of their bits, or [0, 1] if they are floating point.

    Raises:
        UserError: The image is empty, broken, not an image, too large, of another number of bands, or has values that
            are missing or not finite.
        NoSetRange: Without `value_range`, it is of signed or of more than 16-bit integers, or of floating point values
            outside [0, 1].
    """
    if isinstance(source, (str, Path)):
        name, source = name or str(source), _read(Path(source))
    name = name or "image"
    if isinstance(source, bytes):
        refuse_what_is_no_image(source, name)
    with named_errors(name):
        decoded = _decode(source, channels, name, value_range)
    if not decoded.pixels.size:
        raise UserError(f"{name}: has no pixels, replace or remove it")
    return decoded


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Whatever goes wrong in reading an image, as a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels, make it smaller") from None
    # Decoders meet broken files with errors of every kind (OSError, SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "it is not an image" if isinstance(error, Image.UnidentifiedImageError) else reason
        raise UserError(f"{name}: cannot be read ({reason}), replace or remove it") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None


def refuse_what_is_no_image(data: bytes, name: str) -> None:
    """Raise `UserError` if a file that begins so is empty, a drawing, a web page or a pointer."""
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes), replace or remove it")
    start = data[:1024].lstrip().lower()
    if start.startswith(b"<") and b"<svg" in start:
        raise UserError(f"{name}: an SVG drawing, render it to PNG first")
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{name}: a web page (HTML), not an image, download it again")
    refuse_pointer(data, name)


def _decode(
    source: bytes | Values | Image.Image, channels: str | int, name: str, value_range: ValueRange | None
) -> Decoded:
    if isinstance(source, Values):
        return _of_values(source, channels, name, value_range)
    if isinstance(source, bytes):
        reader = array_reader(source)
        if reader is not None:
            return _of_values(reader(source, name), channels, name, value_range)
        if source.startswith(TIFF_STARTS):
            with tifffile.TiffFile(io.BytesIO(source)) as tiff:
                if channels != NUMBERS and is_for_tifffile(tiff.pages.first, channels, value_range is not None):
                    return decode_tiff(tiff, channels, name, value_range)
    return decode_picture(source, channels, name, value_range)


def _of_values(values: Values, channels: str | int, name: str, value_range: ValueRange | None) -> Decoded:
    """An array as an image; a mask's numbers are whole, and never scaled."""
    decoded = decode_values(values, 1 if channels == NUMBERS else channels, name, value_range)
    if channels == NUMBERS and (decoded.pixels.dtype == np.float32 or any("scaled to" in n for n in decoded.notes)):
        raise UserError(f"{name}: a mask holds one whole number of 8 or 16 bits a pixel, store it so")
    return decoded
