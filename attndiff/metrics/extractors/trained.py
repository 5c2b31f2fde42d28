"""A small classifier of the reference's own classes as extractor: always at hand, whatever the images are.

Where the reference has no classes the network learns to tell by how many quarter turns an image was rotated
(Gidaris et al., arXiv 1803.07728), for which every image is its own label.
"""

import hashlib

import torch
import torch.nn.functional as F

from attndiff.data.subset import shrink
from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.extractors.classifier import ImageClassifier, classify, fit, jitter, train_classifier

WIDTH = 32
FEATURES = 4 * WIDTH
VISITS = 40_000  # images seen in training, within the bounds of `EPOCHS`
EPOCHS = (2, 12)
AT_MOST = 20_000  # training images
SIDE = 64  # pixels a side that the network sees at most


def trained_extractor(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    held_out: torch.Tensor,
    held_out_labels: torch.Tensor | None,
    task: str,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Extractor:
    """Train the extractor; the same arguments give the same one where the machine and its threads are the same too.

    Its name carries a hash of its weights, so that equal names mean comparable numbers.

    Args:
        images: Training images ``(N, C, H, W)`` in [-1, 1].
        labels: Their classes ``(N,)``; None: quarter turns.
        held_out: Other images, which its accuracy is measured on.
        held_out_labels: Their classes.
        task: Name of what the labels say.
        seed: Of weights, order and augmentation.
        device: Where features are computed; training is on the CPU, whose result does not depend on a GPU's kind.
    """
    images, held_out = shrink(images, SIDE), shrink(held_out, SIDE)
    epochs = min(max(VISITS // len(images), EPOCHS[0]), EPOCHS[1])
    if labels is None:
        model = train_turns(images, epochs, seed)
        held_out_labels = torch.arange(4).repeat_interleave(len(held_out))
        held_out = torch.cat([held_out.rot90(turns, (2, 3)) for turns in range(4)])
    else:
        model = train_classifier(images, labels, epochs, WIDTH, seed)
    hits = classify(model, held_out) == held_out_labels
    chance = held_out_labels.bincount().max().item() / len(held_out_labels)
    accuracy = {"value": hits.double().mean().item(), "n": len(hits), "floor": chance}
    name = f"attndiff-classifier:{task}@{_digest(model)}"
    trunk = model.trunk.to(device)
    return Extractor(name, lambda batch: trunk(shrink(batch, SIDE).to(device)).cpu(), accuracy=accuracy)


def train_turns(images: torch.Tensor, epochs: int, seed: int) -> ImageClassifier:
    """A classifier of the quarter turns that an image was rotated by, drawn anew at each visit."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(4, images.shape[1], WIDTH)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        turns = torch.randint(4, (len(batch),), generator=generator)
        pairs = zip(images[batch], turns.tolist(), strict=True)
        rotated = torch.stack([image.rot90(count, (1, 2)) for image, count in pairs])
        return F.cross_entropy(model(jitter(rotated, generator)), turns)

    fit(model, loss_of, len(images), epochs, 64, 3e-3, generator)
    return model


def _digest(model: ImageClassifier) -> str:
    """Name of its weights."""
    content = hashlib.sha256()
    for value in model.state_dict().values():
        content.update(value.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:8]
