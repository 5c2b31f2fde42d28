"""Formats that hold arrays rather than pictures: NumPy, JPEG XL, DICOM, NIfTI."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from attndiff.data.pixels.decoded import Decoded, check_size, shaped
from attndiff.data.pixels.medical import dicom_slices, is_dicom, is_nifti, nifti_slices
from attndiff.data.pixels.values import ValueRange, Values, opacity, to_levels
from attndiff.errors import UserError

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def array_reader(data: bytes) -> Callable[[bytes, str], Values] | None:
    """What reads a file of arrays, told by its first bytes; None for a picture."""
    if data.startswith(NPY):
        return _npy
    if data.startswith(ZIP):
        return _npz
    if data.startswith(JPEG_XL):
        return _jpeg_xl
    if is_dicom(data):
        return _dicom
    if is_nifti(data):
        return _nifti
    return None


def decode_values(values: Values, channels: str | int, name: str, value_range: ValueRange | None) -> Decoded:
    """The image that an array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` is.

    Args:
        values: The array.
        channels: As of `decode`.
        name: What messages call the image.
        value_range: As of `decode`.

    Raises:
        UserError: If it is no single image of as many channels, or its values have no set range.
    """
    notes: list[str] = []
    numbers, alpha = shaped(values.numbers, channels, name)
    levels = to_levels(replace(values, numbers=numbers), value_range, name, notes)
    alpha = None if alpha is None else opacity(alpha, values.bits, levels.pixels.dtype, name)
    bands = numbers.shape[-1] + (alpha is not None)
    kind = f"{bands} bands {levels.bits}-bit"
    return Decoded(levels.pixels, alpha, kind, notes, levels.found, levels.stands_for)


def _npy(data: bytes, name: str) -> Values:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape = read_header(stream)[0]
    check_size(int(np.prod(shape)) // (min(shape, default=1) or 1), 1, name)
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return Values(array, 1 if array.dtype == bool else 8 * array.itemsize)


def _npz(data: bytes, name: str) -> Values:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        arrays = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        if len(arrays) != 1:
            raise UserError(f"{name}: a .zip or .npz file of {len(arrays)} arrays; store one image in one .npy")
        return _npy(archive.read(arrays[0]), name)


def _jpeg_xl(data: bytes, name: str) -> Values:
    import imagecodecs

    array = imagecodecs.jpegxl_decode(data)
    return Values(array, 8 * array.itemsize)


def _dicom(data: bytes, name: str) -> Values:
    return _only(dicom_slices(data, name), name)


def _nifti(data: bytes, name: str) -> Values:
    return _only(nifti_slices(data, name), name)


def _only(slices: list[Values], name: str) -> Values:
    if len(slices) != 1:
        raise UserError(
            f"{name}: holds {len(slices)} slices, name the one that is meant in a column 'slice', from 0; a stream "
            "does not look for it, store each slice as an image of its own"
        )
    return slices[0]
