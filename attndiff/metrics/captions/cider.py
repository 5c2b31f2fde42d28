"""CIDEr-D: how many runs of words captions share with real ones, rare ones counting more (arXiv 1411.5726)."""

import math
from collections import Counter
from collections.abc import Sequence

LONGEST = 4  # words of a run
SIGMA = 6.0  # of the penalty on a difference in length, in words
SCALE = 10.0

Words = list[str]
Runs = Counter[tuple[str, ...]]


def cider_d(captions: Sequence[Words], real: Sequence[Sequence[Words]], rarity: "Rarity | None" = None) -> list[float]:
    """Scores of captions, each in [0, 10].

    How rare a run of words is, is counted over the images whose captions these are: scores of other images, or of
    fewer, do not compare.

    Args:
        captions: As words, one an image.
        real: The real captions of each image, one or several.
        rarity: Of runs of words; that among these images by default.
    """
    rarity = rarity or Rarity(real)
    return [
        SCALE * sum(_similarity(caption, other, rarity) for other in others) / len(others)
        for caption, others in zip(captions, real, strict=True)
    ]


class Rarity:
    """The logarithm of all images by those with a run of words in any of their captions (Eq. 1).

    Args:
        real: The captions of each image.
    """

    def __init__(self, real: Sequence[Sequence[Words]]):
        self.images, self.found = len(real), Counter[tuple[str, ...]]()
        for captions in real:
            self.found.update({run for caption in captions for n in _lengths() for run in _runs(caption, n)})

    def __getitem__(self, run: tuple[str, ...]) -> float:
        return math.log(self.images / max(1, self.found[run]))


def _lengths() -> range:
    return range(1, LONGEST + 1)


def _runs(words: Words, n: int) -> Runs:
    """How often each run of n words stands in a text."""
    return Counter(zip(*(words[i:] for i in range(n))))


def _similarity(caption: Words, other: Words, rarity: Rarity) -> float:
    """The mean over lengths of runs of clipped cosines, less for other lengths (Eq. 3 to 5)."""
    penalty = math.exp(-((len(caption) - len(other)) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for n in _lengths():
        ours, theirs = (
            {run: count * rarity[run] for run, count in _runs(words, n).items()} for words in (caption, other)
        )
        norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        shared = sum(min(ours[run], theirs[run]) * theirs[run] for run in ours.keys() & theirs.keys())
        total += shared / norms if norms else 0.0
    return penalty * total / LONGEST
