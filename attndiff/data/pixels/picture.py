"""Pictures that Pillow reads, and what it passes over in them."""

import io
import re
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from attndiff.data.geometry import Shape
from attndiff.data.pixels.colour import to_srgb
from attndiff.data.pixels.decoded import (
    EXIF_ORIENTATION,
    GDAL_NODATA,
    NUMBERS,
    TURNED,
    Decoded,
    check_bands,
    check_size,
    missing_number,
)
from attndiff.data.pixels.values import ValueRange, Values, opacity, to_levels
from attndiff.errors import UserError

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# Where a PNG may say how it lies.
OF_EXIF = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
NO_EXIF = "unreadable EXIF ignored"
SAMPLES_PER_PIXEL = 277
# Exponents that a PNG states for sRGB, or nearly.
USUAL_GAMMA = (0.44, 0.47)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
# Workflows, XMP and scanners' profiles in PNGs are larger than the 1 MB at which Pillow gives up.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20


def decode_picture(
    source: bytes | Image.Image, channels: str | int, name: str, value_range: ValueRange | None = None
) -> Decoded:
    """Read a picture; arguments and errors as of `decode`."""
    notes: list[str] = []
    image = _open(io.BytesIO(source), source[:12], name, notes) if isinstance(source, bytes) else source
    if isinstance(source, bytes) and value_range is not None:
        _check_unscaled(image, source, name)
    file_format = image.format
    if getattr(image, "is_animated", False):
        notes.append("first of several pictures kept" if file_format == "MPO" else "first frame of an animation kept")
    if isinstance(source, bytes):
        notes += _said_by_the_file(image, source)
    missing = missing_number(image.tag_v2.get(GDAL_NODATA)) if file_format == "TIFF" else None
    image.load()
    if isinstance(source, bytes) and file_format == "PNG":
        _scale_transparency(image, source)
    image = _upright(image, notes)
    kind = image.mode
    if channels == NUMBERS:
        return Decoded(_numbers(image, name), None, kind, notes)
    if isinstance(channels, str) and value_range is None:
        image = to_srgb(image, notes)
    numbers, alpha = _to_arrays(image, file_format, isinstance(channels, int), notes)
    if isinstance(channels, int):
        if alpha is not None:
            numbers, alpha = np.concatenate([numbers, alpha[..., None]], axis=-1), None
        check_bands(numbers.shape[-1], channels, name)
    bits = 8 * numbers.itemsize
    levels = to_levels(Values(numbers, bits, missing=missing), value_range, name, notes)
    alpha = None if alpha is None else opacity(alpha, bits, levels.pixels.dtype, name)
    kind = f"{kind.split(';')[0]} {levels.bits}-bit"
    return Decoded(levels.pixels, alpha, kind, notes, levels.found, levels.stands_for)


def picture_header(stream: BinaryIO, start: bytes, name: str) -> tuple[Shape, int]:
    """Height and width that a picture will have upright, and the bits of a value, from its header alone.

    Args:
        stream: The file, at its beginning.
        start: Its first bytes.
        name: What messages call the image.

    Raises:
        UserError: If it is too large.
    """
    image = _open(stream, start, name, [])
    width, height = image.size
    deep = image.mode in SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
    bits = 16 if deep else 32 if image.mode == "F" else 8
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width), bits


def _orientation(image: Image.Image) -> int:
    """As the EXIF of an image says, 1 where it says nothing or cannot be read."""
    if image.format == "PNG" and not image.info.keys() & OF_EXIF:
        return 1
    try:
        with warnings.catch_warnings(record=True):
            return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # EXIF data is as broken as its writers; the pixels are not.
        return 1


def _open(stream: BinaryIO, start: bytes, name: str, notes: list[str]) -> Image.Image:
    with warnings.catch_warnings(record=True) as complaints:
        if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
            _register_heif(name)
        # Pillow's own limit, above which it warns and decodes, is looser than the one below.
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(stream)
    # A JPEG's is read here, for its resolution, and not again.
    notes += [NO_EXIF] if any("EXIF" in str(complaint.message) for complaint in complaints) else []
    check_size(*image.size, name)
    return image


def _register_heif(name: str) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UserError(f'{name}: HEIC is read by pillow-heif: pip install "attndiff[heif]"') from None
    register_heif_opener()


def _said_by_the_file(image: Image.Image, data: bytes) -> list[str]:
    """Notes of what Pillow passes over or carries out without a word, of an image that is not loaded yet."""
    notes = []
    if _is_deep_colour(data):
        notes.append(f"16-bit colour {image.format} read with 8 bits (a TIFF keeps 16)")
    gamma, low, high = image.info.get("gamma"), *USUAL_GAMMA
    if gamma is not None and not (low < gamma < high or {"srgb", "icc_profile"} & image.info.keys()):
        notes.append(f"gamma of {gamma:g} not applied")
    if image.format == "TIFF":
        unnamed = image.tag_v2.get(SAMPLES_PER_PIXEL, 1) - len(image.getbands())
        notes += [f"{unnamed} band{'s' * (unnamed > 1)} of no stated meaning left out"] if unnamed > 0 else []
        notes += [TURNED] if image.tag_v2.get(EXIF_ORIENTATION) in range(2, 9) else []
    return notes


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """Bring the transparent colour of a PNG, which Pillow leaves in the file's units, to those of the pixels.

    Bit depth and colour type stand at 24 and 25.
    """
    key, (depth, kind) = image.info.get("transparency"), data[24:26]
    if kind == 0 and depth in (2, 4) and isinstance(key, int) and key < 2**depth:
        image.info["transparency"] = key * (255 // (2**depth - 1))
    elif kind == 2 and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _is_deep_colour(data: bytes) -> bool:
    """Whether Pillow will read these 16-bit colours with 8.

    In a PNG bit depth and colour type stand at 24 and 25.
    """
    if data.startswith(b"\x89PNG"):
        return data[24:26] in (b"\x10\2", b"\x10\4", b"\x10\6")
    return data[:2] in (b"P3", b"P6") and _largest_of_netpbm(data) > 255


def _largest_of_netpbm(data: bytes) -> int:
    """The largest value of a grey or colour Netpbm file, the third number of its header; 0 of other files."""
    header = re.match(rb"P[2356](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)", data[:1024])
    return 0 if header is None else int(header[1])


def _check_unscaled(image: Image.Image, data: bytes, name: str) -> None:
    """Raise `UserError` if Pillow gives other numbers than are stored: 16 bits as 8, or fewer spread over 8 or 16."""
    few_bits = data.startswith(b"\x89PNG") and image.mode != "P" and data[24] < 8
    if few_bits or _is_deep_colour(data) or _largest_of_netpbm(data) not in (0, 255, 65535):
        raise UserError(f"{name}: {image.format} of this depth is not read number by number, save it as TIFF or .npy")


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.format == "PNG" and not image.info.keys() & OF_EXIF:
        return image
    try:
        with warnings.catch_warnings(record=True) as complaints:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            turned = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    except Exception:  # EXIF data is as broken as its writers; the pixels are not.
        notes += [NO_EXIF] if NO_EXIF not in notes else []
        return image
    if complaints and NO_EXIF not in notes:
        notes.append(NO_EXIF)
    if orientation in range(2, 9):
        notes.append(TURNED)
    return turned


def _numbers(image: Image.Image, name: str) -> np.ndarray:
    """``(H, W, 1)`` uint8 or uint16: the numbers that are stored."""
    if image.mode not in ("1", "L", "P", *SIXTEEN_BIT):
        raise UserError(f"{name}: a mask holds one number a pixel and this is {image.mode}, save it as greyscale")
    return np.asarray(image).astype(np.uint16 if image.mode in SIXTEEN_BIT else np.uint8)[..., None]


def _to_arrays(
    image: Image.Image, file_format: str | None, raw: bool, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour ``(H, W, 1 | 3)`` (``(H, W, 4)`` for raw CMYK) and alpha ``(H, W)`` of an opened image."""
    mode = image.mode
    if mode in SIXTEEN_BIT or (mode == "I" and file_format in ("PNG", "PPM")):
        pixels, key = np.asarray(image).astype(np.uint16), image.info.get("transparency")
        alpha = None if raw or key is None else np.where(pixels == key, 0, 65535).astype(np.uint16)
        return pixels[..., None], alpha
    if mode in ("I", "F"):
        return np.asarray(image)[..., None], None
    if mode in ("P", "PA"):
        notes.append("palette expanded")
    transparent = image.has_transparency_data
    if mode in ("1", "L", "LA", "La"):
        wanted = "LA" if transparent else "L"
    elif mode == "CMYK" and raw:
        wanted = "CMYK"
    else:
        if mode in ("CMYK", "LAB"):
            notes.append(f"{mode} converted to RGB")
        wanted = "RGBA" if transparent else "RGB"
    array = np.asarray(image if mode == wanted else image.convert(wanted))
    array = array[..., None] if array.ndim == 2 else array
    return (array[..., :-1], array[..., -1]) if transparent else (array, None)
