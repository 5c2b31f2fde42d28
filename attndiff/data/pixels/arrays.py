"""Formats that hold arrays rather than pictures: NumPy, JPEG XL, DICOM, NIfTI."""

import gzip
import io
import zipfile
from collections.abc import Callable

import numpy as np

from attndiff.data.pixels.decoded import Decoded, check_size, full_range, shaped
from attndiff.errors import UserError

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
GZIP = b"\x1f\x8b"
NIFTI = (b"n+1\0", b"ni1\0")  # at 344


def array_reader(data: bytes) -> Callable[[bytes, str, list[str]], np.ndarray] | None:
    """What reads a file of arrays, told by its first bytes; None for a picture."""
    if data.startswith(NPY):
        return _npy
    if data.startswith(ZIP):
        return _npz
    if data.startswith(JPEG_XL):
        return _jpeg_xl
    if data[128:132] == b"DICM":
        return _dicom
    if data[344:348] in NIFTI or data.startswith(GZIP):
        return _nifti
    return None


def decode_array(reader: Callable, data: bytes, channels: str | int, name: str) -> Decoded:
    """Read a file of arrays.

    Args:
        reader: From `array_reader`.
        data: The file's content.
        channels: As of `decode`.
        name: What messages call the image.

    Raises:
        UserError: If it is no single image of as many channels, or its values have no set range.
    """
    notes: list[str] = []
    pixels, alpha = shaped(reader(data, name, notes), channels, name)
    bands = pixels.shape[-1] + (alpha is not None)
    if pixels.dtype == np.uint16:
        notes.append("16-bit scaled")
    return Decoded(pixels, alpha, f"{bands} bands {pixels.dtype.itemsize * 8}-bit", notes)


def _npy(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape = read_header(stream)[0]
    check_size(int(np.prod(shape)) // (min(shape, default=1) or 1), 1, name)
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return full_range(array, 1 if array.dtype == bool else 8 * array.itemsize, name, notes)


def _npz(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        arrays = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        if len(arrays) != 1:
            raise UserError(f"{name}: a .zip or .npz file of {len(arrays)} arrays; store one image in one .npy")
        return _npy(archive.read(arrays[0]), name, notes)


def _jpeg_xl(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    import imagecodecs

    array = imagecodecs.jpegxl_decode(data)
    return full_range(array, 8 * array.itemsize, name, notes)


def _dicom(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    return _only(dicom_slices(data, name, notes), name)


def _nifti(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    return _only(nifti_slices(data, name, notes), name)


def _only(slices: np.ndarray, name: str) -> np.ndarray:
    if len(slices) != 1:
        raise UserError(
            f"{name}: holds {len(slices)} slices, name the one that is meant in a column 'slice', from 0; a stream "
            "does not look for it, store each slice as an image of its own"
        )
    return slices[0]


def dicom_slices(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    """Stored values ``(N, H, W)``, of colour ``(N, H, W, 3)``, over the range of their significant bits.

    Signed ones begin at the lowest.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError(f'{name}: DICOM is read by pydicom: pip install "attndiff[medical]"') from None
    dataset = pydicom.dcmread(io.BytesIO(data))
    check_size(dataset.Columns, dataset.Rows, name)
    array, bits = dataset.pixel_array, int(dataset.BitsStored)
    if array.dtype.kind == "i":
        array = (array.astype(np.int64) + 2 ** (bits - 1)).astype(np.uint32)
    pixels = full_range(array.astype(np.uint32), bits, name, notes)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = np.iinfo(pixels.dtype).max - pixels
        notes.append("white is zero: inverted")
    return pixels if int(getattr(dataset, "NumberOfFrames", 1) or 1) > 1 else pixels[None]


def nifti_slices(data: bytes, name: str, notes: list[str]) -> np.ndarray:
    """Slices ``(N, H, W)`` along the third axis; the first axis of NIfTI runs to the right, and the second down."""
    try:
        import nibabel
    except ImportError:
        raise UserError(f'{name}: NIfTI is read by nibabel: pip install "attndiff[medical]"') from None
    data = gzip.decompress(data) if data.startswith(GZIP) else data
    volume = nibabel.Nifti1Image.from_bytes(data)
    shape = (*volume.shape, 1, 1)[:3]
    if np.prod(shape) != np.prod(volume.shape):
        raise UserError(f"{name}: holds {'x'.join(map(str, volume.shape))} values, and a volume has three axes")
    check_size(*shape[:2], name)
    array = np.asanyarray(volume.dataobj).reshape(shape).T
    return full_range(array, 8 * array.itemsize, name, notes)
