"""Nearest training images: has a model learned, or only stored?

Shapes: N samples, M reference images, D values of an image's middle.
"""

from collections.abc import Callable

import torch
from PIL import Image

from attndiff.progress import progress
from attndiff.viewing import contact_sheet

SHIFT = 2  # pixels that a copy may be moved by, in each direction, and still count as one
CHUNK = 64  # samples compared at once
SPARE = 8  # candidates beyond k that are measured again without rounding


@torch.no_grad()
def nearest_images(
    samples: torch.Tensor,
    reference: torch.Tensor,
    k: int = 1,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference images nearest to each sample.

    The distance is the mean squared difference between the middle of a reference image (all but a frame of two
    pixels) and the sample at the best of the 25 shifts by up to two pixels; 0 for a copy, shifted or not.

    Args:
        samples: ``(N, C, H, W)`` float in [-1, 1].
        reference: ``(M, C, H, W)`` of the same kind.
        k: Neighbours of each sample.
        features: Maps ``(B, C, H, W)`` to ``(B, F)``; distances are then mean squared differences of features,
            without shifts.

    Returns:
        Indices into ``reference`` and distances, both ``(N, k)``, nearest first.

    Raises:
        ValueError: If the images differ in shape, or there are fewer than ``k`` reference images.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(f"samples are {tuple(samples.shape[1:])} and reference images {tuple(reference.shape[1:])}")
    if len(reference) < k:
        raise ValueError(f"k={k} neighbours asked of {len(reference)} reference images")
    if features is not None:
        samples, reference = features(samples), features(reference)
    middle = (_views(reference)[_CENTER] if features is None else reference).flatten(1)  # (M, D)
    squares = middle.square().sum(1)
    indices, distances = [], []
    for chunk in progress(samples.split(CHUNK), "Looking for near copies", unit="batch"):
        views = [v.flatten(1) for v in (_views(chunk) if features is None else [chunk])]
        rough = torch.stack([squares - 2 * view @ middle.T + view.square().sum(1, keepdim=True) for view in views])
        candidates = rough.amin(0).topk(min(k + SPARE, len(middle)), largest=False).indices  # (n, k + spare)
        # Differences of squares leave rounding errors; the few that matter are measured directly.
        exact = torch.stack([(view[:, None] - middle[candidates]).square().mean(2) for view in views])
        best, order = exact.amin(0).sort(1)
        indices.append(candidates.gather(1, order)[:, :k])
        distances.append(best[:, :k])
    return torch.cat(indices), torch.cat(distances)


_CENTER = 2 * SHIFT * (SHIFT + 1)


def _views(images: torch.Tensor) -> list[torch.Tensor]:
    """The middle of the images at every shift, each ``(B, C, H - 2 SHIFT, W - 2 SHIFT)``; `_CENTER` is unshifted."""
    height, width = (side - 2 * SHIFT for side in images.shape[-2:])
    shifts = range(2 * SHIFT + 1)
    return [images[..., y : y + height, x : x + width] for y in shifts for x in shifts]


def neighbour_sheet(samples: dict[str, list], references: dict[str, list], captions: list[str]) -> Image.Image:
    """Rows of samples, each with the row of their nearest training images below it.

    Args:
        samples: Pictures (or arrays) by row label.
        references: Nearest training images in the same order, by the same labels.
        captions: One a column.
    """
    rows = {}
    for label, images in samples.items():
        rows[label] = images
        rows[f"nearest to {label}"] = references[label]
    return contact_sheet(rows, captions)
