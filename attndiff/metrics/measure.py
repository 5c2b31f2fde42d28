"""All metrics of a set of samples, each with what real images reach at the same number of images.

No number is taken for a judgement before its instrument was tried: beside every metric stands what the same extractor
says of real images that were spoilt, `attndiff.metrics.controls`, and where it does not tell these from real images
the metric judges nothing.
"""

from collections.abc import Callable

import torch

from attndiff.metrics.controls import CONTROLS, not_told_apart
from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.frechet import frechet_distance
from attndiff.metrics.grounds import views
from attndiff.metrics.kernel import kernel_distance
from attndiff.metrics.manifold import density_coverage, precision_recall

DISTANCES = ("frechet_distance", "kernel_distance")  # less is better; of all others, more is
LEAST = 0.5  # that real images must reach in what more is better of, or too little is left to fall short of
HALVES = 8  # random ones, in every one of which a spoilt set must score worse than the floor


def distances(real: torch.Tensor, generated: torch.Tensor, singular: bool = False) -> dict[str, float]:
    """Fréchet and kernel distance of features ``(N, F)``; ``singular`` as of `frechet_distance`."""
    return {
        "frechet_distance": frechet_distance(real, generated, singular),
        "kernel_distance": kernel_distance(real, generated),
    }


def all_metrics(real: torch.Tensor, generated: torch.Tensor, singular: bool = False) -> dict[str, float]:
    """The distances, precision, recall, density and coverage of features ``(N, F)``."""
    precision, recall = precision_recall(real, generated)
    density, coverage = density_coverage(real, generated)
    shares = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {**distances(real, generated, singular), **shares}


class Yardstick:
    """An extractor with real images to measure against, tried on spoilt ones; measures any number of sets.

    Args:
        real: Held-out images ``(N, C, H, W)`` in [-1, 1].
        others: As many other real images: as they are they make the floor, and spoilt the controls.
        extractor: What sees them.
        metrics: Which to measure.
    """

    def __init__(
        self, real: torch.Tensor, others: torch.Tensor, extractor: Extractor, metrics: Callable[..., dict] = all_metrics
    ):
        self.extractor, self.metrics, self.real = extractor, metrics, extractor(real)
        floor = extractor(others)
        spoilt = {name: extractor(spoil(others)) for name, spoil in CONTROLS.items()}
        self.floor = metrics(self.real, floor)
        self.controls = {name: metrics(self.real, features) for name, features in spoilt.items()}
        self.unseen = unseen_controls(self.real, floor, spoilt, metrics)

    def measure(self, generated: torch.Tensor) -> dict[str, dict]:
        """Metrics of samples by name; see `measure`."""
        names = {"frechet_distance": "fid", "kernel_distance": "kid"} if self.extractor.standard else {}
        values = self.metrics(self.real, self.extractor(generated))
        return {
            names.get(name, name): {
                "value": value,
                "n": len(generated),
                "extractor": self.extractor.name,
                "floor": self.floor[name],
                "controls": {control: found[name] for control, found in self.controls.items()},
                **self._verdict(name),
            }
            for name, value in values.items()
        }

    def _verdict(self, name: str) -> dict:
        """Whether a metric judges, and if not, why."""
        if name not in DISTANCES and self.floor[name] < LEAST:
            return {"judges": False, "why_not": f"real images themselves reach no more than {self.floor[name]:.2g}"}
        why_not = not_told_apart(self.unseen[name])
        return {"judges": False, "why_not": why_not} if why_not else {"judges": True}


class Yardsticks:
    """A `Yardstick` for every one of the `views` of images, by which the names of its metrics end.

    Args:
        data: What a pipeline keeps about its data.
        real: As of `Yardstick`, with whatever channels the data have.
        others: Likewise.
        extractor: What sees the views.
        metrics: Which to measure.
    """

    def __init__(
        self,
        data: dict | None,
        real: torch.Tensor,
        others: torch.Tensor,
        extractor: Extractor,
        metrics: Callable[..., dict] = all_metrics,
    ):
        self.views = views(data)
        self.by_view = {
            end: Yardstick(view(real), view(others), extractor, metrics) for end, view in self.views.items()
        }

    def measure(self, generated: torch.Tensor) -> dict[str, dict]:
        """Metrics of samples by name; see `measure`."""
        found = {end: stick.measure(self.views[end](generated)) for end, stick in self.by_view.items()}
        return {name + end: entry for end, entries in found.items() for name, entry in entries.items()}


def measure(
    real: torch.Tensor,
    generated: torch.Tensor,
    others: torch.Tensor,
    extractor: Extractor,
    metrics: Callable[..., dict] = all_metrics,
    data: dict | None = None,
) -> dict[str, dict]:
    """Metrics by name, each with ``value``, ``n``, ``extractor``, ``floor``, ``controls`` by name, and ``judges``.

    Only the standard Inception's distances are named ``fid`` and ``kid``. Where ``judges`` is false, ``why_not`` says
    which spoilt images score like real ones.

    Args:
        real: Held-out images ``(N, C, H, W)`` in [-1, 1].
        generated: As many samples.
        others: As many other real images, which stand in for samples in the floor and, spoilt, in the controls.
        extractor: What sees them.
        metrics: Which to measure.
        data: What a pipeline keeps about its data; images with alpha are measured on white and on black.
    """
    return Yardsticks(data, real, others, extractor, metrics).measure(generated)


def unseen_controls(
    real: torch.Tensor, others: torch.Tensor, spoilt: dict[str, torch.Tensor], metrics: Callable[..., dict]
) -> dict[str, list[str]]:
    """Of every metric the controls that are not clearly worse than the floor.

    The spoilt images are those of the floor, so that a control and the floor differ by the spoiling alone. The spread
    of their difference over random halves of both sets is the standard error of the difference between whole ones (the
    delete-half jackknife); one that lies two of these from nothing is there in every half.

    Args:
        real: Features ``(N, F)``.
        others: Features of the floor's images ``(M, F)``.
        spoilt: By control, features of the same images spoilt.
        metrics: Which to measure.
    """
    generator, differences = torch.Generator().manual_seed(0), {name: [] for name in spoilt}
    for _ in range(HALVES):
        rows, columns = (torch.randperm(len(x), generator=generator)[: len(x) // 2] for x in (real, others))
        floor = metrics(real[rows], others[columns], singular=True)
        for name, features in spoilt.items():
            found = metrics(real[rows], features[columns], singular=True)
            differences[name].append({key: found[key] - floor[key] for key in floor})
    return {key: [name for name, of in differences.items() if not _is_worse(key, of)] for key in floor}


def _is_worse(metric: str, differences: list[dict[str, float]]) -> bool:
    """Whether spoilt images score worse than those of the floor in every half."""
    return all(one[metric] > 0 if metric in DISTANCES else one[metric] < 0 for one in differences)
