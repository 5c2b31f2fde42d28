"""Exercises from what is said of images: which caption is whose, and which class a column names."""

from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.metrics.extractors.classifier import ConvTrunk
from attndiff.metrics.extractors.pretext import Material, Pretext, Result, features_of
from attndiff.metrics.retrieval import (
    CANDIDATES,
    CaptionRetrieval,
    captions_within,
    contrastive_loss,
    new_retrieval,
    own_caption_ranks,
)

FEWEST_CAPTIONS = 10  # different ones to choose among
MOST_CLASSES = 100
IMAGES_A_CLASS = 10  # on average, at least
UNKNOWN = -100  # class of what is none of the classes


class Captions(Pretext):
    """Of several images and captions, which belong together (arXiv 2103.00020)."""

    name = "captions"

    def __init__(self, retrieval: CaptionRetrieval, train: Material, held_out: Material, generator: torch.Generator):
        super().__init__()
        self.retrieval, self.held_out, self.generator = retrieval, held_out, generator
        self.ids = [retrieval.ids(several) for several in train.captions]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(several[0] for several in train.captions))}
        self.numbers = torch.tensor([numbers[several[0]] for several in train.captions])

    def loss(self, trunk: nn.Module, batch: torch.Tensor, seen: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Between the images and one caption each, drawn anew at every visit."""
        draws = torch.rand(len(batch), generator=self.generator).tolist()
        chosen = [self.ids[i][int(u * len(self.ids[i]))] for i, u in zip(batch.tolist(), draws, strict=True)]
        images = F.normalize(self.retrieval.project(seen()), dim=1)
        scale = self.retrieval.log_scale.exp().clamp(max=100)
        same = self.numbers[batch, None] == self.numbers[batch]
        return contrastive_loss(scale * images @ self.retrieval.text(torch.stack(chosen)).T, same)

    def result(self, trunk: nn.Module) -> Result:
        """How often a held-out image's own caption comes first."""
        return self.judge(trunk, self.held_out.images, [several[0] for several in self.held_out.captions])

    def judge(
        self, trunk: nn.Module, images: torch.Tensor, captions: list[str], groups: list[str] | None = None
    ) -> Result:
        """Whether each image's caption comes first among `CANDIDATES` of the list, or as many as there are.

        With ``groups``, one an image, these are captions of its own group; an image whose group has one caption is
        left out.
        """
        pool = list(dict.fromkeys(captions))
        if groups is None:
            ranks = own_caption_ranks(self.retrieval, images, captions, pool)
            return Result(ranks == 1, 1 / min(CANDIDATES, len(pool)))
        allowed = captions_within(groups, captions, pool)
        among = allowed.sum(1).clamp(max=CANDIDATES)
        hits = own_caption_ranks(self.retrieval, images, captions, pool, allowed=allowed) == 1
        return Result(hits[among > 1], among[among > 1].double().reciprocal().mean().item())


class Classes(Pretext):
    """Which of its values a column has.

    Args:
        name: Of the column.
        values: Of every training image, as text.
        held_out: Images, and their values in the column.
    """

    def __init__(self, name: str, values: list[str], held_out: Material, features: int):
        super().__init__()
        self.name, self.held_out = name, held_out
        self.classes = {value: i for i, value in enumerate(sorted(set(values)))}
        self.labels = self.numbers(values)
        self.head = nn.Linear(features, len(self.classes))

    def numbers(self, values: list[str]) -> torch.Tensor:
        """Classes ``(N,)`` of texts, `UNKNOWN` of one that no training image has."""
        return torch.tensor([self.classes.get(value, UNKNOWN) for value in values])

    def loss(self, trunk: nn.Module, batch: torch.Tensor, seen: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.head(seen()), self.labels[batch])

    def result(self, trunk: nn.Module) -> Result:
        """How often a held-out image's value is told; chance is the commonest one."""
        return self.judge(trunk, self.held_out.images, self.held_out.columns[self.name])

    def judge(
        self, trunk: nn.Module, images: torch.Tensor, values: list[str], groups: list[str] | None = None
    ) -> Result:
        """Whether each image is seen to have its value; those of values never learned are left out.

        A class is told from all others, whatever the ``groups``.
        """
        right = self.numbers(values)
        known = right != UNKNOWN
        if not known.any():
            return Result(torch.zeros(1, dtype=torch.bool), 1 / len(self.classes))
        hits = self.head(features_of(trunk, images[known])).argmax(1).cpu() == right[known]
        # One value alone is no choice.
        return Result(hits, min(right[known].bincount().max().item(), len(hits) - 1) / len(hits) or 0.5)


def named_pretexts(
    train: Material, held_out: Material, width: int, generator: torch.Generator
) -> tuple[ConvTrunk, list[Pretext]]:
    """A new trunk, and an exercise for the captions and for every column that has classes; perhaps none.

    Args:
        train: What to learn from.
        held_out: What results are counted on.
        width: Of the trunk.
        generator: Of the draws in training; torch's own decides the weights.
    """
    columns = dict(train.columns)
    channels, found = train.images.shape[1], []
    if train.captions and held_out.captions:
        if len({several[0] for several in held_out.captions}) >= FEWEST_CAPTIONS:
            names = [several[0] for several in train.captions]
            retrieval = new_retrieval(names, train.captions, channels, max_length=48, width=width)
            found.append(Captions(retrieval, train, held_out, generator))
        else:  # few different captions are classes
            first = [several[0] for several in train.captions]
            columns = {name: values for name, values in columns.items() if not say_the_same(values, first)}
            columns[Captions.name] = first
            held_out.columns[Captions.name] = [several[0] for several in held_out.captions]
    trunk = found[0].retrieval.trunk if found else ConvTrunk(channels, width)
    for name, values in columns.items():
        if name in held_out.columns and _are_classes(values):
            found.append(Classes(name, values, held_out, trunk.out_features))
    return trunk, found


def _are_classes(values: list[str]) -> bool:
    """Whether a column has a few values, each of some images."""
    counts = Counter(values)
    return 2 <= len(counts) <= min(MOST_CLASSES, len(values) // IMAGES_A_CLASS)


def say_the_same(one: list[str], two: list[str]) -> bool:
    """Whether two columns divide images alike, such as the numbers and the names of classes."""
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))
