"""DICOM and NIfTI: slices of stored numbers, with what the header says that they are."""

import gzip
import io

import numpy as np

from attndiff.data.pixels.decoded import check_size
from attndiff.data.pixels.values import Values
from attndiff.errors import UserError

GZIP = b"\x1f\x8b"
NIFTI = (b"n+1\0", b"ni1\0")  # at 344
UNSPECIFIED = "US"  # a DICOM rescale type


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM, by its first bytes."""
    return data[128:132] == b"DICM"


def is_nifti(data: bytes) -> bool:
    """Whether a file is NIfTI, plain or compressed, by its first bytes."""
    return data[344:348] in NIFTI or data.startswith(GZIP)


def dicom_slices(data: bytes, name: str) -> list[Values]:
    """Each frame, ``(H, W)`` or of colour ``(H, W, 3)``, its numbers counted from the lowest that its bits hold."""
    try:
        import pydicom
    except ImportError:
        raise UserError(f'{name}: DICOM is read by pydicom: pip install "attndiff[medical]"') from None
    dataset = pydicom.dcmread(io.BytesIO(data))
    check_size(dataset.Columns, dataset.Rows, name)
    array, frames = dataset.pixel_array, int(getattr(dataset, "NumberOfFrames", 1) or 1)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    notes = ["table of the header for its values not applied"] if "ModalityLUTSequence" in dataset else []
    slices = []
    for frame, said in zip(array if frames > 1 else array[None], _rescales(dataset, frames), strict=True):
        units = _units(dataset, said)
        slope, intercept = float(getattr(said, "RescaleSlope", 1)), float(getattr(said, "RescaleIntercept", 0))
        values = _unsigned(frame, int(getattr(dataset, "BitsStored", 8 * frame.itemsize)), slope or 1.0, intercept)
        values.has_units, values.units = (slope, intercept) != (1, 0) or units is not None, units
        values.white_is_zero, values.notes = inverted, notes
        slices.append(values)
    return slices


def _rescales(dataset, frames: int) -> list:
    """Where slope and intercept of each frame stand: with the frame, with what all frames share, or with the image."""

    def within(group):
        return next(iter(getattr(group, "PixelValueTransformationSequence", ())), None)

    shared = next(map(within, getattr(dataset, "SharedFunctionalGroupsSequence", ())), None)
    own = [within(group) for group in getattr(dataset, "PerFrameFunctionalGroupsSequence", ())]
    return [frame or shared or dataset for frame in (own or [None] * frames)]


def _units(dataset, said) -> str | None:
    """Units of what slope and intercept, read from ``said``, make of the stored numbers."""
    if "RescaleIntercept" not in said:
        return None
    named = getattr(said, "RescaleType", None) or getattr(dataset, "Units", None)
    named = named or ("HU" if getattr(dataset, "Modality", "") == "CT" else None)
    return None if named in (None, UNSPECIFIED) else str(named)


def nifti_slices(data: bytes, name: str) -> list[Values]:
    """Slices ``(H, W)`` along the third axis; the first axis of NIfTI runs to the right, and the second down."""
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
    slope, intercept = float(volume.dataobj.slope), float(volume.dataobj.inter)
    stored = np.asanyarray(volume.dataobj.get_unscaled())
    if (slope, intercept) != (1, 0) and stored.size and stored.dtype.kind in "ui":
        ends = (slope * np.array([stored.min(), stored.max()], np.float64) + intercept).astype(np.float32)
        if ends.min() < 0 or ends.max() > 1:
            bits = 8 * stored.itemsize
            slices = [_unsigned(one, bits, slope, intercept) for one in stored.reshape(shape).T]
            for values in slices:
                values.has_units = True
            return slices
    array = np.asanyarray(volume.dataobj).reshape(shape).T  # numbers alone, or shares of 1
    return [Values(one, 8 * array.itemsize) for one in array]


def _unsigned(numbers: np.ndarray, bits: int, slope: float, intercept: float) -> Values:
    """Signed integers counted from the lowest that their bits hold, the intercept moved along; others as they are."""
    if numbers.dtype.kind != "i" or bits > 32:
        return Values(numbers, bits, slope, intercept)
    counted = (numbers.astype(np.int64) + 2 ** (bits - 1)).astype(np.uint32)
    return Values(counted, bits, slope, intercept - slope * 2 ** (bits - 1))
