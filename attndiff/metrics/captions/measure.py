"""What a model writes of held-out images, beside what could be said without looking, and by looking less.

Shapes: N images, C channels, H rows, W columns; values in [-1, 1].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from attndiff.alpha import is_premultiplied
from attndiff.data.columns import CAPTION
from attndiff.data.rows import Rows
from attndiff.data.subset import Subset, spread_over
from attndiff.errors import UserError
from attndiff.metrics.captions.cider import Rarity, cider_d
from attndiff.metrics.captions.texts import agreement_of_texts, as_words, copied_share, distinct_share
from attndiff.metrics.neighbours import nearest_images
from attndiff.tasks.task import as_given

POOL = 5000  # training images at most among which nearest ones are looked for
COMPARED = 32  # pixels a side at which they are compared
TEMPLATES = 100
NEAREST = "the caption of the nearest of {} training images"


def captions_of(rows: Rows) -> list[list[str]]:
    """All captions of every image."""
    return [row[CAPTION.name] for row in rows]


def write_all(pipeline, images: Subset, search: dict | None = None):
    """The output of a pipeline called with all of some images: captions, and what else is asked for.

    Args:
        pipeline: An `AttnDiffCaptionPipeline`.
        images: In its size and channels.
        search: Further arguments of the call.

    Raises:
        UserError: If these are wrong.
    """
    try:
        return pipeline(as_given(images.tensor(), is_premultiplied(pipeline.config.data)), **(search or {}))
    except ValueError as error:  # how a pipeline refuses arguments
        raise UserError(str(error)) from None


def best_template(train: Rows) -> str:
    """The training caption that would do best for all images: said without looking.

    Of `TEMPLATES` captions, the commonest and others from all over the set, that with the highest CIDEr-D on as many
    training images, leaving out those whose own caption it is.
    """
    real = captions_of(spread_over(train, min(TEMPLATES, len(train))))
    counts = Counter(caption for captions in captions_of(train) for caption in captions)
    candidates = [caption for caption, _ in counts.most_common(TEMPLATES // 2)]
    candidates += [captions[0] for captions in real[: TEMPLATES // 2]]
    words = [[as_words(caption) for caption in captions] for captions in real]
    rarity = Rarity(words)

    def score(template: str) -> float:
        own = as_words(template)
        others = [captions for captions in words if own not in captions]
        return sum(cider_d([own] * len(others), others, rarity)) / max(1, len(others))

    return max(dict.fromkeys(candidates), key=score)


def captions_of_nearest(test: Subset, pool: Subset) -> list[str]:
    """For every image the caption of the training image that is nearest to it in its pixels."""
    samples, reference = (_small(images.tensor()) for images in (test, pool))
    nearest = nearest_images(samples, reference)[0][:, 0].tolist()
    return [pool[i][CAPTION.name][0] for i in nearest]


def _small(images: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` at `COMPARED` pixels a side at most."""
    size = [min(COMPARED, side) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="area")


@dataclass
class Beside:
    """What captions are compared with, found once for all kinds of images.

    Args:
        nearest: For every image the caption of the nearest training image.
        template: See `best_template`.
        known: All training captions.
        pool: Training images among which nearest ones were looked for.
    """

    nearest: list[str]
    template: str
    known: list[str]
    pool: int

    @classmethod
    def of(cls, test: Subset, train: Rows) -> "Beside":
        """That of held-out images, by those that were trained on."""
        pool = spread_over(train, min(POOL, len(train)))
        known = [caption for captions in captions_of(train) for caption in captions]
        return cls(captions_of_nearest(test, pool), best_template(train), known, len(pool))

    def __getitem__(self, rows: list[int]) -> "Beside":
        """The same for some of the images."""
        return replace(self, nearest=[self.nearest[i] for i in rows])


def measure_captions(written: Sequence[str], test: Subset, beside: Beside, seed: int) -> dict[str, dict]:
    """Measures by name.

    Each has ``value``; ``floor``, what the captions of nearest training images reach; ``controls`` with what one
    caption reaches for all, see `best_template`, and what the captions do once they are dealt out to other images; of
    images with several captions, ``human``, what the first reaches by the others.

    Args:
        written: One caption an image.
        test: The images.
        beside: Of these images.
        seed: Of the dealing out.
    """
    real, n = captions_of(test), len(written)
    others = np.random.default_rng(seed).permutation(n)
    ways = {
        "value": agreement_of_texts(written, real),
        "floor": agreement_of_texts(beside.nearest, real),
        "best_template": agreement_of_texts([beside.template] * n, real),
        "shuffled_images": agreement_of_texts([written[i] for i in others], real),
    }
    human = {}
    if all(len(captions) > 1 for captions in real):
        human = agreement_of_texts([captions[0] for captions in real], [captions[1:] for captions in real])
    how = NEAREST.format(beside.pool)
    report = {}
    for name, value in ways["value"].items():
        controls = {way: ways[way][name] for way in ("best_template", "shuffled_images")}
        entry = {"value": value, "floor": ways["floor"][name], "floor_of": "nearest image's", "n": n}
        entry |= {"extractor": how, "controls": controls}
        report[name] = {**entry, "human": human[name]} if human else entry
    firsts = [captions[0] for captions in real]
    report["distinct_captions"] = _share(distinct_share(written), distinct_share(firsts), n)
    report["copied_captions"] = _share(copied_share(written, beside.known), copied_share(firsts, beside.known), n)
    return report


def _share(value: float, real: float, n: int) -> dict:
    return {"value": value, "floor": real, "n": n, "extractor": "the real captions"}
