"""The order in which an image is drawn: patches row by row, in a patch pixels row by row, of a pixel its channels.

Shapes: B images, C channels, H rows, W columns, N patches, K values of a patch, J neighbours.
"""

import numpy as np
import torch

# Of a value those of its channel to the left, above, above to the left and above to the right, and the like of patches.
NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1))


def to_sequence(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Images ``(B, C, H, W)`` of any type to their values in order, ``(B, N, K)``."""
    x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, p)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def to_images(sequence: torch.Tensor, size: tuple[int, int], patch: int) -> torch.Tensor:
    """The inverse: ``(B, N, K)`` to ``(B, C, H, W)`` of a size ``(H, W)``."""
    height, width = size
    x = sequence.unflatten(2, (patch, patch, -1)).unflatten(1, (height // patch, width // patch))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def value_neighbours(channels: int, height: int, width: int, patch: int) -> torch.Tensor:
    """Where in the order the neighbours of every value stand, ``(N, K, J)``; those not drawn before it are at N * K."""
    total = channels * height * width
    # On the CPU even where a network is made on the meta device, as it is to look through a folder.
    places = torch.arange(total, device="cpu").view(1, -1, patch * patch * channels)
    places = to_images(places, (height, width), patch)[0].numpy()  # (C, H, W)
    found = torch.from_numpy(np.stack([_beside(places, total, *by) for by in NEIGHBOURS], axis=-1))  # (C, H, W, J)
    return torch.stack([to_sequence(one[None], patch)[0] for one in found.unbind(-1)], dim=-1)


def patch_neighbours(rows: int, columns: int) -> torch.Tensor:
    """The neighbours of every patch, ``(N, J)``; those outside of the image are N."""
    total = rows * columns
    places = np.arange(total).reshape(1, rows, columns)
    return torch.from_numpy(np.stack([_beside(places, total, *by).ravel() for by in NEIGHBOURS], axis=-1))


def _beside(places: np.ndarray, absent: int, down: int, right: int) -> np.ndarray:
    """Of places ``(C, H, W)`` those so far down and right; ``absent`` outside, and where they come later."""
    _, height, width = places.shape
    padded = np.pad(places, ((0, 0), (1, 1), (1, 1)), constant_values=absent)
    found = padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
    return np.where(found < places, found, absent)
