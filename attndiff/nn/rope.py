"""Positions: axial rotary ones, by which each attention head rotates a part of its channels, and waves over an image.

RoFormer (arXiv 2104.09864, Eq. 34) applied per axis as in HDiT (arXiv 2401.11605, section 4.2).

Shapes: B batch, N kinds of sequence, L tokens, H heads, D channels per head, F rotated pairs.
"""

import math

import torch

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines
WAVES = 8  # of `place_waves`


def axial_angles(height: int, width: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Rotation angles of every token of a ``height x width`` grid.

    Half of the head's channels rotate: a quarter with the row, a quarter with the column; the other half
    carries content only.

    Returns:
        Float32 tensor ``(height * width, head_dim // 4)`` of angles in radians.
    """
    n_freqs = head_dim // 8
    freqs = 100.0 ** (-torch.arange(n_freqs, device=device, dtype=torch.float32) / n_freqs)
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] * freqs  # (h, F/2)
    cols = torch.arange(width, device=device, dtype=torch.float32)[:, None] * freqs  # (w, F/2)
    grid = torch.cat([rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)], dim=-1)  # (h, w, F)
    return grid.flatten(0, 1)


def sequence_angles(length: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Rotation angles of a one-dimensional sequence, ``(length, head_dim // 4)``, for text tokens."""
    return angles_at(torch.arange(length, device=device), head_dim)


def angles_at(places: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rotation angles ``(..., head_dim // 4)`` of tokens at places ``(...)`` of a one-dimensional sequence."""
    n_freqs = head_dim // 4
    freqs = 1000.0 ** (-torch.arange(n_freqs, device=places.device, dtype=torch.float32) / n_freqs)
    return places.to(torch.float32).unsqueeze(-1) * freqs


def cos_sin(angles: torch.Tensor) -> Rotation:
    """Cosines and sines of angles ``(N, L, F)``, each ``(N, L, 1, F)``."""
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Rotate the first ``2 F`` channels of every head.

    Args:
        x: Queries or keys ``(B * N, L, H, D)``.
        by: 2 x ``(N, L, 1, F)`` with ``2 F <= D``; every N-th sequence turns alike.
    """
    cos, sin = (part.to(x.dtype) for part in by)
    n = cos.shape[-1]
    x = x.unflatten(0, (-1, cos.shape[0]))  # (B, N, L, H, D)
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).flatten(0, 1)


def place_waves(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Where in an image every place of a grid is, ``(height * width, WAVES)`` float32 in [-1, 1].

    Cosines and sines of half a turn and of one over the rows, and likewise over the columns (arXiv 1706.03762, section
    3.5, with the image for the longest wave): rotary positions tell tokens only how far they are from each other.
    """
    axes = []
    for length in (height, width):
        centre = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
        angles = math.pi * centre[:, None] * torch.tensor([1.0, 2.0], device=device)  # (length, 2)
        axes.append(torch.cat([angles.cos(), angles.sin()], dim=-1))  # (length, 4)
    rows, columns = axes
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)
