"""Kernel distance: the squared maximum mean discrepancy under a cubic kernel, without bias at any number of images.

Kernel ``k(x, y) = (x . y / F + 1)^3`` and unbiased estimate of Binkowski et al., arXiv 1801.01401, section 4 (the
estimate is Gretton et al. 2012, Eq. 3), over the whole sets at once rather than averaged over blocks of them.
"""

import torch

CHUNK = 2048
KERNEL_NEEDS = 2  # images a side


def kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Squared maximum mean discrepancy, in float64; it may fall a little below 0 where the sets agree.

    Args:
        real: Features ``(N, F)``.
        generated: Features ``(M, F)``.

    Raises:
        ValueError: If a set has fewer than two rows.
    """
    if min(len(real), len(generated)) < KERNEL_NEEDS:
        raise ValueError(f"the kernel distance needs at least {KERNEL_NEEDS} images a side")
    x, y = real.double(), generated.double()
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _mean_of_pairs(x: torch.Tensor) -> float:
    """Mean kernel over pairs of different rows."""
    own = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (_kernel_sum(x, x) - own) / (len(x) * (len(x) - 1))


def _kernel_sum(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum of the kernel over all pairs."""
    return sum((part @ y.T / x.shape[1] + 1).pow(3).sum().item() for part in x.split(CHUNK))
