"""What a denoising network sees in an image: the outputs of its decoder at little noise (arXiv 2112.03126).

Shapes: B images, C channels, H and W of an image, h and w of a level, N = h * w places, F features.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.diffusion.objectives import Objective
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel, Stage

RATIO = 0.1  # noise over signal that the network is told; none is added, so that an image has its features for certain


def decoder_stages(unet: AttentionUNet2DModel) -> list[Stage]:
    """Those from the coarsest level on that have blocks."""
    return [stage for stage in unet.stages()[len(unet.down_blocks) :] if len(stage.blocks)]


def feature_channels(unet: AttentionUNet2DModel) -> int:
    """F of `decoder_features`."""
    return sum(stage.spec.width for stage in decoder_stages(unet))


def features_grid(unet: AttentionUNet2DModel, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the features of an image: those of the finest level but one, a quarter as many tokens."""
    return unet.grid_size(min(1, len(unet.level_specs) - 1), height, width)


@torch.no_grad()
def decoder_features(unet: AttentionUNet2DModel, objective: Objective, images: torch.Tensor) -> torch.Tensor:
    """Features of images, ``(B, N, F)``: of all levels, normalised over channels, on the grid of `features_grid`.

    Args:
        unet: The network, told no condition.
        objective: What it learned to predict.
        images: ``(B, C, H, W)`` in [-1, 1].
    """
    level = objective.level_from_log_ratio(torch.full((len(images),), math.log(RATIO), device=images.device))
    x = objective.scale_input(objective.add_noise(images, torch.zeros_like(images), level), level)
    seen: dict[str, torch.Tensor] = {}
    stages = decoder_stages(unet)
    handles = [stage.blocks[-1].register_forward_hook(partial(_keep, seen, stage.name)) for stage in stages]
    try:
        unet(x.to(unet.dtype), objective.coordinate(level))
    finally:
        for handle in handles:
            handle.remove()
    size = features_grid(unet, *images.shape[-2:])
    each = [F.layer_norm(one.float(), one.shape[-1:]).permute(0, 3, 1, 2) for one in seen.values()]  # (B, F, h, w)
    return torch.cat([F.interpolate(one, size=size, mode="area") for one in each], dim=1).flatten(2).transpose(1, 2)


def _keep(seen: dict[str, torch.Tensor], name: str, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
    seen[name] = output  # (B, h, w, F)


def seen_multiple(encoder: ConditionEncoder, unet: AttentionUNet2DModel | None = None) -> int:
    """What sides of images are multiples of: of patches where there are some, and of what ``unet`` takes."""
    patch = encoder.config.image_patch_size if "image" in encoder.streams else 1
    return math.lcm(patch, 1 if unet is None else unet.size_multiple)


def image_streams(
    encoder: ConditionEncoder,
    images: torch.Tensor,
    unet: AttentionUNet2DModel | None = None,
    objective: Objective | None = None,
) -> dict[str, torch.Tensor]:
    """What an encoder of images takes of them: patches, features of a denoising network, or both.

    Args:
        encoder: With a stream of patches, of context, or both.
        images: ``(B, C, H, W)`` in [-1, 1].
        unet: Of the features; None where the encoder has no context.
        objective: What ``unet`` learned to predict.
    """
    streams = {"pixel_values": images} if "image" in encoder.streams else {}
    return streams if unet is None else {**streams, "context": decoder_features(unet, objective, images)}
