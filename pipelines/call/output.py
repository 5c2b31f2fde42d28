"""What a call returns."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from attndiff.lens.record import AttentionMaps


@dataclass
class AttnDiffPipelineOutput(BaseOutput):
    """What a call returns.

    Args:
        images: List of pictures or arrays, array ``(B, H, W, C)`` or tensor ``(B, C, H, W)``, as ``output_type`` says.
        attention_maps: Where each pixel looked, if it was asked for.
    """

    images: list[Image.Image] | list[np.ndarray] | np.ndarray | torch.Tensor
    attention_maps: AttentionMaps | None = None


def as_output(images, maps: AttentionMaps | None, return_dict: bool) -> AttnDiffPipelineOutput | tuple:
    """What a call returns, as the output or as a tuple of what there is."""
    if return_dict:
        return AttnDiffPipelineOutput(images=images, attention_maps=maps)
    return (images,) if maps is None else (images, maps)
