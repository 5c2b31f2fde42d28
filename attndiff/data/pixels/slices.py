"""Volumes: files that hold several slices, each of which is an image."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from attndiff.data.pixels.arrays import dicom_slices, nifti_slices
from attndiff.errors import UserError

VOLUMES = (".nii", ".nii.gz", ".dcm")


def is_volume(name: str) -> bool:
    """Whether a file of this name may hold several slices."""
    return name.strip().lower().endswith(VOLUMES)


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
    slices = _slices(path, path.stat().st_mtime_ns)
    if not 0 <= index < len(slices):
        raise UserError(f"{path}: has {len(slices)} slices, counted from 0, and none of number {index}")
    content = io.BytesIO()
    np.save(content, slices[index])
    return content.getvalue()


@lru_cache(2)  # slices are asked for one after the other
def _slices(path: Path, _modified: int) -> np.ndarray:
    read = dicom_slices if path.name.strip().lower().endswith(".dcm") else nifti_slices
    try:
        return read(path.read_bytes(), str(path), [])
    except UserError:
        raise
    except Exception as error:  # as in `decode`: readers meet broken files with errors of every kind
        raise UserError(f"{path}: cannot be read ({error}), replace or remove it") from None
