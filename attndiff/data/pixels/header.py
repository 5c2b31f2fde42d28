"""What a file says of its image before any pixel of it is decoded."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import tifffile

from attndiff.data.geometry import Shape
from attndiff.data.pixels.arrays import array_reader
from attndiff.data.pixels.decode import decode, named_errors, refuse_what_is_no_image
from attndiff.data.pixels.decoded import Decoded
from attndiff.data.pixels.picture import picture_header
from attndiff.data.pixels.tiff import TIFF_STARTS, is_for_tifffile, tiff_header
from attndiff.data.pixels.values import ValueRange, Values

WHOLE = 1 << 16  # bytes up to which a file is known by all of its content, beyond that by parts and its length
PART = 1 << 14


@dataclass(frozen=True)
class Header:
    """What is known of an image without its pixels.

    Args:
        size: Height and width that it will have decoded, upright.
        bits: Bits of a value then, 8, 16 or 32.
        identity: 32 bytes by which its content is told from another: a hash of the file, of a long one of its length
            and of its beginning, middle and end.
        stands_for: What the lowest and the highest level are in units, where file or setting say it.
    """

    size: Shape
    bits: int
    identity: bytes
    stands_for: ValueRange | None = None


def read_header(
    source: bytes | Path | Values, channels: str | int, name: str, value_range: ValueRange | None = None
) -> Header:
    """What an encoded image says of itself; files of arrays and stacks are read whole for that.

    Args:
        source: The file's content, its path, or the numbers of a slice.
        channels: What is wanted of it, as of `decode`.
        name: What messages call the image.
        value_range: As of `decode`.

    Raises:
        UserError: It is empty, no image, or its header is broken.
    """
    if isinstance(source, Values):
        decoded = decode(source, channels, name, value_range)
        return _of_decoded(decoded, hashlib.sha256(decoded.pixels.tobytes()).digest())
    with named_errors(name), io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        start = stream.read(1024)
        refuse_what_is_no_image(start, name)
        stream.seek(0)
        page = tifffile.TiffFile(stream).pages.first if start.startswith(TIFF_STARTS) else None
        # Which axis of such a stack is which depends on all of it.
        is_stack = page is not None and isinstance(channels, int) and page.samplesperpixel != channels
        if is_stack or array_reader(start) is not None:
            return _of_decoded(decode(source, channels, name, value_range), _identity(stream))
        if page is not None and is_for_tifffile(page, channels, value_range is not None):
            size, bits = tiff_header(page, name)
        else:
            stream.seek(0)
            size, bits = picture_header(stream, start, name)
        return Header(size, bits if value_range is None else 32, _identity(stream), value_range)


def _of_decoded(decoded: Decoded, identity: bytes) -> Header:
    return Header(decoded.pixels.shape[:2], decoded.pixels.itemsize * 8, identity, decoded.stands_for)


def _identity(stream: BinaryIO) -> bytes:
    length = stream.seek(0, os.SEEK_END)
    places = (0, (length - PART) // 2, length - PART) if length > WHOLE else (0,)
    digest = hashlib.sha256(str(length).encode())
    for place in places:
        stream.seek(place)
        digest.update(stream.read(PART if length > WHOLE else WHOLE))
    return digest.digest()
