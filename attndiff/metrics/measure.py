"""All metrics of a set of samples, each with what real images reach at the same number of images."""

from collections.abc import Callable

import torch

from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.frechet import frechet_distance
from attndiff.metrics.kernel import kernel_distance
from attndiff.metrics.manifold import density_coverage, precision_recall


def distances(real: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
    """Fréchet and kernel distance of features ``(N, F)``."""
    return {
        "frechet_distance": frechet_distance(real, generated),
        "kernel_distance": kernel_distance(real, generated),
    }


def all_metrics(real: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
    """The distances, precision, recall, density and coverage of features ``(N, F)``."""
    precision, recall = precision_recall(real, generated)
    density, coverage = density_coverage(real, generated)
    shares = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {**distances(real, generated), **shares}


def measure(
    real: torch.Tensor,
    generated: torch.Tensor,
    others: torch.Tensor,
    extractor: Extractor,
    metrics: Callable[[torch.Tensor, torch.Tensor], dict[str, float]] = all_metrics,
) -> dict[str, dict]:
    """Metrics by name, each with ``value``, ``n``, ``extractor`` and ``floor``.

    Only the standard Inception's distances are named ``fid`` and ``kid``.

    Args:
        real: Held-out images ``(N, C, H, W)`` in [-1, 1].
        generated: As many samples.
        others: As many other real images, which stand in for samples in the floor.
        extractor: What sees them.
        metrics: Which to measure.
    """
    features = extractor(real)
    values, floors = metrics(features, extractor(generated)), metrics(features, extractor(others))
    names = {"frechet_distance": "fid", "kernel_distance": "kid"} if extractor.standard else {}
    return {
        names.get(name, name): {"value": value, "n": len(generated), "extractor": extractor.name, "floor": floors[name]}
        for name, value in values.items()
    }
