"""Images and masks of a call in one form, whatever form they came in.

Shapes: N images, C channels, H rows, W columns.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from PIL import Image

from attndiff.pipelines.call.inputs import describe_type

logger = logging.get_logger(__name__)

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def as_pixels(image, channels: int, data: dict | None = None, name: str = "image") -> torch.Tensor:
    """Images as ``(N, C, H, W)`` float32 in [-1, 1].

    Args:
        image: A picture or a list of them; an array ``(N, H, W, C)`` or a tensor ``(N, C, H, W)`` in [0, 1], or one
            without N, or a list of such. Where the model learned values in units of their own, pictures and arrays hold
            such values, and what is outside of their range is clipped, with a warning.
        channels: C; pictures of other modes are converted.
        data: What the pipeline knows about its data.
        name: Of the argument.

    Raises:
        ValueError: If it is none of these, of another number of channels, or its images differ in size.
    """
    units = range_in_units(data)
    images = _alike(image, name, units is not None)
    if isinstance(images[0], Image.Image):
        image = np.stack([_as_array(one, channels) for one in images])
        image = image if units is not None else image.astype(np.float32) / 255
    else:
        image = image if images[0] is image else stacked(images)
    if units is not None and isinstance(image, np.ndarray):
        image = _from_units(image, units, name)
    if isinstance(image, np.ndarray):
        image = image[None] if image.ndim == 3 else image
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2) if image.ndim == 4 else image
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"{name} has the shape {tuple(image.shape)}, and this model takes {channels} channels.")
    if not image.is_floating_point():  # 1 of a byte would be white
        raise ValueError(f"{name} must hold floating-point numbers from 0 to 1, not {image.dtype}: scale it.")
    image = image.float()
    if not _within_unit(image):
        raise ValueError(f"{name} holds values outside of 0 to 1: scale it, or give pictures.")
    return image * 2 - 1


def range_in_units(data: dict | None) -> tuple[float, float] | None:
    """What -1 and 1 stand for where a model's data are neither pictures nor numbers over their full range."""
    low, high = (data or {}).get("value_range", (0, 1))
    return None if (data or {}).get("bit_depth", 8) != 32 or (low, high) == (0, 1) else (low, high)


def _from_units(values: np.ndarray, units: tuple[float, float], name: str) -> np.ndarray:
    """Values as float32 shares of their range, clipped to it."""
    values, (low, high) = values.astype(np.float64), units
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds numbers that are not finite.")
    shares = (values - low) / (high - low)
    outside = float(np.mean((shares < 0) | (shares > 1)))
    if outside:
        logger.warning(f"{name}: {outside:.2%} of the values lie outside of {low:g} to {high:g} and were clipped")
    return shares.clip(0, 1).astype(np.float32)


def _as_array(picture: Image.Image, channels: int) -> np.ndarray:
    """Numbers ``(H, W, C)`` of a picture; of one of 8 bits, in the mode of as many channels."""
    is_deep = picture.mode.startswith(("I", "F"))
    array = np.asarray(picture if is_deep else picture.convert(MODES.get(channels, picture.mode)))
    return array[..., None] if array.ndim == 2 else array


def _alike(image, name: str, deep_too: bool = False) -> list[Image.Image] | list[np.ndarray] | list[torch.Tensor]:
    """A picture, array or tensor, or several, as a list of one kind and size.

    Raises:
        ValueError: If they differ, are empty or, unless ``deep_too``, of more than 8 bits, or are none of these.
    """
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    kinds = [kind for kind in (Image.Image, np.ndarray, torch.Tensor) if all(isinstance(one, kind) for one in images)]
    if not images or not kinds:
        raise ValueError(f"{name} must be pictures, arrays or tensors, all of one kind, not {describe_type(image)}.")
    pictures = kinds == [Image.Image]
    sizes = {one.size if pictures else tuple(one.shape) for one in images}
    if len(sizes) > 1:
        raise ValueError(f"{name} has images of different sizes, {sorted(sizes)[:3]}: give those of one size.")
    deep = [one.mode for one in images if pictures and one.mode.startswith(("I", "F"))]
    if deep and not deep_too:  # conversion to 8 bits would clip
        raise ValueError(f"{name} is a picture of mode {deep[0]}: give an array with values from 0 to 1.")
    if not pictures and 0 in images[0].shape:
        raise ValueError(f"{name} has the shape {tuple(images[0].shape)}: it is empty.")
    if not pictures and isinstance(images[0], np.ndarray) and images[0].dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, not {images[0].dtype}.")
    return images


def _within_unit(values: torch.Tensor) -> bool:
    """Whether all are finite and from 0 to 1."""
    return bool(values.isfinite().all() and values.amin() >= 0 and values.amax() <= 1)


def stacked(images: list[np.ndarray] | list[torch.Tensor]) -> np.ndarray | torch.Tensor:
    """Images without N as one array or tensor."""
    join = torch.stack if isinstance(images[0], torch.Tensor) else np.stack
    images = join(list(images))
    return images.flatten(0, 1) if images.ndim == 5 and isinstance(images, torch.Tensor) else images


def as_mask(mask_image, size: tuple[int, int]) -> torch.Tensor:
    """Masks as ``(N, 1, H, W)`` float32 of 0 and 1; white, or above a half, is what is to be drawn.

    Raises:
        ValueError: If they are of another size than the images, or hold other numbers than masks do.
    """
    for one in _alike(mask_image, "mask_image"):
        if not isinstance(one, Image.Image):
            _check_mask_values(torch.as_tensor(np.ascontiguousarray(one) if isinstance(one, np.ndarray) else one))
    mask_image = list(mask_image) if isinstance(mask_image, tuple) else mask_image
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True, do_resize=False)
    mask = masks.preprocess(mask_image).float()
    if mask.ndim != 4 or mask.shape[1] != 1 or tuple(mask.shape[-2:]) != size:
        raise ValueError(f"mask_image has the shape {tuple(mask.shape)}, and the image is {size[0]} x {size[1]}.")
    return mask


def _check_mask_values(values: torch.Tensor) -> None:
    """Raise ValueError unless they are from 0 to 1, or those of a black and white picture, 0 and 255."""
    if values.is_complex() or not (_within_unit(values.float()) or ((values == 0) | (values == 255)).all()):
        raise ValueError("mask_image holds values outside of 0 to 1: it must be 1 where it is to be drawn, else 0.")


def padded(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """``(N, C, H, W)`` with its last rows and columns repeated until both sides are multiples."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def rows_for(images: torch.Tensor, batch: int, name: str = "image") -> torch.Tensor:
    """``(batch, C, H, W)``: one for all rows, or one each.

    Raises:
        ValueError: If there are neither one nor as many.
    """
    if len(images) not in (1, batch):
        raise ValueError(f"{name} has {len(images)} rows for {batch} images: give one, or one each.")
    return images.expand(batch, -1, -1, -1) if len(images) == 1 else images
