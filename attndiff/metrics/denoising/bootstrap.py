"""Intervals of means over rows that are not independent: those of one family, such as one thing in several styles."""

import numpy as np
import torch

DRAWS = 2000
SEED = 22
QUANTILES = (0.025, 0.975)


def bootstrap_means(values: torch.Tensor, families: list[str]) -> torch.Tensor:
    """Means over families drawn with replacement (Efron and Tibshirani 1993, section 8), every row of each.

    Args:
        values: ``(N, L)``.
        families: One a row.

    Returns:
        ``(DRAWS, L)`` float64, the same at every call.
    """
    numbers = {family: i for i, family in enumerate(dict.fromkeys(families))}
    rows = torch.tensor([numbers[family] for family in families])
    count = len(numbers)
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, rows, values.double())
    sizes = rows.bincount(minlength=count).double()
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    times = torch.from_numpy(drawn).double()
    return times @ sums / (times @ sizes)[:, None]


def interval_of(means: torch.Tensor) -> list[float]:
    """The 95 % interval of a number from what it is in every draw ``(DRAWS,)``."""
    return torch.quantile(means, torch.tensor(QUANTILES, dtype=means.dtype)).tolist()
