"""From the network's range to images: pictures where the data were pictures, the data's own units where not.

Shapes: B images, C channels, H rows, W columns.
"""

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from attndiff.alpha import is_premultiplied, levels_of, straight

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
INTEGERS = {8: np.uint8, 16: np.uint16}


def is_picture(data: dict | None, channels: int) -> bool:
    """Whether images of this kind are ordinary 8-bit pictures: greyscale or RGB, and with alpha LA or RGBA."""
    has_mode = channels in (1, 3, 4) or (channels == 2 and is_premultiplied(data))
    return has_mode and (data or {}).get("bit_depth", 8) == 8


def to_output(
    images: torch.Tensor,
    data: dict | None,
    output_type: str,
) -> list[Image.Image] | list[np.ndarray] | np.ndarray | torch.Tensor:
    """Convert sampled images.

    Args:
        images: ``(B, C, H, W)`` in [-1, 1]; values beyond are clipped.
        data: What the pipeline knows about its data: ``bit_depth``, the ``value_range`` that [-1, 1] stands for, and
            whether colour is multiplied by ``alpha``, by which it is divided then.
        output_type: ``"pt"`` gives ``(B, C, H, W)`` in [0, 1]. ``"np"`` gives ``(B, H, W, C)``, in [0, 1] for
            pictures and in the units of the data for anything else. ``"pil"`` gives a list of pictures, or of
            ``(H, W, C)`` arrays in the units of the data where a picture cannot hold them.
    """
    if is_premultiplied(data):
        images = straight(images, levels_of(data))
    if output_type == "pt" or is_picture(data, images.shape[1]):
        return VaeImageProcessor().postprocess(images, output_type=output_type)
    units = to_data_units(images, data)
    return units if output_type == "np" else list(units)


def to_data_units(images: torch.Tensor, data: dict | None) -> np.ndarray:
    """``(B, C, H, W)`` in [-1, 1] as ``(B, H, W, C)`` in the units of the data, integers for 8 and 16 bits."""
    data = data or {}
    depth = data.get("bit_depth", 8)
    low, high = data.get("value_range", (0, 2**depth - 1))
    share = images.double().clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 1).cpu().numpy()
    units = low + share * (high - low)
    return units.round().astype(INTEGERS[depth]) if depth in INTEGERS else units.astype(np.float32)
