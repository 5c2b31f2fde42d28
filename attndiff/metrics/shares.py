"""Shares of hits, with the interval that their number leaves open."""

import math

import torch

Z = 1.96  # 95 % of a normal distribution lie within so many standard deviations
CLEARLY = 2.5  # times the odds of chance, at the lower end of the interval, that something learned must have


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); it stays within 0 and 1 however few the trials are.

    Args:
        hits: How often it happened.
        n: Trials, at least one.
    """
    p = hits / n
    middle, spread = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = ((middle + sign * spread) / (1 + Z * Z / n) for sign in (-1, 1))
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding would leave 1 of 1 out


def share(hits: torch.Tensor) -> dict:
    """``value``, ``interval`` and ``n`` of hits ``(N,)`` bool."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": hits.double().mean().item(), "interval": [low, high], "n": len(hits)}


def odds_over_chance(low: float, chance: float) -> float:
    """How many times the odds of chance a share has, ``chance`` within 0 and 1; comparable whatever chance is."""
    return math.inf if low == 1 else low / (1 - low) * (1 - chance) / chance


def is_clear_of_chance(found: dict, chance: float) -> bool:
    """Whether even the lower end of a share's interval has `CLEARLY` times the odds of chance.

    A share that many trials put surely above chance may still be of no use: 0.38 of 4,000 where chance is 0.25.
    """
    return odds_over_chance(found["interval"][0], chance) >= CLEARLY
