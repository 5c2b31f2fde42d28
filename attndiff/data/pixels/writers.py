"""Samples to files in the units of the data that the model was trained on."""

import json
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from attndiff.alpha import is_premultiplied, levels_of, straight
from attndiff.drawn import LOSSLESS, SOFTWARE, save_picture
from attndiff.errors import UserError

DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}


def to_data_units(sample, data: dict) -> np.ndarray:
    """Samples in [-1, 1] to data units.

    Args:
        sample: Tensor or array ``(..., C, H, W)`` in [-1, 1]; values outside are clipped.
        data: What the pipeline keeps about its data, see `Normalizer.describe`.

    Returns:
        ``(..., H, W, C)``, uint8, uint16 or float32 in ``data["value_range"]``, alpha straight.
    """
    sample = torch.as_tensor(sample).detach().float().cpu()
    array = (straight(sample, levels_of(data)) if is_premultiplied(data) else sample).numpy()
    low, high = data["value_range"]
    # In float64, since float32 could miss a 16-bit level by rounding.
    units = low + (np.clip(np.moveaxis(array, -3, -1), -1, 1).astype(np.float64) + 1) / 2 * (high - low)
    dtype = DTYPES[data["bit_depth"]]
    return units.astype(dtype) if dtype is np.float32 else np.rint(units).astype(dtype)


def save_image(array: np.ndarray, path: str | Path, data: dict) -> Path:
    """Write one image as PNG where a PNG can hold it, otherwise as TIFF.

    One, three and four channels of 8 bits, grey with alpha, and one channel of 16 bits are PNG; everything else is
    TIFF with the bands as samples. Floating point, and what is in known units, is TIFF, whose description says in JSON
    what the ``value_range`` and ``units`` of the data are.

    Args:
        array: ``(H, W, C)`` in data units.
        path: Where to write; a suffix of `LOSSLESS` is kept for what is a picture of 8 bits, any other replaced by the
            right one.
        data: What the pipeline keeps about its data.

    Returns:
        The path written.
    """
    array = np.ascontiguousarray(array)
    if array.ndim != 3 or array.shape[-1] != len(data["channels"]):
        raise UserError(f"array of shape {array.shape} is not (height, width, {len(data['channels'])})")
    if array.dtype != DTYPES[data["bit_depth"]]:
        raise UserError(f"array is {array.dtype}, but the data has {data['bit_depth']} bits: use to_data_units first")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = array.shape[-1]
    png_channels = {8: (1, 3, 4), 16: () if "units" in data else (1,)}.get(data["bit_depth"], ())
    if channels in png_channels or (data["bit_depth"] == 8 and data["channels"] == ["L", "A"]):
        keeps = path.suffix in LOSSLESS and data["bit_depth"] == 8 and "band1" not in data["channels"]
        path = path if keeps else path.with_suffix(".png")
        save_picture(Image.fromarray(array[..., 0] if channels == 1 else array), path)
        return path
    path = path.with_suffix(".tif")
    options = {"software": SOFTWARE, "photometric": "rgb" if data["channels"][:3] == ["R", "G", "B"] else "minisblack"}
    if data["channels"][-1] == "A":
        options["extrasamples"] = ["unassalpha"]
    if channels > 1:
        options["planarconfig"] = "contig"
    if "units" in data or data["bit_depth"] == 32:
        options["description"] = json.dumps({key: data[key] for key in ("value_range", "units") if key in data})
    tifffile.imwrite(path, array if channels > 1 else array[..., 0], compression="zlib", metadata=None, **options)
    return path
