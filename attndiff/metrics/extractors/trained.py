"""A small network trained on the reference itself as extractor: always at hand, whatever the images are.

It learns what can be learned from the data at hand: which caption belongs to which image and what the columns say,
all at once on one trunk; where nothing is said, or nothing of it can be learned, which windows and which quarter turns
are one image's. What is near chance on held-out images has taught it nothing, and an extractor of which that is true
altogether is refused.
"""

import hashlib
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from attndiff.data.subset import shrink
from attndiff.metrics.extractors.base import Extractor, NothingLearned
from attndiff.metrics.extractors.classifier import ConvTrunk, fit, jitter
from attndiff.metrics.extractors.named import Captions, Classes, named_pretexts
from attndiff.metrics.extractors.pretext import Material, Pretext, Result
from attndiff.metrics.extractors.unnamed import SameImage, Turns

WIDTH = 32
FEATURES = 4 * WIDTH
VISITS = 40_000  # images seen in training, within the bounds of `EPOCHS`
EPOCHS = (2, 30)
FEW = 2_000  # images of which there are smaller batches, so that there are enough
BATCHES = (64, 128)
RATE = 3e-3
AT_MOST = 20_000  # training images
SIDE = 64  # pixels a side that the network sees at most
CLASSES = "classes"  # the column of the labels that a model may be conditioned on
PRETEXTS = {"text": Captions.name, "class": CLASSES}  # what tells whether a condition was met


def trained_extractor(
    train: Material, held_out: Material, seed: int = 0, device: torch.device | str = "cpu", named: bool = True
) -> Extractor:
    """Train the extractor; the same arguments give the same one where the machine and its threads are the same too.

    Its name says what it has learned and carries a hash of its weights, so that equal names mean comparable numbers.

    Args:
        train: What it learns from.
        held_out: Other images, on which its results are counted.
        seed: Of weights, order and augmentation.
        device: Where features are computed; training is on the CPU, whose result does not depend on a GPU's kind.
        named: Whether to learn what is said of the images.

    Raises:
        NothingLearned: If every result is near chance.
    """
    train, held_out = _shrunk(train), _shrunk(held_out)
    failed: dict[str, Result] = {}
    for kind in (_named, _unnamed) if named else (_unnamed,):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk, pretexts = kind(train, held_out, generator)
        if not pretexts:
            continue
        learn(trunk, pretexts, train.images, generator)
        results = {pretext.name: pretext.result(trunk) for pretext in pretexts}
        if any(result.is_learned for result in results.values()):
            return _extractor(trunk, pretexts, {**failed, **results}, device)
        failed |= results
    raise NothingLearned(failed)


def learn(trunk: nn.Module, pretexts: list[Pretext], images: torch.Tensor, generator: torch.Generator) -> None:
    """Train a trunk on all exercises at once.

    Args:
        trunk: Images to features.
        pretexts: The exercises.
        images: ``(N, C, H, W)``.
        generator: Of order and augmentation.
    """
    epochs = min(max(VISITS // len(images), EPOCHS[0]), EPOCHS[1])

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        seen = cache(lambda: trunk(jitter(images[batch], generator)))
        return sum(pretext.loss(trunk, batch, seen) for pretext in pretexts)

    model = nn.ModuleList([trunk, *pretexts])
    fit(model, loss_of, len(images), epochs, BATCHES[len(images) >= FEW], RATE, generator)


def _named(train: Material, held_out: Material, generator: torch.Generator) -> tuple[nn.Module, list[Pretext]]:
    return named_pretexts(train, held_out, WIDTH, generator)


def _unnamed(train: Material, held_out: Material, generator: torch.Generator) -> tuple[nn.Module, list[Pretext]]:
    trunk = ConvTrunk(train.images.shape[1], WIDTH)
    parts = train.images, held_out.images, FEATURES, generator
    square = train.images.shape[-1] == train.images.shape[-2]
    return trunk, [SameImage(*parts), *([Turns(*parts)] if square else [])]


def _extractor(trunk: nn.Module, pretexts: list[Pretext], results: dict[str, Result], device) -> Extractor:
    """The trunk as extractor, under the names of what it has learned."""
    learned = [pretext.name for pretext in pretexts if results[pretext.name].is_learned]
    best = max(learned, key=lambda name: results[name].odds)
    accuracy = {**results[best].to_json(), "pretext": best}
    accuracy["pretexts"] = {name: result.to_json() for name, result in results.items()}
    trunk, every, own = trunk.to(device), {pretext.name: pretext for pretext in pretexts}, {}
    for kind, name in PRETEXTS.items():
        if isinstance(pretext := every.get(name), Captions | Classes):
            own[kind] = _own(trunk, pretext.to(device), device)
    name = f"attndiff-classifier:{'+'.join(learned)}@{_digest(pretexts, trunk)}"
    return Extractor(name, lambda batch: trunk(shrink(batch, SIDE).to(device)).cpu(), accuracy=accuracy, own=own)


def _own(trunk: nn.Module, pretext: Captions | Classes, device) -> Callable[[torch.Tensor, list], Result]:
    """Tells which of some captions, or numbers of classes, are their images' own."""
    return lambda images, conditions, groups=None: pretext.judge(
        trunk, shrink(images, SIDE).to(device), [*map(str, conditions)], groups
    )


def _shrunk(material: Material) -> Material:
    return Material(shrink(material.images, SIDE), material.captions, dict(material.columns))


def _digest(pretexts: list[Pretext], trunk: nn.Module) -> str:
    """Name of all weights."""
    content = hashlib.sha256()
    for value in nn.ModuleList([trunk, *pretexts]).state_dict().values():
        content.update(value.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:8]
