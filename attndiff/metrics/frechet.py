"""Fréchet distance: how far apart two sets of features lie if each is taken for a Gaussian.

``|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson and Landau 1982, Eq. 16; for images Heusel et al.,
arXiv 1706.08500, Eq. 6), with unbiased covariances as all common implementations have them.
"""

import torch


def frechet_needs(features: int) -> int:
    """Images a side below which a covariance of so many features is singular whatever the images are."""
    return features + 1


def frechet_distance(real: torch.Tensor, generated: torch.Tensor, singular: bool = False) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two sets, in float64.

    Args:
        real: Features ``(N, F)``.
        generated: Features ``(M, F)``.
        singular: Two rows a set will do: for differences between equally small sets, which are biased alike.

    Raises:
        ValueError: If a set has fewer than ``F + 1`` rows, or the features differ in number.
    """
    (mean1, cov1), (mean2, cov2) = _moments(real, singular), _moments(generated, singular)
    if mean1.shape != mean2.shape:
        raise ValueError(f"features of {len(mean1)} and of {len(mean2)} numbers cannot be compared")
    # (C1 C2)^(1/2) has the trace of (S C2 S)^(1/2) with S = C1^(1/2): symmetric, so that no complex root appears.
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(0.0, distance.item())


def _moments(features: torch.Tensor, singular: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean ``(F,)`` and covariance ``(F, F)`` in float64."""
    n, width = features.shape
    needed = 2 if singular else frechet_needs(width)
    if n < needed:
        raise ValueError(f"{n} images are too few for {width} features: at least {needed} are needed")
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (n - 1)
