"""Volumes: files that hold several slices, each of which is an image."""

from functools import lru_cache
from pathlib import Path

from attndiff.data.pixels.medical import dicom_slices, is_dicom, is_nifti, nifti_slices
from attndiff.data.pixels.values import Values
from attndiff.errors import UserError

VOLUMES = (".nii", ".nii.gz", ".dcm")
SIGNATURE_END = 348  # bytes of a file that say whether it is one of these


def is_volume(name: str) -> bool:
    """Whether a file of this name may hold several slices."""
    return name.strip().lower().endswith(VOLUMES)


def begins_volume(start: bytes) -> bool:
    """Whether a file that begins so may hold several slices."""
    return is_dicom(start) or is_nifti(start)


def count_slices(path: Path) -> int:
    """How many slices a file holds; 1 of one that cannot be read, which decoding it will say."""
    try:
        return len(_slices(path, path.stat().st_mtime_ns))
    except (UserError, OSError):
        return 1


def slice_of_file(path: Path, index: int) -> Values:
    """A slice ``(H, W)``, of colour ``(H, W, 3)``, counted from 0.

    Raises:
        UserError: If the file cannot be read or has no such slice.
    """
    return slice_of(_slices(path, path.stat().st_mtime_ns), index, str(path))


def slice_of(slices: list[Values], index: int, name: str) -> Values:
    """One of the slices of a volume; raises `UserError` if there is none."""
    if not 0 <= index < len(slices):
        raise UserError(f"{name}: has {len(slices)} slices, counted from 0, and none of number {index}")
    return slices[index]


@lru_cache(2)  # slices are asked for one after the other
def _slices(path: Path, _modified: int) -> list[Values]:
    return read_slices(path.read_bytes(), str(path))


def read_slices(content: bytes, name: str) -> list[Values]:
    """All slices of a volume's content; raises `UserError`."""
    read = dicom_slices if is_dicom(content) or name.strip().lower().endswith(".dcm") else nifti_slices
    try:
        return read(content, name)
    except UserError:
        raise
    except Exception as error:  # as in `decode`: readers meet broken files with errors of every kind
        raise UserError(f"{name}: cannot be read ({error}), replace or remove it") from None
