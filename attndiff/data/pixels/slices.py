"""Volumes: files that hold several slices, each of which is an image."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from attndiff.data.pixels.arrays import GZIP, NIFTI, dicom_slices, nifti_slices
from attndiff.errors import UserError

VOLUMES = (".nii", ".nii.gz", ".dcm")
SIGNATURE_END = 348  # bytes of a file that say whether it is one of these


def is_volume(name: str) -> bool:
    """Whether a file of this name may hold several slices."""
    return name.strip().lower().endswith(VOLUMES)


def begins_volume(start: bytes) -> bool:
    """Whether a file that begins so may hold several slices."""
    return _is_dicom(start) or start[344:348] in NIFTI or start.startswith(GZIP)


def _is_dicom(start: bytes) -> bool:
    return start[128:132] == b"DICM"


def count_slices(path: Path) -> int:
    """How many slices a file holds; 1 of one that cannot be read, which decoding it will say."""
    try:
        return len(_slices(path, path.stat().st_mtime_ns))
    except (UserError, OSError):
        return 1


def slice_as_npy(path: Path, index: int) -> bytes:
    """A slice, counted from 0, as the content of a ``.npy`` file.

    Raises:
        UserError: If the file cannot be read or has no such slice.
    """
    return as_npy(_slices(path, path.stat().st_mtime_ns), index, str(path))


def as_npy(slices: np.ndarray, index: int, name: str) -> bytes:
    """One of slices ``(N, H, W, ...)`` as the content of a ``.npy`` file; raises `UserError` if there is none."""
    if not 0 <= index < len(slices):
        raise UserError(f"{name}: has {len(slices)} slices, counted from 0, and none of number {index}")
    content = io.BytesIO()
    np.save(content, slices[index])
    return content.getvalue()


@lru_cache(2)  # slices are asked for one after the other
def _slices(path: Path, _modified: int) -> np.ndarray:
    return read_slices(path.read_bytes(), str(path))


def read_slices(content: bytes, name: str) -> np.ndarray:
    """All slices ``(N, H, W)``, of colour ``(N, H, W, 3)``, of a volume's content; raises `UserError`."""
    read = dicom_slices if _is_dicom(content) or name.strip().lower().endswith(".dcm") else nifti_slices
    try:
        return read(content, name, [])
    except UserError:
        raise
    except Exception as error:  # as in `decode`: readers meet broken files with errors of every kind
        raise UserError(f"{name}: cannot be read ({error}), replace or remove it") from None
