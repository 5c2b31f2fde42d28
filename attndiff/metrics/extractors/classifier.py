"""A small convolutional classifier, trained on real images, that says which class a picture is of."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

JITTER = 2  # pixels of random shift in training
NOISE = 0.1  # standard deviation, at most, of the noise added in training: samples are never as clean as real images


class ConvTrunk(nn.Module):
    """Images ``(B, C, H, W)`` to features ``(B, 4 width)``: residual stages at 1/2, 1/4 and 1/8 of the size.

    Args:
        channels: Channels of the images.
        width: Channels of the first stage; each stage doubles them.
    """

    def __init__(self, channels: int = 3, width: int = 32):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.residual = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1)) for w in widths
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.out_features = widths[-1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images in [-1, 1]."""
        x = self.stem(images)
        x = x + self.residual[0](x)
        for down, residual in zip(self.down, self.residual[1:], strict=True):
            x = down(x)
            x = x + residual(x)
        return F.relu(self.norm(x)).mean((2, 3))


class ImageClassifier(nn.Module):
    """Logits ``(B, classes)`` of images ``(B, C, H, W)`` in [-1, 1].

    Args:
        classes: Number of classes.
        channels: Channels of the images.
        width: Of the `ConvTrunk`.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 32):
        super().__init__()
        self.trunk = ConvTrunk(channels, width)
        self.head = nn.Linear(self.trunk.out_features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.trunk(images))


def jitter(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images ``(B, C, H, W)`` shifted and made noisy at random, for training."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [JITTER] * 4, mode="replicate")
    corners = torch.randint(2 * JITTER + 1, (len(images), 2), generator=generator).tolist()
    shifted = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)])
    strength = torch.rand(len(images), 1, 1, 1, generator=generator) * NOISE
    return shifted + strength * torch.randn(shifted.shape, generator=generator)


def batches(n: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled batches of indices; each epoch drops its incomplete last one, unless that is its only one."""
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator).split(min(batch_size, n))
        yield from (batch for batch in order if len(batch) == min(batch_size, n))


def fit(
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    n: int,
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> None:
    """Train with AdamW under a one-cycle rate; ``loss_of(indices)`` is the loss of a batch."""
    indices = list(batches(n, batch_size, epochs, generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(indices) + 1)
    model.train()
    for batch in indices:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def train_classifier(
    images: torch.Tensor, labels: torch.Tensor, epochs: int = 6, width: int = 32, seed: int = 0
) -> ImageClassifier:
    """Train a classifier.

    Args:
        images: ``(N, C, H, W)`` float in [-1, 1].
        labels: ``(N,)`` int64 from 0.
        epochs: Visits to every image.
        width: Of the `ConvTrunk`.
        seed: Of the weights, the order and the augmentation; the same seed gives the same classifier.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(int(labels.max()) + 1, images.shape[1], width)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(jitter(images[batch], generator)), labels[batch])

    fit(model, loss_of, len(images), epochs, 64, 3e-3, generator)
    return model


@torch.no_grad()
def classify(model: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
    """Most probable class ``(N,)`` of images ``(N, C, H, W)``."""
    return torch.cat([model(chunk).argmax(1) for chunk in images.split(256)])
