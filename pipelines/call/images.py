"""Images and masks of a call in one form, whatever form they came in.

Shapes: N images, C channels, H rows, W columns.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def as_pixels(image, channels: int, name: str = "image") -> torch.Tensor:
    """Images as ``(N, C, H, W)`` float32 in [-1, 1].

    Args:
        image: A picture or a list of them; an array ``(N, H, W, C)`` or a tensor ``(N, C, H, W)`` in [0, 1], or one
            without N, or a list of such.
        channels: C; pictures of other modes are converted.
        name: Of the argument.

    Raises:
        ValueError: If it is none of these, of another number of channels, or its images differ in size.
    """
    images = image if isinstance(image, (list, tuple)) else [image]
    if images and all(isinstance(one, Image.Image) for one in images):
        sizes = {one.size for one in images}
        if len(sizes) > 1:
            raise ValueError(f"{name} has pictures of different sizes, {sorted(sizes)[:3]}: give those of one size.")
        images = [np.asarray(one.convert(MODES.get(channels, one.mode)), np.float32) / 255 for one in images]
        image = np.stack([one[..., None] if one.ndim == 2 else one for one in images])
    elif images and all(isinstance(one, (np.ndarray, torch.Tensor)) for one in images):
        image = image if len(images) == 1 and images[0] is image else _stacked(images, name)
    else:
        raise ValueError(f"{name} must be pictures, arrays or tensors, not {type(image).__name__}.")
    if isinstance(image, np.ndarray):
        image = image[None] if image.ndim == 3 else image
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2) if image.ndim == 4 else image
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"{name} has the shape {tuple(image.shape)}, and this model takes {channels} channels.")
    image = image.float()
    if not image.isfinite().all() or image.amin() < 0 or image.amax() > 1:
        raise ValueError(f"{name} holds values outside of 0 to 1: scale it, or give pictures.")
    return image * 2 - 1


def _stacked(images: list, name: str) -> np.ndarray | torch.Tensor:
    """Images without N as one array or tensor."""
    if len({tuple(one.shape) for one in images}) > 1:
        raise ValueError(f"{name} has images of different shapes: give those of one shape.")
    join = torch.stack if isinstance(images[0], torch.Tensor) else np.stack
    images = join(list(images))
    return images.flatten(0, 1) if images.ndim == 5 and isinstance(images, torch.Tensor) else images


def as_mask(mask_image, size: tuple[int, int]) -> torch.Tensor:
    """Masks as ``(N, 1, H, W)`` float32 of 0 and 1; white, or above a half, is what is to be drawn.

    Raises:
        ValueError: If they are of another size than the images.
    """
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True, do_resize=False)
    mask = masks.preprocess(mask_image).float()
    if mask.ndim != 4 or mask.shape[1] != 1 or tuple(mask.shape[-2:]) != size:
        raise ValueError(f"mask_image has the shape {tuple(mask.shape)}, and the image is {size[0]} x {size[1]}.")
    return mask


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
