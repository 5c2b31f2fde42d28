"""TIFFs that Pillow would refuse, cut to 8 bits or misread: bands, deep colour, white as zero, 12 bits."""

import math

import numpy as np
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT

from attndiff.data.geometry import Shape
from attndiff.data.pixels.decoded import (
    EXIF_ORIENTATION,
    GDAL_NODATA,
    MAX_PIXELS,
    TURNED,
    Decoded,
    check_bands,
    check_size,
    missing_number,
    upright,
)
from attndiff.data.pixels.values import PEAK, ValueRange, Values, opacity, to_levels
from attndiff.errors import UserError

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions that Pillow's libtiff knows.
OF_PILLOW = {
    *(COMPRESSION.NONE, COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6, COMPRESSION.LZW),
    *(COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS),
    *(COMPRESSION.LZMA, COMPRESSION.ZSTD, COMPRESSION.WEBP),
}

OF_NUMBERS = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)


def is_for_tifffile(page: tifffile.TiffPage, channels: str | int, has_range: bool) -> bool:
    """Whether a TIFF is not to be left to Pillow; ``has_range`` where its numbers are to be read as they are."""
    deep_colour = page.samplesperpixel > 1 and page.bitspersample > 8
    white_is_zero = page.photometric == PHOTOMETRIC.MINISWHITE and page.bitspersample not in (1, 8)
    odd_depth = 8 < page.bitspersample < 16
    # Pillow takes signed bytes for unsigned ones, and knows neither halves nor doubles.
    is_float = page.sampleformat == SAMPLEFORMAT.IEEEFP
    odd_numbers = page.sampleformat == SAMPLEFORMAT.INT or (is_float and page.bitspersample != 32)
    grey_times_alpha = page.samplesperpixel == 2 and EXTRASAMPLE.ASSOCALPHA in page.extrasamples
    return (
        isinstance(channels, int)
        or (has_range and page.photometric in OF_NUMBERS)
        or page.samplesperpixel > 4
        or deep_colour
        or white_is_zero
        or odd_depth
        or odd_numbers
        or grey_times_alpha
        or page.compression not in OF_PILLOW
    )


def tiff_header(page: tifffile.TiffPage, name: str) -> tuple[Shape, int]:
    """Height and width that a TIFF will have upright, and a value's bits; raises `UserError` if it is too large."""
    check_size(page.imagewidth, page.imagelength, name)
    size = page.imagelength, page.imagewidth
    bits = 32 if page.sampleformat == SAMPLEFORMAT.IEEEFP else 8 if page.bitspersample <= 8 else 16
    return size[::-1] if page.tags.valueof(EXIF_ORIENTATION, 1) in (5, 6, 7, 8) else size, bits


def decode_tiff(
    tiff: tifffile.TiffFile, channels: str | int, name: str, value_range: ValueRange | None = None
) -> Decoded:
    """Read a TIFF as arrays; arguments and errors as of `decode`."""
    page = tiff.pages.first
    _check_photometric(page, isinstance(channels, int), name)
    check_size(page.imagewidth, page.imagelength, name)
    notes: list[str] = []
    if isinstance(channels, int):
        array, axes = _stacked(tiff, channels, name)
        numbers, alpha = _bands(array, axes, channels, name), None
    else:
        numbers, alpha = _colour_bands(page, channels, name)
        notes += ["first frame of an animation kept"] if len(tiff.pages) > 1 else []
    is_multiplied = alpha is not None and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA
    if is_multiplied and value_range is not None:
        raise UserError(f"{name}: values multiplied by their alpha are in no units, save it without alpha")
    white_is_zero = page.photometric == PHOTOMETRIC.MINISWHITE
    values = Values(
        numbers, page.bitspersample, white_is_zero=white_is_zero, missing=missing_number(page.tags.valueof(GDAL_NODATA))
    )
    levels = to_levels(values, value_range, name, notes)
    pixels = levels.pixels
    alpha = None if alpha is None else opacity(alpha, values.bits, pixels.dtype, name)
    if is_multiplied:
        pixels = _straight(pixels, alpha)
    orientation = page.tags.valueof(EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        pixels, alpha = upright(pixels, orientation), None if alpha is None else upright(alpha, orientation)
        notes.append(TURNED)
    bands = pixels.shape[-1] + (alpha is not None)
    return Decoded(pixels, alpha, f"{bands} bands {levels.bits}-bit", notes, levels.found, levels.stands_for)


def _check_photometric(page: tifffile.TiffPage, raw: bool, name: str) -> None:
    known = [PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, *([PHOTOMETRIC.SEPARATED] if raw else [])]
    # What JPEG stores as luma and chroma is decoded to RGB.
    of_jpeg = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG
    if page.photometric not in known and not of_jpeg:
        raise UserError(f"{name}: TIFF bands of kind {page.photometric.name} are not supported, save it as RGB")


def _stacked(tiff: tifffile.TiffFile, channels: int, name: str) -> tuple[np.ndarray, str]:
    """The first series, or all of them where each is a page of the same kind, and what its axes are."""
    first, series = tiff.series[0], tiff.series
    alike = [s for s in series if s.shape == first.shape and s.dtype == first.dtype]
    together = alike if len(alike) == len(series) else [first]
    if sum(math.prod(s.shape) for s in together) > MAX_PIXELS * channels:
        shape = first.shape if len(together) == 1 else (len(together), *first.shape)
        raise UserError(f"{name}: {shape} is more than {MAX_PIXELS // 10**6} megapixels, make it smaller")
    if len(together) == 1:
        return first.asarray(), first.axes
    return np.stack([s.asarray() for s in together]), f"I{first.axes}"


def _bands(array: np.ndarray, axes: str, channels: int, name: str) -> np.ndarray:
    """``(H, W, C)`` of an array whose bands are samples (axis "S"), pages, or the last axis."""
    array = array.reshape([n for n, axis in zip(array.shape, axes, strict=True) if n > 1 or axis in "YXS"])
    if array.ndim == 2:
        check_bands(1, channels, name)
        return array[..., None]
    if array.ndim != 3:
        raise UserError(f"{name}: a TIFF of shape {array.shape} is no single image of {channels} bands")
    separate = axes.startswith("S") or ("S" not in axes and array.shape[0] == channels)
    array = np.moveaxis(array, 0, -1) if separate else array
    # Without a sample axis, pages of another number may still be the rows of an image whose last axis is the bands.
    pages = "S" not in axes and array.shape[-1] != channels
    check_bands(array.shape[0] if pages else array.shape[-1], channels, name)
    return array


def _colour_bands(page: tifffile.TiffPage, channels: str, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour and alpha, as they are stored, of the first page of a TIFF where a named mode is wanted."""
    array = page.asarray()
    if page.samplesperpixel == 1:
        return array.reshape(page.imagelength, page.imagewidth, 1), None
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        array = np.moveaxis(array, 0, -1)
    bands = array.shape[-1]
    has_alpha = bands in (2, 4) and any(page.extrasamples)
    if bands - has_alpha not in (1, 3):
        raise UserError(f"{name}: has {bands} bands, but channels={channels!r}: set channels={bands} or remove it")
    return (array[..., :-1], array[..., -1]) if has_alpha else (array, None)


def _straight(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour ``(H, W, C)`` that was stored multiplied by alpha ``(H, W)``, divided by it."""
    peak = PEAK[str(pixels.dtype)]
    straight = pixels / np.maximum(alpha, 1 / 65535)[..., None] * peak
    return np.clip(straight if peak == 1 else np.rint(straight), 0, peak).astype(pixels.dtype)
