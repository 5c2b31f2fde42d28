"""Files to pixels: the one place that opens images, and that refuses them."""

import io
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from attndiff.errors import UserError

# 64 megapixels: above every usual camera, and 200 MB of RGB; refused from the header, before anything is decoded.
MAX_PIXELS = 64_000_000
PEAK = {"uint8": 255, "uint16": 65535, "float32": 1}
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
EXIF_ORIENTATION = 274
NUMBERS = "numbers"


@dataclass
class Decoded:
    """An image as it was stored.

    Args:
        pixels: ``(H, W, C)``, uint8 in [0, 255], uint16 in [0, 65535] or float32 in [0, 1].
        alpha: ``(H, W)``, straight, in the units of `pixels`, or None.
        kind: Mode and depth in words, such as "RGB 8-bit".
        notes: What was altered in reading it.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    kind: str
    notes: list[str] = field(default_factory=list)


def decode(source: bytes | str | Path | Image.Image, channels: str | int, name: str | None = None) -> Decoded:
    """Read an image: upright, first frame, straight alpha, at its own depth.

    Args:
        source: The file's content, its path, or an opened image.
        channels: What is wanted. A number asks for the file's bands as they are, neither composited nor converted;
            `NUMBERS` for the one number that each pixel is, of a palette the place in it.
        name: What messages call the image.

    Raises:
        UserError: The image is empty, broken, not an image, too large, of another number of bands, of an integer
            depth other than 8 or 16 bits, or of floating point values outside [0, 1].
    """
    if isinstance(source, (str, Path)):
        name, source = name or str(source), _read(Path(source))
    name = name or "image"
    if isinstance(source, bytes):
        _refuse_what_is_no_image(source, name)
    try:
        decoded = _decode(source, channels, name)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels, make it smaller") from None
    # Decoders meet broken files with errors of every kind (OSError, SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "it is not an image" if isinstance(error, Image.UnidentifiedImageError) else reason
        raise UserError(f"{name}: cannot be read ({reason}), replace or remove it") from None
    if decoded.pixels.dtype == np.float32:
        _check_float_range(decoded.pixels, name)
    return decoded


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None


def _refuse_what_is_no_image(data: bytes, name: str) -> None:
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes), replace or remove it")
    start = data[:1024].lstrip().lower()
    if start.startswith(b"<") and b"<svg" in start:
        raise UserError(f"{name}: an SVG drawing, render it to PNG first")
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{name}: a web page (HTML), not an image, download it again")


def _decode(source: bytes | Image.Image, channels: str | int, name: str) -> Decoded:
    if isinstance(source, bytes) and source.startswith(TIFF_STARTS):
        with tifffile.TiffFile(io.BytesIO(source)) as tiff:
            page = tiff.pages.first
            deep_colour = page.samplesperpixel > 1 and page.bitspersample > 8
            if isinstance(channels, int) or page.samplesperpixel > 4 or deep_colour:
                return _decode_bands(tiff, channels, name)
    image = _open(source, name) if isinstance(source, bytes) else source
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("first frame of an animation kept")
    if _is_deep_colour_png(source):
        notes.append("16-bit colour PNG read with 8 bits (a TIFF keeps 16)")
    image.load()
    image = _upright(image, notes)
    kind = image.mode
    if channels == NUMBERS:
        return Decoded(_numbers(image, name), None, kind, notes)
    pixels, alpha = _to_arrays(image, isinstance(channels, int), notes, name)
    if isinstance(channels, int):
        if alpha is not None:
            pixels, alpha = np.concatenate([pixels, alpha[..., None]], axis=-1), None
        _check_bands(pixels.shape[-1], channels, name)
    if pixels.dtype == np.uint16:
        notes.append("16-bit scaled")
    return Decoded(pixels, alpha, f"{kind.split(';')[0]} {pixels.dtype.itemsize * 8}-bit", notes)


def _open(data: bytes, name: str) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow's own limit, above which it warns and decodes, is looser than the one below.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data))
    _check_size(*image.size, name)
    return image


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {width}x{height} is more than {MAX_PIXELS // 10**6} megapixels, make it smaller")


def _is_deep_colour_png(source: bytes | Image.Image) -> bool:
    """Whether Pillow will read this PNG's 16-bit colours with 8: bit depth and colour type stand at 24 and 25."""
    return isinstance(source, bytes) and source[:4] == b"\x89PNG" and source[24:26] in (b"\x10\2", b"\x10\4", b"\x10\6")


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        with warnings.catch_warnings(record=True) as complaints:
            turned = ImageOps.exif_transpose(image)
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # EXIF data is as broken as its writers; the pixels are not.
        notes.append("unreadable EXIF ignored")
        return image
    if complaints:
        notes.append("unreadable EXIF ignored")
    if orientation in range(2, 9):
        notes.append("rotated or mirrored as its EXIF says")
    return turned


def _numbers(image: Image.Image, name: str) -> np.ndarray:
    """``(H, W, 1)`` uint8 or uint16: the numbers that are stored."""
    if image.mode not in ("1", "L", "P", *SIXTEEN_BIT):
        raise UserError(f"{name}: a mask holds one number a pixel and this is {image.mode}, save it as greyscale")
    return np.asarray(image).astype(np.uint16 if image.mode in SIXTEEN_BIT else np.uint8)[..., None]


def _to_arrays(image: Image.Image, raw: bool, notes: list[str], name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour ``(H, W, 1 | 3)`` (``(H, W, 4)`` for raw CMYK) and alpha ``(H, W)`` of an opened image."""
    mode = image.mode
    if mode in SIXTEEN_BIT or (mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image).astype(np.uint16)[..., None], None
    if mode == "F":
        return np.asarray(image, np.float32)[..., None], None
    if mode in ("P", "PA"):
        notes.append("palette expanded")
    transparent = image.has_transparency_data
    if mode == "I" or mode.startswith("I;"):
        raise UserError(f"{name}: 32-bit integers have no set range, save it as 16-bit or as float from 0 to 1")
    if mode in ("1", "L", "LA", "La"):
        wanted = "LA" if transparent else "L"
    elif mode == "CMYK" and raw:
        wanted = "CMYK"
    else:
        if mode == "CMYK":
            notes.append("CMYK converted to RGB")
        wanted = "RGBA" if transparent else "RGB"
    array = np.asarray(image if mode == wanted else image.convert(wanted))
    array = array[..., None] if array.ndim == 2 else array
    return (array[..., :-1], array[..., -1]) if transparent else (array, None)


def _decode_bands(tiff: tifffile.TiffFile, channels: str | int, name: str) -> Decoded:
    """A TIFF that Pillow would refuse or cut to 8 bits."""
    page, series = tiff.pages.first, tiff.series[0]
    raw = [tifffile.PHOTOMETRIC.SEPARATED] if isinstance(channels, int) else []
    if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB, *raw):
        raise UserError(f"{name}: TIFF bands of kind {page.photometric.name} are not supported, save it as RGB")
    _check_size(page.imagewidth, page.imagelength, name)
    if isinstance(channels, int):
        if math.prod(series.shape) > MAX_PIXELS * channels:
            raise UserError(f"{name}: {series.shape} is more than {MAX_PIXELS // 10**6} megapixels, make it smaller")
        pixels, alpha, notes = _bands(series.asarray(), series.axes, channels, name), None, []
    else:
        pixels, alpha = _colour_bands(page, channels, name)
        notes = ["first frame of an animation kept"] if len(tiff.pages) > 1 else []
    depth = page.bitspersample
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if str(pixels.dtype) not in PEAK or depth not in (8, 16, 32, 64):
        raise UserError(f"{name}: {depth}-bit {pixels.dtype} has no set range, save as 8 or 16-bit unsigned or float")
    if pixels.dtype == np.uint16:
        notes.append("16-bit scaled")
    orientation = page.tags.valueof(EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        pixels, alpha = _turn(pixels, orientation), None if alpha is None else _turn(alpha, orientation)
        notes.append("rotated or mirrored as its EXIF says")
    bands = pixels.shape[-1] + (alpha is not None)
    return Decoded(pixels, alpha, f"{bands} bands {pixels.dtype.itemsize * 8}-bit", notes)


def _bands(array: np.ndarray, axes: str, channels: int, name: str) -> np.ndarray:
    """``(H, W, C)`` of an array whose bands are samples (axis "S"), pages, or the last axis."""
    array = array.reshape([n for n, axis in zip(array.shape, axes, strict=True) if n > 1 or axis in "YXS"])
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise UserError(f"{name}: a TIFF of shape {array.shape} is no single image of {channels} bands")
    separate = axes.startswith("S") or ("S" not in axes and array.shape[0] == channels)
    array = np.moveaxis(array, 0, -1) if separate else array
    # Without a sample axis, pages of another number may still be the rows of an image whose last axis is the bands.
    pages = "S" not in axes and array.shape[-1] != channels
    _check_bands(array.shape[0] if pages else array.shape[-1], channels, name)
    return array


def _check_bands(bands: int, channels: int, name: str) -> None:
    if bands != channels:
        raise UserError(f"{name}: has {bands} bands, but channels={channels}: set channels={bands} or remove it")


def _colour_bands(page: tifffile.TiffPage, channels: str, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour and alpha of the first page of a TIFF where a named mode is wanted."""
    array = page.asarray()
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        array = np.moveaxis(array, 0, -1)
    bands = array.shape[-1]
    has_alpha = bands in (2, 4) and any(page.extrasamples)
    if bands - has_alpha not in (1, 3):
        raise UserError(f"{name}: has {bands} bands, but channels={channels!r}: set channels={bands} or remove it")
    if not has_alpha:
        return array, None
    pixels, alpha = array[..., :-1], array[..., -1]
    if page.extrasamples[0] == tifffile.EXTRASAMPLE.ASSOCALPHA:
        peak = PEAK[str(array.dtype)]
        straight = pixels / np.maximum(alpha, 1 / 65535)[..., None] * peak
        pixels = np.clip(straight if peak == 1 else np.rint(straight), 0, peak).astype(array.dtype)
    return pixels, alpha


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Upright form of an array ``(H, W, ...)`` stored with an EXIF orientation of 2 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _check_float_range(pixels: np.ndarray, name: str) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails too
        raise UserError(f"{name}: floating point values from {low:g} to {high:g}, scale them to lie from 0 to 1")
