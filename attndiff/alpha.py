"""Alpha: colour is straight in files and in calls, and multiplied by alpha where networks and measures see it.

What is multiplied is colour in [-1, 1], so that without ink it is 0, the middle of its range, whatever lay under it. An
error then shows on white as much as on black. Alpha itself is in [-2, 2] there: noise hides it half as much as colour,
and half of an error of it is seen on a ground.

Shapes: C channels, of which alpha is the last, H rows, W columns; colour, and alpha that is straight, in [-1, 1].
"""

import torch

ALPHA_PEAK = 2.0  # of alpha inside
GROUNDS = {"white": 1.0, "black": -1.0}
FINEST = 65535  # levels of alpha at most that a file tells apart


def has_alpha(data: dict | None) -> bool:
    """Whether what a pipeline keeps about its data names alpha among the channels."""
    return ((data or {}).get("channels") or [""])[-1] == "A"


def is_premultiplied(data: dict | None) -> bool:
    """Whether it says that colour is multiplied by alpha; that of earlier models with alpha is straight."""
    return (data or {}).get("alpha") == "premultiplied"


def opacity(images: torch.Tensor) -> torch.Tensor:
    """Alpha ``(..., 1, H, W)`` in [0, 1] of premultiplied images ``(..., C, H, W)``."""
    return images[..., -1:, :, :].div(ALPHA_PEAK).add(1).div(2)


def premultiplied(images: torch.Tensor) -> torch.Tensor:
    """Straight images ``(..., C, H, W)`` in [-1, 1] with colour multiplied by alpha, and alpha in [-2, 2]."""
    colour, alpha = images[..., :-1, :, :], images[..., -1:, :, :]
    return torch.cat([colour * (alpha + 1) / 2, alpha * ALPHA_PEAK], dim=-3)


def straight(images: torch.Tensor, levels: int = 255) -> torch.Tensor:
    """Premultiplied images ``(..., C, H, W)`` with colour divided by alpha and clipped, as files and pictures have it.

    Args:
        images: Values beyond their range are clipped.
        levels: Steps of alpha that are told apart; where it is less than half of one, colour is white, as paper is.
    """
    alpha, least = opacity(images).clamp(0, 1), 0.5 / levels
    colour = (images[..., :-1, :, :] / alpha.clamp_min(least)).clamp(-1, 1)
    colour = torch.where(alpha > least, colour, GROUNDS["white"])
    return torch.cat([colour, alpha * 2 - 1], dim=-3)


def levels_of(data: dict) -> int:
    """Steps of alpha that files of the data tell apart."""
    return min(2 ** data.get("bit_depth", 8) - 1, FINEST)


def laid_over(images: torch.Tensor, ground: float) -> torch.Tensor:
    """Premultiplied images ``(..., C, H, W)`` over a ground of one value in [-1, 1]: ``(..., C - 1, H, W)``."""
    return images[..., :-1, :, :] + (1 - opacity(images)) * ground


def clipped(images: torch.Tensor, alpha: bool | None) -> torch.Tensor:
    """Images ``(..., C, H, W)`` within their range, that of premultiplied ones where there is alpha."""
    if not alpha:
        return images.clamp(-1, 1)
    colour, last = images[..., :-1, :, :], images[..., -1:, :, :]
    return torch.cat([colour.clamp(-1, 1), last.clamp(-ALPHA_PEAK, ALPHA_PEAK)], dim=-3)
