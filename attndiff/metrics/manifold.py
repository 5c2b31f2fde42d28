"""Fidelity and variety apart: do samples fall where real images lie, and do they reach all of them?

A set's manifold is the union of balls around its points, each as wide as the distance to its k-th nearest neighbour
in the set. Precision and recall: Kynkäänniemi et al., arXiv 1904.06991, Eq. 1 and 2, k = 3. Density and coverage:
Naeem et al., arXiv 2002.09797, Eq. 3 and 4, k = 5. All in float64.
"""

from collections.abc import Iterator

import torch

CHUNK = 2048
PRECISION_K = 3
DENSITY_K = 5
# Squared distances come from differences of squares; equal points may seem this share of the mean square apart.
ROUNDING = 1e-11


def precision_recall(real: torch.Tensor, generated: torch.Tensor, k: int = PRECISION_K) -> tuple[float, float]:
    """Share of samples inside the manifold of the real images, and of real images inside that of the samples.

    Args:
        real: Features ``(N, F)``.
        generated: Features ``(M, F)``.
        k: Neighbour that sets a ball's radius.

    Raises:
        ValueError: If a set has no ``k + 1`` rows.
    """
    real, generated = _centred(real, generated)
    return _inside(generated, real, k).mean().item(), _inside(real, generated, k).mean().item()


def density_coverage(real: torch.Tensor, generated: torch.Tensor, k: int = DENSITY_K) -> tuple[float, float]:
    """How many real balls a sample lies in, against the ``k`` to expect (0 and up, about 1 for real images); and the
    share of real balls that hold a sample.

    Args:
        real: Features ``(N, F)``.
        generated: Features ``(M, F)``.
        k: Neighbour that sets a ball's radius.

    Raises:
        ValueError: If ``real`` has no ``k + 1`` rows.
    """
    real, generated = _centred(real, generated)
    radii = _radii(real, k)
    hits, reached = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, distances in _distances(generated, real):
        inside = distances <= radii
        hits += inside.sum().item()
        reached |= inside.any(0)
    return hits / (k * len(generated)), reached.double().mean().item()


def _centred(real: torch.Tensor, generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets in float64 around one origin, where squares are smallest and so lose least."""
    real, generated = real.double(), generated.double()
    mean = real.mean(0)
    return real - mean, generated - mean


def _inside(points: torch.Tensor, centres: torch.Tensor, k: int) -> torch.Tensor:
    """Whether each point ``(M,)`` float64 lies in some ball of the other set."""
    radii = _radii(centres, k)
    return torch.cat([(distances <= radii).any(1) for _, distances in _distances(points, centres)]).double()


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance ``(N,)`` of each point to its k-th nearest neighbour among the others."""
    if len(points) <= k:
        raise ValueError(f"{len(points)} images are too few for their {k} nearest neighbours: {k + 1} are needed")
    slack = ROUNDING * points.square().sum(1).mean()
    radii = []
    for start, distances in _distances(points, points):
        rows = torch.arange(len(distances), device=points.device)
        distances[rows, start + rows] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii) + slack


def _distances(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Squared distances ``(n, M)`` of consecutive rows of ``x`` to all of ``y``, with the first row's number."""
    squares = y.square().sum(1)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        yield start, (part.square().sum(1, keepdim=True) + squares - 2 * part @ y.T).clamp(min=0)
