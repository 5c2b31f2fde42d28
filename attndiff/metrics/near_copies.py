"""Has a model stored its training images? Nearest ones, near-copies, and the loss on images it has and has not seen."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from attndiff.alpha import has_alpha, straight
from attndiff.data.columns import IMAGE
from attndiff.data.subset import Subset, shrink, spread_over
from attndiff.metrics.grounds import on_white
from attndiff.metrics.neighbours import SHIFT, nearest_images, neighbour_sheet
from attndiff.metrics.reference import Reference
from attndiff.metrics.shares import share

QUANTILE = 0.05  # of real held-out images, the nearest to a training image; closer than these is a near-copy
COMPARED = 32  # pixels a side at which images are compared
AT_MOST = 50_000  # training images
MULTIPLIES = 5e11  # of one search; where all samples would need more, fewer are searched for
COLUMNS = 10


@dataclass
class NearCopies:
    """Samples beside their nearest training images.

    Args:
        share: Of samples nearer to a training image than `threshold`.
        floor: The same share of real held-out images, about `QUANTILE`.
        threshold: Distance, see `nearest_images`.
        n: Samples compared, and as many held-out images at most.
        searched: Training images.
        indices: Nearest training image ``(n,)`` of each sample.
        distances: To it ``(n,)``.
    """

    share: float
    floor: float
    threshold: float
    n: int
    searched: int
    indices: torch.Tensor
    distances: torch.Tensor

    def to_json(self) -> dict:
        """The share as a metric."""
        found = share(self.distances < self.threshold)
        return {
            "value": self.share,
            "interval": found["interval"],
            "n": self.n,
            "extractor": f"pixels at {COMPARED} px or less",
            "floor": self.floor,
            "threshold": self.threshold,
            "training_images": self.searched,
            "median_distance": self.distances.median().item(),
        }


def training_pool(reference: Reference) -> Subset:
    """The images a sample may be a copy of: of two halves both, since the model may have seen either."""
    test, train = reference.test, reference.train
    whole = (test.images, test.indices + train.indices) if reference.halves else (train, range(len(train)))
    pool = Subset(*whole)
    return pool if len(pool) <= AT_MOST else spread_over(pool, AT_MOST)


def near_copies(samples: torch.Tensor, reference: Reference, pool: Subset) -> NearCopies:
    """Look for every sample among the training images.

    A near-copy is closer to a training image than 95 % of real held-out images are; alpha is laid over white.

    Args:
        samples: ``(N, C, H, W)`` in [-1, 1].
        reference: The real images.
        pool: Of `training_pool`.
    """
    view = on_white(pool.describe())
    training = view(pool.tensor(COMPARED, "Reading training images"))
    n = min(len(samples), len(reference.test), _affordable(training))
    indices, distances = nearest_images(view(shrink(samples[:n], COMPARED)), training)
    real = view(spread_over(reference.test, n).tensor(COMPARED))
    # A real image of the halves is in the pool itself; what counts is the nearest one but it.
    beside = nearest_images(real, training, k=2 if reference.halves else 1)[1][:, -1]
    threshold = copy_threshold(beside)
    shares = [(found < threshold).double().mean().item() for found in (distances[:, 0], beside)]
    return NearCopies(*shares, threshold, n, len(training), indices[:, 0], distances[:, 0])


def copy_threshold(real: torch.Tensor) -> float:
    """The distance below which a sample is a near-copy, of the distances ``(N,)`` of real held-out images."""
    return real.quantile(QUANTILE).item()


def draw_neighbours(samples: torch.Tensor, found: NearCopies, pool: Subset) -> Image.Image:
    """A picture of the samples nearest to a training image, and of the first ones, over their nearest images.

    Args:
        samples: ``(N, C, H, W)`` in [-1, 1].
        found: Of `near_copies`.
        pool: Of `training_pool`.
    """
    columns = min(COLUMNS, found.n)
    rows = {"the nearest": found.distances.argsort()[:columns].tolist(), "the first": list(range(columns))}
    shown, nearest, data = {}, {}, pool.describe()
    for name, row in rows.items():
        shown[name] = [as_image(samples[i], data) for i in row]
        nearest[name] = [as_image(torch.from_numpy(pool[i][IMAGE.name]), data) for i in found.indices[row].tolist()]
    return neighbour_sheet(shown, nearest, [""] * columns)


def as_image(pixels: torch.Tensor, data: dict | None = None) -> Image.Image | np.ndarray:
    """Pixels as a picture, or as an array ``(H, W, C)`` of what no picture holds.

    Args:
        pixels: ``(C, H, W)`` in [-1, 1], premultiplied.
        data: What a pipeline keeps about its data, which says whether there is alpha.
    """
    pixels = straight(pixels) if has_alpha(data) else pixels
    levels = ((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()
    if levels.shape[-1] in (1, 3, 4) or has_alpha(data):
        return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    return levels


def _affordable(training: torch.Tensor) -> int:
    """Samples that can be searched for among all training images."""
    views = (2 * SHIFT + 1) ** 2
    return max(COLUMNS, int(MULTIPLIES / (views * training.numel())))
