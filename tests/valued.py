"""Files of values in units, by kind, each written by another library than the one that reads it where there are two."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image


def write_dicom(path: Path, stored: np.ndarray, **header) -> Path:
    """Stored 16-bit numbers ``(H, W)`` as CT, with other or further entries of the header; entries of None left out."""
    pytest.importorskip("pydicom", reason='DICOM needs pip install "attndiff[medical]"')
    from pydicom import dcmwrite
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    bits = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    entries = {
        "Modality": "CT", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", **bits,
        "PixelRepresentation": int(stored.dtype.kind == "i"), "RescaleSlope": 1, "RescaleIntercept": -1024,
    }  # fmt: skip
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    for name, value in {**entries, **header}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = stored.astype("<i2" if stored.dtype.kind == "i" else "<u2").tobytes()
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def write_nifti(path: Path, stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Path:
    """Stored numbers of slices ``(N, H, W)``, with what its header makes of them."""
    nibabel = pytest.importorskip("nibabel", reason='NIfTI needs pip install "attndiff[medical]"')
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


def write_geotiff(path: Path, values: np.ndarray, nodata: str) -> Path:
    """Values ``(H, W)`` with the tag by which GDAL marks those that are missing."""
    tifffile.imwrite(path, values, extratags=[(42113, 2, 0, nodata, True)])
    return path


def write_values(folder: Path, kind: str, values: np.ndarray, name: str = "a") -> Path:
    """Whole values ``(H, W)`` from -1024 to 3071 as a file of a kind of `KINDS`."""
    suffix = kind.split()[-1]
    path = folder / f"{name}.{suffix}"
    if kind.startswith("Pillow"):
        dtype = {"I": np.int32, "F": np.float32}[kind.split()[1]]
        Image.fromarray(values.astype(dtype)).save(path)
    elif suffix == "tif":
        tifffile.imwrite(path, values.astype(kind.split()[0]))
    elif suffix == "npy":
        np.save(path, values.astype(kind.split()[0]))
    elif suffix == "npz":
        np.savez(path, values.astype(kind.split()[0]))
    elif suffix == "dcm":
        stored = values if kind.startswith("signed") else values + 1024
        dtype = np.int16 if kind.startswith("signed") else np.uint16
        intercept = 0 if kind.startswith("signed") else -1024
        write_dicom(path, stored.astype(dtype), BitsStored=16, HighBit=15, RescaleIntercept=intercept)
    else:
        scale = 1.0 if kind.startswith("signed") else 0.5
        write_nifti(path, (values / scale).astype(np.int16)[None], *(() if scale == 1 else (scale, 0.0)))
    return path


KINDS = (
    *("Pillow I tif", "Pillow F tif", "int16 tif", "int32 tif", "float16 tif", "float64 tif"),
    *("int16 npy", "int64 npy", "float32 npy", "float64 npz"),
    *("CT dcm", "signed dcm", "signed nii", "rescaled nii.gz"),
)
